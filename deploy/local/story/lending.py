"""A grant at an outside provider: a person allows it, and one deployment is lent it, no other."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx2

from deploy.local.story import preparation
from deploy.local.story.browser import browsing
from deploy.local.story.command_line import Outcome, succeeded
from deploy.local.story.provider import NAME, OutsideProvider
from deploy.local.story.scene import Deployment, Scene, Tenant
from deploy.local.story.stage import Surprise

_CONNECTION, _ALIAS, _SECOND = "wiki", "wiki", "reports"
_PURPOSE = "read the wiki"
_OK = 200
_MISSING = "BINDING_MISSING"
_MASKED = 4


@dataclass(frozen=True, slots=True)
class Lent:
    """A connection, to whom it is lent, and what that one was given along it."""

    connection_id: str
    binding_id: str
    to: Deployment
    token: dict[str, Any] = field(repr=False)


async def authorize(
    scene: Scene, provider: OutsideProvider, tenant: Tenant
) -> tuple[str, Deployment]:
    """Returns a connection that a person allowed, and a second deployment of the tenant."""
    connection, second = await asyncio.gather(
        _allowed(scene, provider, tenant), _second_deployment(scene, tenant)
    )
    return connection, second


async def lend(scene: Scene, connection: str, borrower: Deployment) -> Lent:
    """Binds the connection to one deployment, which vends its token and uses it."""
    name, run = borrower.tenant.name, scene.bulkhead
    bound = await run.done(
        *("binding", "create", borrower.deployment_id, connection, "--alias", _ALIAS),
        key=borrower.tenant.key,
    )
    scene.stage.command(name, bound.line)
    vended = await run.done("vend", _ALIAS, "--purpose", _PURPOSE, key=borrower.key)
    token = vended.document["results"][0]["token"]
    scene.stage.command("agent", vended.line)
    shown = f"{token['token_type']} …{token['token'][-_MASKED:]}"
    scene.stage.result(f"{'token':<14} {shown}, {', '.join(token['scopes'])}")
    await _check_use(scene, token)
    return Lent(connection, bound.document["binding_id"], borrower, token)


async def nobody_else(scene: Scene, lent: Lent, sibling: Deployment, stranger: Deployment) -> None:
    """Refuses it to the tenant's other deployment, and hides it from the other tenant."""
    name, other, run = lent.to.tenant.name, stranger.tenant.name, scene.bulkhead
    unlent, foreign = await asyncio.gather(
        run.refused("vend", _ALIAS, key=sibling.key),
        run.refused(
            *("binding", "create", stranger.deployment_id, lent.connection_id),
            key=stranger.tenant.key,
        ),
    )
    _check_missing(scene, f"{name}'s other deployment vends it", unlent)
    scene.stage.command(other, foreign.line)
    error = foreign.document["error"]
    what = f"{other} binds {name}'s connection"
    scene.stage.check(what, "NOT_FOUND", error["code"], "as one that does not exist")


async def traced(scene: Scene, lent: Lent) -> None:
    """Finds the vend in the tenant's audit log by the token, and ends the binding."""
    name, key, run = lent.to.tenant.name, lent.to.tenant.key, scene.bulkhead
    found, unbound = await asyncio.gather(
        run.done("connection", "trace", key=key, given=lent.token["token"]),
        run.done("binding", "delete", lent.binding_id, key=key),
    )
    scene.stage.command(name, f"{found.line} < token.txt")
    scene.stage.result(f"{'fingerprint':<14} {found.document['token_fingerprint']}")
    vends = [(event["key_id"], event["reason"]) for event in found.document["events"]]
    expected = [(lent.to.key_id, _PURPOSE)]
    if vends != expected:
        raise Surprise(f"the vends of the token: expected {expected}, got {vends}")
    scene.stage.check("vends of it in the audit log", 1, len(vends), f"by {lent.to.key_id}")
    scene.stage.command(name, unbound.line)
    again = await run.refused("vend", _ALIAS, key=lent.to.key)
    _check_missing(scene, "the next vend", again)


async def _allowed(scene: Scene, provider: OutsideProvider, tenant: Tenant) -> str:
    """Returns the connection once a person has allowed it, here and at the provider."""
    arguments = ("connection", "authorize", NAME, "--name", _CONNECTION)
    async with scene.bulkhead.running(*arguments, key=tenant.key) as command:
        url = await command.told(provider.server.url)
        asked = await _consent(scene, url, tenant)
        outcome = succeeded(await command.outcome())
    connection = outcome.document
    scene.stage.command(tenant.name, outcome.line)
    scene.stage.result(url.partition("?")[0] + "?…")
    for line in asked:
        scene.stage.aside(f"  {line}")
    state = connection["state"]
    scene.stage.check("the connection is", "CONNECTION_STATE_ACTIVE", state)
    return str(connection["connection_id"])


async def _consent(scene: Scene, url: str, tenant: Tenant) -> list[str]:
    """Returns what the person did; they allow it at the provider, and to whom at the front door."""
    async with browsing() as browser:
        there = await browser.open(url)
        here = await browser.press(there, "Allow")
        if tenant.name not in here.heading or not here.url.startswith(scene.addresses.edge):
            raise Surprise(f"the front door does not say who will act: {here.heading}")
        last = await browser.press(here, "Allow")
    if (last.status, last.heading) != (_OK, "Connected"):
        raise Surprise(f"after Allow: {last.status} {last.heading}")
    places = ("at the provider", "at the front door", "at last")
    pages = zip(places, (there, here, last), strict=True)
    return [f"{place:<18} “{page.heading}”" for place, page in pages]


async def _second_deployment(scene: Scene, tenant: Tenant) -> Deployment:
    created = await scene.bulkhead.done("deployment", "create", _SECOND, key=tenant.key)
    found = created.document
    bare = Deployment(tenant, found["deployment_id"], found["host"], "", "")
    keyed, _ = await preparation.issue_key(scene, bare)
    return keyed


async def _check_use(scene: Scene, token: dict[str, Any]) -> None:
    """Calls the provider's API as the vended token says how."""
    url = f"{token['api_base_url']}/whoami"
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await http.get(url, headers=token["headers"])
    scene.stage.check("the provider's API, asked with it", _OK, answer.status_code, url)


def _check_missing(scene: Scene, what: str, outcome: Outcome) -> None:
    scene.stage.command("agent", outcome.line)
    refusal = outcome.document["results"][0]["refusal"]
    found = refusal["reason"]
    scene.stage.check(what, _MISSING, found, refusal["message"])
