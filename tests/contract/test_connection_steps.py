"""What a connection is made and lent by, step by step: each may fail, or be one of many."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.bindings import Bindings, WantedBinding
from services.credentials.completion import Origin
from services.credentials.domain import ConnectionKind, OAuthClient
from services.credentials.ports import Bearer
from services.credentials.providers.places import Places
from services.credentials.wanted import KeptSecret, NewConnection, OwnClient
from services.shared.errors import (
    BulkheadError,
    LimitExceededError,
    NotFoundError,
    UnavailableError,
)
from services.shared.ids import ConnectionId, DeploymentId, KeyId, TenantId
from tests.connection_parts import (
    PATIENCE,
    FailingRegistry,
    FullPlaces,
    Parts,
    connection_parts,
)
from tests.lending import Lender, below
from tests.mesh import Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble
from tests.providers import OWN_REDIRECT, allowed
from tests.refusals import expect_refused


@pytest.fixture(scope="session")
async def parts(mesh: Mesh) -> AsyncIterator[Parts]:
    async with connection_parts(mesh) as opened:
        yield opened


@pytest.fixture
async def lender(mesh: Mesh) -> Lender:
    return Lender(mesh, await mesh.customer())


async def delete_over_the_wire(lender: Lender, named: str) -> pb2.DeleteConnectionResponse:
    return await lender.credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=named), metadata=bearer(lender.customer.key)
    )


async def test_a_static_connection_that_was_broken_is_mended_by_another_credential(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.connection()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET state = 'needs_reauthorization', state_reason = 'unreadable'"
            " WHERE connection_id = $1",
            named,
        )

    async def updated(**fields: Any) -> pb2.Connection:
        answer = await lender.credentials.UpdateConnection(
            pb2.UpdateConnectionRequest(connection_id=named, **fields),
            metadata=bearer(lender.customer.key),
        )
        return answer.connection

    broken = pb2.CONNECTION_STATE_NEEDS_REAUTHORIZATION
    assert (await updated(name="Renamed")).state == broken
    mended = await updated(static_token=pb2.StaticToken(token="another"))
    assert (mended.name, mended.state) == ("Renamed", pb2.CONNECTION_STATE_ACTIVE)
    assert mended.state_reason == pb2.STATE_REASON_UNSPECIFIED


def new(request_id: str) -> NewConnection:
    kept = KeptSecret(ConnectionKind.STATIC_TOKEN, "static")
    return NewConnection(
        request_id, "github", "Bot", exclusive=False, parameters={}, credential=kept
    )


async def test_a_connection_that_auth_does_not_know_yet_is_made_known_when_it_is_asked_for_again(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    failing = FailingRegistry(parts.mesh, UnavailableError("auth is away"))
    with pytest.raises(UnavailableError):
        await parts.connections(failing).create(tenant, key, new("r"))
    (half,) = await parts.connections().page(tenant, None, None, 9)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await lender.connection_key(half.connection_id)
    made = await parts.connections().create(tenant, key, new("r"))
    assert made.connection_id == half.connection_id
    assert (await lender.connection_key(half.connection_id)).key


@pytest.mark.promise("P-38")
async def test_a_client_is_proved_from_one_of_its_tenants_places(
    parts: Parts, lender: Lender, provider: ProviderDouble
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    client = OwnClient(OAuthClient(provider.client.client_id, provider.client.client_secret), ())
    wanted = replace(new("r"), provider="loopback", credential=client)
    await parts.connections().create(tenant, key, wanted)
    assert parts.places.taken == [(tenant, "loopback")]


@pytest.mark.promise("P-38")
@pytest.mark.parametrize("redirect", ["", OWN_REDIRECT], ids=["front door", "own"])
async def test_a_state_that_has_to_wait_for_a_place_is_not_used_up(
    parts: Parts, lender: Lender, redirect: str
) -> None:
    started = await lender.credentials.StartAuthorization(
        pb2.StartAuthorizationRequest(
            request_id=fresh_id(), provider="loopback", name="n", redirect_url=redirect
        ),
        metadata=bearer(lender.customer.key),
    )
    state, code = await allowed(started.authorization_url)
    tenant, key = TenantId(lender.customer.tenant_id), KeyId(lender.customer.key_id)

    async def end(places: Places) -> object:
        completion = parts.completion(places)
        if redirect:
            return await completion.complete(tenant, key, state, code)
        return await completion.finish(Origin("app_proxy", ""), state, code)

    with pytest.raises(UnavailableError):
        await end(FullPlaces(1))
    assert await end(Places(4))


async def results(*calls: Any) -> tuple[list[Any], list[BaseException]]:
    """Returns what calls at once gave, and what they failed with."""
    given = await asyncio.gather(*calls, return_exceptions=True)
    failed = [one for one in given if isinstance(one, BaseException)]
    return [one for one in given if not isinstance(one, BaseException)], failed


async def test_a_tenant_has_no_more_connections_than_its_limit_also_when_many_are_made_at_once(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    connections = parts.connections(most=2)
    made, failed = await results(
        *(connections.create(tenant, key, new(fresh_id())) for _ in range(6))
    )
    assert len(made) == 2
    assert {type(error) for error in failed} == {LimitExceededError}
    # Who is deleted counts no more.
    await delete_over_the_wire(lender, made[0].connection_id)
    await connections.create(tenant, key, new(fresh_id()))
    with pytest.raises(LimitExceededError):
        await connections.create(tenant, key, new(fresh_id()))


def wanted(deployment: str, connection: str, alias: str) -> WantedBinding:
    return WantedBinding(
        DeploymentId(deployment), ConnectionId(connection), alias, (), None, replace=False
    )


async def test_a_deployment_has_no_more_bindings_than_its_limit_also_when_many_come_at_once(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    to, lent = await lender.deployment(), [await lender.connection() for _ in range(6)]
    bindings = Bindings(parts.database, parts.registry, per_deployment=2)
    made, failed = await results(
        *(bindings.bind(tenant, key, wanted(to, one, f"a{one[-9:]}")) for one in lent)
    )
    assert len(made) == 2
    assert {type(error) for error in failed} == {LimitExceededError}
    # One that is over counts no more.
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE bindings SET expires_at = now() WHERE binding_id = $1", made[0].binding_id
        )
    await bindings.bind(tenant, key, wanted(to, lent[0], "z"))


@pytest.mark.parametrize(
    "going",
    [
        "UPDATE connections SET state = 'deleting' WHERE connection_id = $1 AND $2 <> ''",
        "UPDATE deployments SET released_at = now() WHERE deployment_id = $2 AND $1 <> ''",
    ],
    ids=["connection", "deployment"],
)
async def test_what_goes_meanwhile_is_not_brought_together(
    parts: Parts, lender: Lender, going: str
) -> None:
    to, lent = await lender.deployment(), await lender.connection()
    await lender.bind(to, await lender.connection(), alias="other")
    async with below(parts.mesh) as db:
        transaction = db.transaction()
        await transaction.start()
        assert await db.execute(going, lent, to) == "UPDATE 1"
        binding = asyncio.create_task(lender.bind(to, lent))
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while not (binding.done() or await someone_waits(parts)):
                await asyncio.sleep(0.01)
        await transaction.commit()
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await binding


async def someone_waits(parts: Parts) -> bool:
    """Returns whether a statement waits for another's transaction."""
    async with below(parts.mesh) as db:
        return bool(
            await db.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND cardinality(pg_blocking_pids(pid)) > 0"
            )
        )


async def test_a_deployment_that_is_retired_meanwhile_gets_nothing(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    to, lent = await lender.deployment(), await lender.connection()
    gone: BulkheadError = NotFoundError("deployment")
    # It was there when auth was asked first, and its release found no row of it here.
    registry = FailingRegistry(parts.mesh, gone, at=2)
    bindings = Bindings(parts.database, registry, per_deployment=9)
    with pytest.raises(NotFoundError):
        await bindings.bind(tenant, key, wanted(to, lent, "a"))
    assert await bindings.page(tenant, None, None, None, 9) == []
