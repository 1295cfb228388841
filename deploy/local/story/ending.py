"""The end of a tenant: its keys are dead at once, and a certificate tells of the rest."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cli.certificate_text import parts, retained
from deploy.local.files import write_private
from deploy.local.story.refusals import PATH
from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise

_OK, _UNKNOWN = 200, 404
_REFUSED = 1


async def tenant_deleted(scene: Scene, home: Deployment, neighbour: Deployment) -> None:
    """Deletes the tenant, whose keys are dead when the command returns."""
    stage, run, tenant = scene.stage, scene.bulkhead, home.tenant
    published = await run.done("certificate", "keys")
    stage.command(tenant.name, "bulkhead certificate keys > keys.json")
    write_private(_keys(scene), json.dumps(published.document))
    deleted = await run.done(
        *("tenant", "delete", "--yes", "--no-wait", "--token-file", str(_token(scene))),
        key=tenant.key,
    )
    stage.command(tenant.name, _short(scene, deleted.line))
    refused = await run.refused("tenant", "get", key=tenant.key)
    found = refused.document["error"]["code"]
    stage.check(f"{tenant.name}'s admin key, at once", "UNAUTHENTICATED", found)
    for who, at, status in (
        (f"{tenant.name}'s agent", home, _UNKNOWN),
        (f"{neighbour.tenant.name}'s agent", neighbour, _OK),
    ):
        async with scene.visit(at.host, at.key) as visitor:
            answer = await visitor.get(PATH)
        stage.check(f"{who}, at its host", status, answer.status_code)


async def certified(scene: Scene) -> None:
    """Fetches the certificate by the token alone, checks it offline, and shows what it says."""
    stage, run = scene.stage, scene.bulkhead
    got = await run.done("certificate", "get", "--token-file", str(_token(scene)))
    certificate = str(got.document["certificate"])
    file = write_private(scene.addresses.state / "acme.certificate", certificate)
    stage.command("anyone", f"{_short(scene, got.line)} > {file.name}")
    arguments = ("certificate", "verify", str(file), "--keys", str(_keys(scene)))
    checked = await run.done(*arguments)
    stage.command("anyone", _short(scene, checked.line))
    said = checked.document["certificate"]
    stage.check("verified, without asking anybody", True, checked.document["verified"])
    _show(scene, said)
    await _tampered(scene, certificate)


async def _tampered(scene: Scene, certificate: str) -> None:
    """Makes one resource look destroyed a year earlier, and lets that be checked."""
    head, payload, signature = certificate.split(".")
    content = json.loads(base64.urlsafe_b64decode(payload + "=="))
    resource = content["resources"][0]
    year = int(resource["destroyed_at"][:4])
    resource["destroyed_at"] = f"{year - 1}{resource['destroyed_at'][4:]}"
    changed = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
    copy = write_private(
        scene.addresses.state / "tampered.certificate", f"{head}.{changed}.{signature}"
    )
    outcome = await scene.bulkhead.run(
        *("certificate", "verify", str(copy), "--keys", str(_keys(scene)))
    )
    scene.stage.command("anyone", _short(scene, outcome.line))
    problems = "; ".join(outcome.document.get("problems", []))
    scene.stage.check("a copy with one date changed", _REFUSED, outcome.exit_code, problems)
    if outcome.document.get("verified") is not False:
        raise Surprise(f"a certificate that was tampered with: {outcome.document}")


def _show(scene: Scene, said: Mapping[str, Any]) -> None:
    """Shows the certificate: each resource of each deployment, then each service."""
    stage = scene.stage
    for part in parts(said):
        stage.say(part.title)
        stage.rows(part.header, part.rows)
    for kept in retained(said):
        stage.aside(f"kept: {kept}")


def _short(scene: Scene, line: str) -> str:
    """Returns the line as one types it in the folder where the files are."""
    return line.replace(f"{scene.addresses.state}/", "").removesuffix(" --json")


def _token(scene: Scene) -> Path:
    return scene.addresses.state / "acme.token"


def _keys(scene: Scene) -> Path:
    return scene.addresses.state / "keys.json"
