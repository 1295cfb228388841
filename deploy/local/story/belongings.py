"""What is a deployment's own beside its database: secrets for its own program, and a bucket."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from deploy.local.story.preparation import issue_key
from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise

_SECRET, _OBJECT = "SMTP_PASSWORD", "rivets.txt"
_CONTENT = b"400 rivets, paid"
# What its program needs, whoever may know the rest.
_SCOPES = ("environment:read", "db:read")
_DENIED = "AccessDenied"
# Its methods are made from S3's own description when it runs.
_Client = Any


async def secret_kept(scene: Scene, here: Deployment, elsewhere: Deployment) -> Mapping[str, str]:
    """Returns the deployment's environment, after others than its own program asked in vain."""
    stage, run, name = scene.stage, scene.bulkhead, here.tenant.name
    value = secrets.token_urlsafe()
    put = await run.done(
        *("secret", "put", here.deployment_id, _SECRET, "--value-file", "-"),
        key=here.tenant.key,
        given=value,
    )
    stage.command(name, f"{put.line} < smtp.txt")
    issued, other = await asyncio.gather(
        issue_key(scene, here, *_SCOPES), issue_key(scene, elsewhere, *_SCOPES)
    )
    stage.command(name, issued[1].line)
    own, listed, strangers = await asyncio.gather(
        _environment(scene, issued[0].key),
        run.done("secret", "list", here.deployment_id, key=here.tenant.key),
        _environment(scene, other[0].key),
    )
    stage.command("program", "bulkhead deployment environment --json")
    stage.say(", ".join(own))
    stage.check("the secret, with its program's own key", True, own.get(_SECRET) == value)
    names = [each["name"] for each in listed.document["secrets"]]
    stage.check(f"{name} lists its secrets", _SECRET, ", ".join(names), "names alone")
    _no_value(value, listed.document, strangers)
    await _refused(scene, here)
    return own | {"OTHER_BUCKET": strangers["BULKHEAD_BUCKET_NAME"]}


async def bucket_used(scene: Scene, environment: Mapping[str, str], other: str) -> None:
    """Uses the bucket as the program would, and tries its credentials at the other tenant's."""
    stage = scene.stage
    own, foreign = environment["BULKHEAD_BUCKET_NAME"], environment["OTHER_BUCKET"]
    async with _bucket(environment) as client:
        await client.put_object(Bucket=own, Key=_OBJECT, Body=_CONTENT)
        answer = await client.get_object(Bucket=own, Key=_OBJECT)
        found = await answer["Body"].read()
        stage.say(f"Its program puts {_OBJECT} into s3://{own} and reads it back.")
        stage.check("the object, as it was put", True, found == _CONTENT)
        attempts = {
            "list": client.list_objects_v2(Bucket=foreign),
            "get": client.get_object(Bucket=foreign, Key=_OBJECT),
            "put": client.put_object(Bucket=foreign, Key=_OBJECT, Body=_CONTENT),
        }
        for what, attempt in attempts.items():
            stage.check(f"the same credentials at {other}'s: {what}", _DENIED, await _code(attempt))


async def _environment(scene: Scene, key: str) -> dict[str, str]:
    outcome = await scene.bulkhead.done("deployment", "environment", key=key)
    return {each["name"]: each["value"] for each in outcome.document["variables"]}


def _no_value(value: str, *answers: object) -> None:
    if any(value in str(answer) for answer in answers):
        raise Surprise("a secret was told to someone else than its deployment")


async def _refused(scene: Scene, here: Deployment) -> None:
    """Asks with the tenant's own key, and with the agent's."""
    asked = (
        ("the admin key", here.tenant.key, "KEY_KIND_REFUSED"),
        ("its agent's key", here.key, "SCOPE_MISSING"),
    )
    outcomes = await asyncio.gather(
        *(scene.bulkhead.refused("deployment", "environment", key=key) for _, key, _ in asked)
    )
    for (what, _, expected), outcome in zip(asked, outcomes, strict=True):
        found = outcome.document["error"]["reason"]
        scene.stage.check(f"{what} asks for the environment", expected, found)


@asynccontextmanager
async def _bucket(environment: Mapping[str, str]) -> AsyncIterator[_Client]:
    """Yields an S3 client with what the environment holds, and nothing else."""
    own = {name: environment[f"BULKHEAD_BUCKET_{name}"] for name in _ACCESS}
    async with get_session().create_client(
        "s3",
        endpoint_url=own["ENDPOINT"],
        region_name=own["REGION"],
        aws_access_key_id=own["ACCESS_KEY"],
        aws_secret_access_key=own["SECRET_KEY"],
        config=AioConfig(s3={"addressing_style": "path"}, proxies={}),
    ) as client:
        yield client


_ACCESS = ("ENDPOINT", "REGION", "ACCESS_KEY", "SECRET_KEY")


async def _code(attempt: Any) -> str:
    """Returns the code with which the storage refuses."""
    try:
        await attempt
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return "done"
