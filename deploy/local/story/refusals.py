"""Each thing that must be refused, and the answer that it gets."""

import asyncio

import httpx2

from deploy.local.story.preparation import issue_key
from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise
from deploy.local.story.visitor import Visitor
from deploy.local.story.work import INSERT

PATH = "/llms.txt"
KEY_INVALID = "KEY_INVALID"
# More than the free plan admits at once, and than it refills while they are answered.
_FLOOD = 60
_MOST_FLOODS = 5
_OK, _UNAUTHENTICATED, _UNKNOWN, _TOO_MANY = 200, 401, 404, 429


async def at_the_door(scene: Scene, here: Deployment, elsewhere: Deployment) -> None:
    """Presents no key, another tenant's key, and a good key at a host that is nobody's."""
    name, other = here.tenant.name, elsewhere.tenant.name
    attempts = (
        ("no key", here.host, "", _UNAUTHENTICATED, "KEY_MISSING"),
        (f"{other}'s key at {name}'s host", here.host, elsewhere.key, 401, KEY_INVALID),
        (f"{name}'s key at {other}'s host", elsewhere.host, here.key, 401, KEY_INVALID),
        (f"{name}'s admin key at its host", here.host, here.tenant.key, 401, KEY_INVALID),
        ("a good key at an unknown host", f"un{here.host}", here.key, _UNKNOWN, ""),
    )
    for what, host, key, status, reason in attempts:
        async with scene.visit(host, key) as visitor:
            answer = await visitor.get(PATH)
        check_refusal(scene, what, status, answer, reason)


async def at_the_api(scene: Scene, here: Deployment, elsewhere: Deployment) -> None:
    """Asks, with one tenant's key, for the other tenant's deployment."""
    outcome = await scene.bulkhead.refused(
        "deployment", "get", elsewhere.deployment_id, key=here.tenant.key
    )
    error = outcome.document["error"]
    scene.stage.command(here.tenant.name, outcome.line)
    what = f"{here.tenant.name} asks for {elsewhere.tenant.name}'s deployment"
    scene.stage.check(what, "NOT_FOUND", error["code"], "as one that does not exist")


async def without_scope(scene: Scene, here: Deployment) -> Deployment:
    """Returns the deployment with a key that only reads, after it was refused to write."""
    reader, issued = await issue_key(scene, here, "db:read")
    scene.stage.command(here.tenant.name, issued.line)
    async with scene.visit(here.host, reader.key) as visitor, visitor.agent() as agent:
        answer = await agent.call("execute", INSERT, "eve", "I was here")
    content = answer.structured_content or {}
    found = content.get("reason") if answer.is_error else "success"
    scene.stage.check(
        "execute with a key for db:read alone", "SCOPE_MISSING", found, "needs db:write"
    )
    return reader


async def over_the_burst(scene: Scene, here: Deployment) -> None:
    """Sends more at once than the plan admits; what was refused burnt none of the month."""
    async with scene.visit(here.host, here.key) as visitor:
        answers = await _flood(visitor)
        refused = next(answer for answer in answers if answer.status_code == _TOO_MANY)
        check_refusal(scene, f"{len(answers)} requests at once", _TOO_MANY, refused, "")
        for name in ("RateLimit-Policy", "RateLimit"):
            scene.stage.result(f"{name}: {refused.headers[name]}")
        admitted = sum(answer.status_code == _OK for answer in answers)
        wait = int(refused.headers["retry-after"])
        turned = len(answers) - admitted
        scene.stage.say(f"{admitted} were served, {turned} refused. Waiting {wait} s, as told …")
        await asyncio.sleep(wait)
        after = await visitor.get(PATH)
    scene.stage.check("the next request, after Retry-After", _OK, after.status_code)
    outcome = await scene.bulkhead.done("usage", "--deployment", here.deployment_id, key=here.key)
    scene.stage.command("agent", outcome.line)
    used, limit = outcome.document["used"], outcome.document["limit"]
    scene.stage.check(
        "calls used this month",
        scene.served[here.host],
        used,
        f"of {limit:,}: refused ones are free",
    )


async def _flood(visitor: Visitor) -> list[httpx2.Response]:
    """Returns answers of which at least one is 429.

    Raises:
        Surprise: a neighbour of 200 and 429 came, or no 429 at all.
    """
    for _ in range(_MOST_FLOODS):
        answers = await asyncio.gather(*(visitor.get(PATH) for _ in range(_FLOOD)))
        statuses = {answer.status_code for answer in answers}
        if strange := statuses - {_OK, _TOO_MANY}:
            raise Surprise(f"a flood of requests: expected 200 or 429, got {sorted(strange)}")
        if _TOO_MANY in statuses:
            return answers
    raise Surprise(f"{_MOST_FLOODS} times {_FLOOD} requests at once: none was refused")


def check_refusal(
    scene: Scene,
    what: str,
    status: int,
    answer: httpx2.Response,
    reason: str,
) -> None:
    """Checks the status, and that the body is a problem (RFC 9457) of the same status."""
    problem = answer.json() if "problem+json" in answer.headers.get("content-type", "") else {}
    words = [str(problem.get("reason", "no problem document"))]
    if status == _TOO_MANY:
        words.append(f"Retry-After: {answer.headers.get('retry-after', 'missing')}")
    scene.stage.check(what, status, answer.status_code, ", ".join(words))
    if problem.get("status") != status or (reason and problem.get("reason") != reason):
        raise Surprise(f"{what}: expected a problem {status} {reason}, got {problem}")
