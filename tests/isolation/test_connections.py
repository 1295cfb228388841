"""Connections and bindings across tenants: by the contract's methods, and below them (P-22)."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.shared.ids import new_binding_id
from services.shared.postgres import Connection
from tests.lending import Lender, below
from tests.mesh import Mesh, bearer, fresh_id
from tests.providers import allowed, state_of
from tests.refusals import details, expect_refused

UNKNOWN = {"connection": "con_" + "0" * 26, "binding": "bnd_" + "0" * 26}
UNKNOWN |= {"deployment": "dep_" + "0" * 26}


@dataclass(frozen=True, slots=True)
class Party:
    """A tenant with a connection that is lent to a deployment."""

    lender: Lender
    connection: str
    deployment: str
    binding: pb2.Binding

    @property
    def tenant(self) -> str:
        return self.lender.customer.tenant_id


async def party(mesh: Mesh) -> Party:
    lender = Lender(mesh, await mesh.customer())
    connection, deployment = await lender.authorized(), await lender.deployment()
    return Party(lender, connection, deployment, await lender.bind(deployment, connection))


@pytest.fixture(scope="session")
async def victim(mesh: Mesh) -> Party:
    return await party(mesh)


@pytest.fixture(scope="session")
async def attacker(mesh: Mesh) -> Party:
    return await party(mesh)


@pytest.fixture(
    params=["credentials_service", "credentials_tenant", ""], ids=["service", "tenant", "owner"]
)
async def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def db(mesh: Mesh, attacker: Party, role: str) -> AsyncIterator[Connection]:
    """Raw SQL, as each role of the service; nothing of it stays."""
    async with below(mesh, role) as connection:
        await connection.execute(
            "SELECT set_config('bulkhead.tenant_id', $1, false)", attacker.tenant
        )
        if not role:
            # The owner of the tables, with row-level security out of its way.
            await connection.execute("RESET ROLE")
        transaction = connection.transaction()
        await transaction.start()
        if not role:
            for table in ("connections", "deployments", "bindings", "access_tokens"):
                await connection.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        yield connection
        await transaction.rollback()


_BIND = (
    "INSERT INTO bindings (binding_id, tenant_id, deployment_id, connection_id, exclusive, alias)"
    " VALUES ($1, $2, $3, $4, $5, 'attack')"
)


@pytest.mark.promise("P-22")
@pytest.mark.parametrize("tenant", ["attacker", "victim"])
@pytest.mark.parametrize("exclusive", [True, False])
async def test_no_role_can_lend_across_tenants_by_raw_sql(
    db: Connection, victim: Party, attacker: Party, tenant: str, exclusive: bool
) -> None:
    said = {"attacker": attacker, "victim": victim}[tenant].tenant
    with pytest.raises((asyncpg.ForeignKeyViolationError, asyncpg.InsufficientPrivilegeError)):
        # The victim's connection for the attacker's deployment, whatever tenant the row says.
        await db.execute(
            _BIND, new_binding_id(), said, attacker.deployment, victim.connection, exclusive
        )


async def test_what_those_attacks_try_works_within_one_tenant(
    db: Connection, attacker: Party
) -> None:
    own = (attacker.tenant, attacker.deployment, attacker.connection)
    await db.execute(_BIND, new_binding_id(), *own, False)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        # Nor can a row say of a connection that it is exclusive when it is not.
        await db.execute(_BIND.replace("attack", "other"), new_binding_id(), *own, True)


@pytest.mark.promise("P-22")
async def test_no_role_can_turn_a_binding_to_another_tenants_connection(
    db: Connection, victim: Party, attacker: Party
) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await db.execute(
            "UPDATE bindings SET connection_id = $2 WHERE binding_id = $1",
            attacker.binding.binding_id,
            victim.connection,
        )


@pytest.mark.promise("P-22")
@pytest.mark.parametrize("table", ["deployments", "connections"])
async def test_no_role_can_move_what_is_lent_to_another_tenant(
    db: Connection, victim: Party, attacker: Party, table: str
) -> None:
    column = {"deployments": "deployment_id", "connections": "connection_id"}[table]
    own = {"deployments": attacker.deployment, "connections": attacker.connection}[table]
    with pytest.raises((asyncpg.ForeignKeyViolationError, asyncpg.InsufficientPrivilegeError)):
        await db.execute(
            f"UPDATE {table} SET tenant_id = $2 WHERE {column} = $1", own, victim.tenant
        )


@pytest.mark.promise("P-22")
async def test_no_role_can_put_a_token_of_one_tenant_under_anothers_connection(
    db: Connection, victim: Party, attacker: Party
) -> None:
    with pytest.raises((asyncpg.ForeignKeyViolationError, asyncpg.InsufficientPrivilegeError)):
        await db.execute(
            "INSERT INTO access_tokens (connection_id, scope_key, tenant_id, sealed_token,"
            " token_type) VALUES ($1, 'x', $2, '', 'Bearer')",
            victim.connection,
            attacker.tenant,
        )


@pytest.mark.promise("P-22")
@pytest.mark.promise("P-36")
@pytest.mark.parametrize(
    "table",
    ["connections", "bindings", "deployments", "access_tokens", "authorizations", "data_keys"],
)
async def test_a_forgotten_where_shows_and_changes_a_tenants_own_rows_alone(
    mesh: Mesh, victim: Party, attacker: Party, table: str
) -> None:
    await victim.lender.started()
    await attacker.lender.started()
    async with below(mesh, "credentials_tenant") as db:
        await db.execute("SELECT set_config('bulkhead.tenant_id', $1, false)", attacker.tenant)
        rows = await db.fetch(f"SELECT DISTINCT tenant_id FROM {table}")
        assert [row["tenant_id"] for row in rows] == [attacker.tenant]
        changing = db.transaction()
        await changing.start()
        await db.execute(
            f"UPDATE {table} SET created_at = now()"
            if table != "access_tokens"
            else f"UPDATE {table} SET issued_at = now()"
        )
        await changing.rollback()
        await db.execute("SELECT set_config('bulkhead.tenant_id', '', false)")
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0


@pytest.mark.promise("P-22")
async def test_a_deployment_that_is_known_as_ones_cannot_be_had_by_another(
    mesh: Mesh, victim: Party, attacker: Party
) -> None:
    """Also when auth itself would say that it is the other's."""
    async with below(mesh) as db:
        claimed = await attacker.lender.deployment()
        await db.execute(
            "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2)",
            claimed,
            victim.tenant,
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await attacker.lender.bind(claimed, attacker.connection, alias="claimed")


async def answer_of(calling: Any) -> tuple[Any, ...]:
    """Returns all that a caller sees."""
    try:
        return ("OK", str(await calling))
    except grpc.aio.AioRpcError as error:
        info, bad = details(error)
        metadata = dict(info.metadata)
        return (error.code().name, error.details(), info.reason, metadata, str(bad))


def requests(connection: str, deployment: str, binding: str, own: Party) -> dict[str, Any]:
    """Returns each method's requests that name what may be another's."""
    return {
        "GetConnection": [pb2.GetConnectionRequest(connection_id=connection)],
        "UpdateConnection": [
            pb2.UpdateConnectionRequest(connection_id=connection, name="x"),
            pb2.UpdateConnectionRequest(connection_id=connection, exclusive=True),
            pb2.UpdateConnectionRequest(
                connection_id=connection, static_token=pb2.StaticToken(token="x")
            ),
        ],
        "DeleteConnection": [pb2.DeleteConnectionRequest(connection_id=connection)],
        "StartAuthorization": [
            pb2.StartAuthorizationRequest(request_id="attack", connection_id=connection)
        ],
        "BindConnection": [
            pb2.BindConnectionRequest(deployment_id=one, connection_id=other, alias="x", replace=r)
            for one, other in (
                (deployment, connection),
                (own.deployment, connection),
                (deployment, own.connection),
            )
            for r in (False, True)
        ],
        "UnbindConnection": [pb2.UnbindConnectionRequest(binding_id=binding)],
        "ListBindings": [
            pb2.ListBindingsRequest(deployment_id=deployment),
            pb2.ListBindingsRequest(connection_id=connection),
        ],
    }


@pytest.mark.promise("P-22")
@pytest.mark.promise("P-41")
async def test_another_tenants_is_answered_to_the_letter_as_what_does_not_exist(
    mesh: Mesh, victim: Party, attacker: Party
) -> None:
    def all_requests(connection: str, deployment: str, binding: str) -> list[tuple[str, Any]]:
        named = requests(connection, deployment, binding, attacker)
        return [(method, request) for method, made in named.items() for request in made]

    theirs = all_requests(victim.connection, victim.deployment, victim.binding.binding_id)
    nobodys = all_requests(*(UNKNOWN[kind] for kind in ("connection", "deployment", "binding")))
    stub = mesh.stub(CredentialsServiceStub, "credentials")
    key = bearer(attacker.lender.customer.key)
    before = await everything(mesh, victim.tenant)
    for (method, their), (_, nobody) in zip(theirs, nobodys, strict=True):
        call = getattr(stub, method)
        answers = [await answer_of(call(request, metadata=key)) for request in (their, nobody)]
        assert answers[0] == answers[1], their
        assert victim.deployment not in str(answers[0])
        assert answers[0][0] == ("OK" if method == "ListBindings" else "NOT_FOUND")
    assert await everything(mesh, victim.tenant) == before


@pytest.mark.promise("P-22")
@pytest.mark.promise("P-41")
async def test_a_provisioner_that_is_told_so_releases_no_other_tenants_deployment(
    mesh: Mesh, victim: Party, attacker: Party
) -> None:
    stub = mesh.stub(CredentialsServiceStub, "credentials", "provisioner")
    job = bearer(await mesh.job_key(attacker.lender.customer))
    before = await everything(mesh, victim.tenant)
    for named in (victim.deployment, UNKNOWN["deployment"]):
        answer = await stub.ReleaseDeployment(
            pb2.ReleaseDeploymentRequest(deployment_id=named), metadata=job
        )
        assert answer.bindings_ended == 0
    assert await everything(mesh, victim.tenant) == before


@pytest.mark.promise("P-22")
@pytest.mark.promise("P-41")
async def test_a_state_of_another_tenant_or_of_another_key_is_one_that_never_was(
    mesh: Mesh, victim: Party, attacker: Party
) -> None:
    started = await victim.lender.started()
    state, code = await allowed(started.authorization_url)
    stub = mesh.stub(CredentialsServiceStub, "credentials")
    other_key = await mesh.stub(AuthServiceStub, "auth").IssueKey(
        auth_pb2.IssueKeyRequest(request_id=fresh_id()),
        metadata=bearer(victim.lender.customer.key),
    )

    async def completed(key: str, state: str) -> tuple[Any, ...]:
        request = pb2.CompleteAuthorizationRequest(state=state, code=code)
        return await answer_of(stub.CompleteAuthorization(request, metadata=bearer(key)))

    never = await completed(attacker.lender.customer.key, "A" * 43)
    assert never[0] == "NOT_FOUND"
    assert await completed(attacker.lender.customer.key, state) == never
    assert await completed(other_key.key, state) == never
    # Whose it is can still use it.
    assert (await completed(victim.lender.customer.key, state))[0] == "OK"


@pytest.mark.promise("P-22")
async def test_neither_state_nor_verifier_nor_code_is_anywhere_in_the_database(
    mesh: Mesh, victim: Party
) -> None:
    started = await victim.lender.started()
    state = state_of(started.authorization_url)
    async with below(mesh) as db:
        rows = await db.fetch(
            "SELECT to_jsonb(authorizations)::text AS row FROM authorizations"
            " WHERE connection_id = $1",
            started.connection.connection_id,
        )
    assert len(rows) == 1
    assert state not in rows[0]["row"]
    assert state.encode().hex() not in rows[0]["row"]


async def everything(mesh: Mesh, tenant: str) -> list[str]:
    """Returns all that is kept of a tenant's connections."""
    kept = []
    async with below(mesh) as db:
        for table in ("connections", "bindings", "deployments", "authorizations", "access_tokens"):
            rows = await db.fetch(
                f"SELECT to_jsonb({table})::text AS row FROM {table} WHERE tenant_id = $1"
                " ORDER BY 1",
                tenant,
            )
            kept += [row["row"] for row in rows]
    assert kept
    return kept
