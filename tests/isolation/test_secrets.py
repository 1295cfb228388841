"""A deployment's secrets are for the deployment itself, and a first password is shown once.

Attacked with the keys of others, at the rows, and by many at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.secret_store import secret_place
from services.shared.ids import DeploymentId, TenantId
from services.shared.settings import PostgresSettings
from tests.canaries import canary, leaked
from tests.databases import Databases
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import details, expect_refused
from tests.vaults import Vault, open_vault

NAME = "API_TOKEN"
MANY = 50


@dataclass(frozen=True)
class Program:
    """A deployment with a secret, and the key that its own program holds."""

    mesh: Mesh
    tenant: Customer
    deployment_id: str
    key: str
    secret: str

    @property
    def stub(self) -> ProvisionerServiceStub:
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")

    async def environment(self, key: str = "") -> dict[str, str]:
        found = await self.stub.GetEnvironment(
            pb2.GetEnvironmentRequest(), metadata=bearer(key or self.key)
        )
        return {variable.name: variable.value for variable in found.variables}

    async def reveal(self) -> pb2.RevealBootstrapAdminResponse:
        return await self.stub.RevealBootstrapAdmin(
            pb2.RevealBootstrapAdminRequest(deployment_id=self.deployment_id),
            metadata=bearer(self.tenant.key),
        )


@pytest.fixture(scope="module")
async def programs(mesh: Mesh) -> tuple[Program, Program, Program]:
    """Two of one tenant, and another tenant's."""
    tenant = await mesh.customer()
    first, second = await program(mesh, tenant), await program(mesh, tenant)
    return first, second, await program(mesh, await mesh.customer())


async def program(mesh: Mesh, tenant: Customer) -> Program:
    made = await mesh.deployment(tenant, database=False, mcp=False, bootstrap_admin=True)
    key = await mesh.key(tenant, made.deployment_id, ("environment:read",))
    own = Program(mesh, tenant, made.deployment_id, key.key, canary("kept-secret"))
    await own.stub.PutSecret(
        pb2.PutSecretRequest(deployment_id=own.deployment_id, name=NAME, value=own.secret),
        metadata=bearer(tenant.key),
    )
    return own


@pytest.fixture(scope="module")
async def vault(mesh: Mesh, programs: tuple[Program, Program, Program]) -> AsyncIterator[Vault]:
    async with open_vault(mesh, "provisioner", (programs[0].tenant, programs[2].tenant)) as opened:
        yield opened


@pytest.mark.promise("P-09")
async def test_each_deployments_key_opens_its_own_environment_alone(
    programs: tuple[Program, Program, Program],
) -> None:
    for own in programs:
        environment = await own.environment()
        assert environment[NAME] == own.secret
        assert environment["BULKHEAD_DEPLOYMENT_ID"] == own.deployment_id
        others = [other.secret for other in programs if other is not own]
        assert leaked(str(environment), others) == set()


@pytest.mark.promise("P-09")
async def test_no_other_key_opens_an_environment(
    mesh: Mesh, programs: tuple[Program, Program, Program]
) -> None:
    own = programs[0]
    # As an agent holds it: every usual scope.
    agents = await mesh.key(own.tenant, own.deployment_id)
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await own.environment(agents.key)
    for key in (own.tenant.key, mesh.operator_key):
        with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
            await own.environment(key)


@pytest.mark.promise("P-09")
async def test_another_tenant_reads_names_writes_and_deletes_nothing(
    programs: tuple[Program, Program, Program],
) -> None:
    own, _, foreign = programs
    metadata, named = bearer(foreign.tenant.key), own.deployment_id
    stub = own.stub
    for calling in (
        stub.PutSecret(
            pb2.PutSecretRequest(deployment_id=named, name=NAME, value="x"), metadata=metadata
        ),
        stub.ListSecrets(pb2.ListSecretsRequest(deployment_id=named), metadata=metadata),
        stub.DeleteSecret(
            pb2.DeleteSecretRequest(deployment_id=named, name=NAME), metadata=metadata
        ),
        stub.RevealBootstrapAdmin(
            pb2.RevealBootstrapAdminRequest(deployment_id=named), metadata=metadata
        ),
    ):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await calling
    assert (await own.environment())[NAME] == own.secret


@pytest.mark.promise("P-09")
async def test_no_value_is_anywhere_in_the_rows_nor_in_a_list(
    mesh: Mesh, databases: Databases, programs: tuple[Program, Program, Program]
) -> None:
    own = programs[0]
    listed = await own.stub.ListSecrets(
        pb2.ListSecretsRequest(deployment_id=own.deployment_id), metadata=bearer(own.tenant.key)
    )
    assert [secret.name for secret in listed.secrets] == [NAME]
    assert leaked(str(listed)) == set()
    async with superuser(mesh, databases, "provisioner") as connection:
        tables = await connection.fetch(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        rows = [
            row[0]
            for (table,) in tables
            for row in await connection.fetch(f'SELECT t::text FROM "{table}" AS t')
        ]
    assert any(own.deployment_id in row for row in rows)
    assert [row for row in rows if leaked(row)] == []


@asynccontextmanager
async def superuser(mesh: Mesh, databases: Databases, service: str) -> AsyncIterator[Any]:
    """Yields a connection to the service's database that sees and may do everything."""
    settings = mesh.settings[service]
    assert isinstance(settings, PostgresSettings)
    connection = await databases.postgres.connect(settings.postgres_database)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.mark.promise("P-09")
async def test_a_row_that_was_tampered_with_gives_no_environment_at_all(
    vault: Vault, programs: tuple[Program, Program, Program]
) -> None:
    own, sibling, foreign = programs
    await own.stub.PutSecret(
        pb2.PutSecretRequest(
            deployment_id=own.deployment_id, name="OTHER", value=canary("beside it")
        ),
        metadata=bearer(own.tenant.key),
    )
    good = await sealed(vault, own, NAME)
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    swapped = [
        await sealed(vault, own, "OTHER"),
        await sealed(vault, sibling, NAME),
        await sealed(vault, foreign, NAME),
    ]
    try:
        for bad in (*swapped, good[:-1], flipped, b""):
            await put_sealed(vault, own, NAME, bad)
            with expect_refused("FAILED_PRECONDITION", "SECRET_UNREADABLE"):
                await own.environment()
    finally:
        await put_sealed(vault, own, NAME, good)
    assert (await own.environment())[NAME] == own.secret


async def sealed(vault: Vault, program: Program, name: str) -> bytes:
    async with vault.database.service() as connection:
        found = await connection.fetchval(
            "SELECT sealed_value FROM secrets WHERE deployment_id = $1 AND name = $2",
            program.deployment_id,
            name,
        )
    assert isinstance(found, bytes)
    return found


async def put_sealed(vault: Vault, program: Program, name: str, content: bytes) -> None:
    async with vault.database.service() as connection:
        await connection.execute(
            "INSERT INTO secrets VALUES ($1, $2, $3, $4, false)"
            " ON CONFLICT (deployment_id, name) DO UPDATE SET sealed_value = $4",
            program.deployment_id,
            program.tenant.tenant_id,
            name,
            content,
        )


@pytest.mark.promise("P-09")
async def test_no_secret_stands_in_for_what_is_ours(
    vault: Vault, programs: tuple[Program, Program, Program]
) -> None:
    """Not even one that got past the rules for names."""
    own = programs[1]
    before = await own.environment()
    cipher = (await vault.ciphers())[own.tenant.tenant_id]
    place = secret_place(DeploymentId(own.deployment_id), "BULKHEAD_HOST")
    await put_sealed(vault, own, place.row.partition("/")[2], cipher.seal(place, "elsewhere"))
    assert await own.environment() == before


@pytest.mark.promise("P-10")
async def test_of_many_who_ask_for_the_first_password_one_is_answered(
    vault: Vault, programs: tuple[Program, Program, Program]
) -> None:
    own = programs[1]
    outcomes = await asyncio.gather(*(outcome(own.reveal) for _ in range(MANY)))
    shown = [each for each in outcomes if not isinstance(each, str)]
    assert len(shown) == 1
    assert [each for each in outcomes if isinstance(each, str)] == ["SHOWN_BEFORE"] * (MANY - 1)
    async with vault.database.service() as connection:
        row = await connection.fetchrow(
            "SELECT sealed_password, revealed_at FROM bootstrap_admins WHERE deployment_id = $1",
            own.deployment_id,
        )
    assert row is not None
    assert row["sealed_password"] is None
    assert row["revealed_at"] is not None


async def outcome(calling: Callable[[], Awaitable[Any]]) -> Any:
    """Returns the answer, or why there is none; asks again while the service has no room."""
    while True:
        try:
            return await calling()
        except grpc.aio.AioRpcError as error:
            reason = details(error)[0].reason
            if reason != "DEPENDENCY_UNAVAILABLE":
                return reason


@pytest.mark.promise("P-10")
async def test_a_first_password_of_elsewhere_is_not_shown_and_none_is_lost_for_it(
    mesh: Mesh, vault: Vault, programs: tuple[Program, Program, Program]
) -> None:
    first = programs[0]
    sibling = await program(mesh, first.tenant)
    swap = (
        "UPDATE bootstrap_admins SET sealed_password = other.sealed_password"
        " FROM bootstrap_admins AS other WHERE bootstrap_admins.deployment_id = ANY($1)"
        " AND other.deployment_id = ANY($1)"
        " AND other.deployment_id <> bootstrap_admins.deployment_id"
    )
    both = [first.deployment_id, sibling.deployment_id]
    async with vault.database.service() as connection:
        assert await connection.execute(swap, both) == "UPDATE 2"
    for own in (first, sibling):
        with expect_refused("FAILED_PRECONDITION", "SECRET_UNREADABLE"):
            await own.reveal()
    async with vault.database.service() as connection:
        assert await connection.execute(swap, both) == "UPDATE 2"
    shown = {(await own.reveal()).password for own in (first, sibling)}
    assert len(shown) == 2


@pytest.mark.promise("P-10")
async def test_what_cannot_be_recorded_is_not_shown_and_can_be_shown_later(
    mesh: Mesh, databases: Databases
) -> None:
    own = await program(mesh, await mesh.customer())
    async with unrecorded(mesh, databases, own.tenant):
        with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
            await own.reveal()
        with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
            await own.environment()
    assert (await own.reveal()).password
    assert (await own.environment())[NAME] == own.secret


@asynccontextmanager
async def unrecorded(mesh: Mesh, databases: Databases, tenant: Customer) -> AsyncIterator[None]:
    """Lets the log take no event of this one tenant."""
    constraint = f"CHECK (tenant_id IS DISTINCT FROM '{TenantId(tenant.tenant_id)}')"
    async with superuser(mesh, databases, "auth") as connection:
        await connection.execute(
            f"ALTER TABLE audit_events ADD CONSTRAINT of_no_use {constraint} NOT VALID"
        )
        try:
            yield
        finally:
            await connection.execute("ALTER TABLE audit_events DROP CONSTRAINT of_no_use")
