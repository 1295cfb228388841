"""The life of a key in use: it is rotated without a pause, and revoked without a delay."""

from collections.abc import Mapping
from typing import Any

from deploy.local.story.refusals import KEY_INVALID, PATH, check_refusal
from deploy.local.story.scene import Deployment, Scene

_OK, _UNAUTHENTICATED = 200, 401
_GRACE = "1h"


async def rotated(scene: Scene, old: Deployment) -> Deployment:
    """Returns the deployment with the successor of its key, after the old one was cut off."""
    name = old.tenant.name
    outcome = await scene.bulkhead.done(
        "key", "rotate", old.key_id, "--grace", _GRACE, key=old.tenant.key
    )
    scene.stage.command(name, outcome.line)
    issued = outcome.document
    scene.stage.result(f"{'key_id':<14} {issued['key_id']}\n{'key':<14} {issued['key']}")
    new = Deployment(old.tenant, old.deployment_id, old.host, issued["key_id"], issued["key"])
    await _opens(scene, "the old key, in its grace period", old)
    await _opens(scene, "the new key", new)
    await _revoke(scene, "the old key, its grace period ended", old)
    await _opens(scene, "the new key, as before", new)
    return new


async def revoked(scene: Scene, reader: Deployment) -> None:
    """Revokes a key that is in use; the very next request is refused."""
    await _opens(scene, "the key, before it is revoked", reader)
    await _revoke(scene, "the next request with it", reader)


async def _opens(scene: Scene, what: str, deployment: Deployment) -> None:
    async with scene.visit(deployment.host, deployment.key) as visitor:
        answer = await visitor.get(PATH)
    scene.stage.check(what, _OK, answer.status_code)


async def _revoke(scene: Scene, what: str, deployment: Deployment) -> None:
    async with scene.visit(deployment.host, deployment.key) as visitor:
        # So that the connection and every cache are warm.
        await visitor.get(PATH)
        outcome = await scene.bulkhead.done(
            "key", "revoke", deployment.key_id, key=deployment.tenant.key
        )
        answer = await visitor.get(PATH)
    scene.stage.command(deployment.tenant.name, outcome.line)
    scene.stage.result(_effect(outcome.document["effect"]))
    check_refusal(scene, what, _UNAUTHENTICATED, answer, KEY_INVALID)


def _effect(effect: Mapping[str, Any]) -> str:
    forgot, fenced = (effect.get(f"watchers_{how}", 0) for how in ("acknowledged", "fenced"))
    return f"effect: {forgot} processes have forgotten it, {fenced} were fenced off"
