"""The provisioner's rules, secrets, rows and locks."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.provisioner import operation_store, store
from services.provisioner.domain import (
    DatabaseAddress,
    DatabaseConnection,
    DatabaseRole,
    Deployment,
    DeploymentState,
    OperationKind,
    OperationState,
    Step,
    Wanted,
    deployment_id,
    new_host,
    retry_delay,
)
from services.provisioner.locks import DeploymentLocks
from services.provisioner.master_secret import MasterSecret, MasterSecretError, read_master_secret
from services.provisioner.operation_store import SealedKey
from services.provisioner.queue import WorkQueue
from services.shared.errors import UnavailableError
from services.shared.ids import (
    DeploymentId,
    OperationId,
    TenantId,
    new_deployment_id,
    new_operation_id,
    new_tenant_id,
)
from services.shared.postgres import Connection, Database, open_database
from services.shared.settings import UnusableFileError
from tests.databases import SERVICES, Databases

QUEUE = WorkQueue("provisioner_service")


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    settings = await databases.fresh("provisioner")
    async with open_database(
        settings, "provisioner", SERVICES / "provisioner" / "migrations"
    ) as opened:
        yield opened


@pytest.fixture
def tenant() -> TenantId:
    return new_tenant_id()


async def write(
    connection: Connection, tenant: TenantId, *, request_id: str = "r"
) -> tuple[Deployment, OperationId]:
    wanted = Wanted(request_id, "notes", mcp=False, database=True)
    own = new_deployment_id()
    deployment = await store.insert_deployment(connection, tenant, own, f"{own}.localhost", wanted)
    operation = await operation_store.insert(
        connection,
        deployment,
        new_operation_id(),
        OperationKind.CREATE,
        Step.REGISTERING,
        SealedKey(b"sealed"),
    )
    return deployment, operation.operation_id


@pytest.mark.promise("P-36")
async def test_a_tenants_transaction_sees_no_row_of_another(
    database: Database, tenant: TenantId
) -> None:
    async with database.tenant(tenant) as connection:
        deployment, operation_id = await write(connection, tenant)
    async with database.tenant(new_tenant_id()) as connection:
        assert await store.get_deployment(connection, deployment.deployment_id) is None
        assert await operation_store.get(connection, operation_id) is None
        assert await store.list_deployments(connection, tenant, None, 10) == []
        assert await store.count_deployments(connection, tenant) == 0
        await store.set_state(connection, deployment.deployment_id, DeploymentState.DELETED)
        await operation_store.end(connection, operation_id, OperationState.FAILED, "")
    async with database.service() as connection:
        kept = await store.get_deployment(connection, deployment.deployment_id)
        assert kept == deployment
        assert await operation_store.due(connection, deployment.deployment_id) is not None


@pytest.mark.promise("P-36")
async def test_a_tenants_transaction_writes_no_row_for_another(
    database: Database, tenant: TenantId
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        async with database.tenant(new_tenant_id()) as connection:
            await write(connection, tenant)


@pytest.mark.promise("P-36")
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT sealed_key FROM operations",
        "SELECT payload FROM pgqueuer",
        "DELETE FROM deployments",
        "SELECT mark FROM installation",
    ],
)
async def test_a_tenants_transaction_cannot(
    database: Database, tenant: TenantId, statement: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(tenant) as connection:
            await connection.execute(statement)


async def test_an_operation_that_ends_keeps_no_key(database: Database, tenant: TenantId) -> None:
    async with database.service() as connection:
        _, operation_id = await write(connection, tenant)
        await operation_store.end(connection, operation_id, OperationState.SUCCEEDED, "")
        key = await connection.fetchval(
            "SELECT sealed_key FROM operations WHERE operation_id = $1", operation_id
        )
    assert key is None


async def write_and_fail(database: Database, tenant: TenantId) -> None:
    async with database.tenant(tenant) as connection:
        deployment, _ = await write(connection, tenant)
        await QUEUE.enqueue(connection, deployment.deployment_id)
        raise ZeroDivisionError


async def test_rows_and_queue_entry_are_written_together_or_not_at_all(
    database: Database, tenant: TenantId
) -> None:
    with pytest.raises(ZeroDivisionError):
        await write_and_fail(database, tenant)
    async with database.service() as connection:
        assert await connection.fetchval("SELECT count(*) FROM pgqueuer") == 0
        assert await connection.fetchval("SELECT count(*) FROM deployments") == 0


async def test_work_is_neglected_when_it_is_due_and_no_entry_waits_for_it(
    database: Database, tenant: TenantId
) -> None:
    async with database.service() as connection:
        due, _ = await write(connection, tenant, request_id="due")
        queued, _ = await write(connection, tenant, request_id="queued")
        later, operation_id = await write(connection, tenant, request_id="later")
        done, done_id = await write(connection, tenant, request_id="done")
        await operation_store.set_retry(connection, operation_id, "away", timedelta(minutes=1))
        await operation_store.end(connection, done_id, OperationState.SUCCEEDED, "")
        await QUEUE.enqueue(connection, queued.deployment_id)
    async with database.service() as connection:
        assert await operation_store.neglected_deployments(connection) == [due.deployment_id]
        found = await operation_store.due(connection, later.deployment_id)
        assert found is not None
        assert timedelta(seconds=50) < found.wait <= timedelta(minutes=1)
        assert (found.operation.retries, found.operation.message) == (1, "away")
        assert await operation_store.due(connection, done.deployment_id) is None
        # An entry that was picked by a process that is gone counts for nothing.
        await connection.execute("UPDATE pgqueuer SET status = 'picked'")
        neglected = await operation_store.neglected_deployments(connection)
    assert set(neglected) == {due.deployment_id, queued.deployment_id}


async def test_the_lock_of_a_deployment_has_one_holder_across_processes(
    databases: Databases,
) -> None:
    settings = await databases.fresh("provisioner")
    migrations = SERVICES / "provisioner" / "migrations"
    own = new_deployment_id()
    async with (
        open_database(settings, "provisioner", migrations) as here,
        open_database(settings, "provisioner", migrations) as there,
    ):
        # Two of them, as two replicas have.
        one, two = DeploymentLocks(here), DeploymentLocks(there)
        async with one.hold(own, timedelta(seconds=5)):
            for locks in (one, two):
                with pytest.raises(UnavailableError):
                    async with locks.hold(own, timedelta(seconds=0.1)):
                        pass
            async with two.hold(new_deployment_id(), timedelta(seconds=5)):
                waiting = asyncio.ensure_future(hold_once(two, own))
        await waiting


async def hold_once(locks: DeploymentLocks, own: DeploymentId) -> None:
    async with locks.hold(own, timedelta(seconds=10)):
        pass


async def test_who_loses_the_lock_goes_on_no_longer(database: Database) -> None:
    locks = DeploymentLocks(database)
    own = new_deployment_id()
    going_on = asyncio.Event()

    async def lose() -> None:
        async with locks.hold(own, timedelta(seconds=5)):
            await database.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            await asyncio.sleep(30)
            going_on.set()

    with pytest.raises(UnavailableError):
        await lose()
    assert not going_on.is_set()
    await hold_once(locks, own)


async def test_what_fails_under_the_lock_is_not_taken_for_the_locks_failure(
    database: Database,
) -> None:
    locks = DeploymentLocks(database)
    own = new_deployment_id()
    with pytest.raises(ConnectionRefusedError):
        async with locks.hold(own, timedelta(seconds=5)):
            raise ConnectionRefusedError
    await hold_once(locks, own)


@given(st.text(min_size=1, max_size=63))
def test_every_name_makes_a_host_name(name: str) -> None:
    label, _, domain = new_host(name, "apps.example").partition(".")
    assert domain == "apps.example"
    assert 1 <= len(label) <= 63
    assert label.isascii()
    assert label == label.lower()
    assert not label.startswith("-")
    assert all(part.isalnum() for part in label.split("-"))


def test_two_deployments_of_one_name_have_two_hosts() -> None:
    assert new_host("Café Notes!", "localhost").startswith("cafe-notes-")
    assert new_host("notes", "localhost") != new_host("notes", "localhost")


@pytest.mark.parametrize("wrong", ["", "dep_", "dep_" + "0" * 25, "../etc", "dep_" + "A" * 26])
def test_what_is_no_id_of_a_deployment_is_not_taken_for_one(wrong: str) -> None:
    assert deployment_id(wrong) is None


@given(st.integers(min_value=0, max_value=10_000), st.floats(min_value=0, max_value=1))
def test_the_pause_between_tries_grows_to_its_limit(retries: int, chance: float) -> None:
    delay = retry_delay(retries, chance).total_seconds()
    assert 0.1 <= delay <= 15
    assert retry_delay(retries + 1, chance).total_seconds() >= delay


def test_a_connections_password_is_in_its_uri_and_not_in_its_repr() -> None:
    found = DatabaseConnection(
        DatabaseAddress("127.0.0.1", 20_000), "app", DatabaseRole.READER, "p/w"
    )
    assert found.uri == "postgresql://reader:p%2Fw@127.0.0.1:20000/app"
    assert "p/w" not in repr(found)


def test_each_use_has_a_password_of_its_own() -> None:
    secret = MasterSecret(b"one secret of at least 32 bytes...")
    uses = [("a", "reader", "1"), ("a", "reader", "2"), ("a", "writer", "1"), ("b", "reader", "1")]
    passwords = {secret.password(*use) for use in uses}
    assert len(passwords) == len(uses)
    assert all(len(password) == 43 for password in passwords)
    assert secret.password(*uses[0]) in passwords
    other = MasterSecret(b"another secret of at least 32 bytes")
    assert other.password(*uses[0]) not in passwords


def test_a_sealed_key_opens_for_its_own_operation_alone() -> None:
    secret = MasterSecret(b"one secret of at least 32 bytes...")
    sealed = secret.seal("smcp_key", bound_to="op_1")
    assert b"smcp" not in sealed
    assert secret.open(sealed, bound_to="op_1") == "smcp_key"
    assert secret.seal("smcp_key", bound_to="op_1") != sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    other = MasterSecret(b"another secret of at least 32 bytes")
    for holder, text, bound_to in (
        (secret, sealed, "op_2"),
        (secret, changed, "op_1"),
        (other, sealed, "op_1"),
        (secret, b"", "op_1"),
    ):
        with pytest.raises(MasterSecretError):
            holder.open(text, bound_to=bound_to)


def test_the_master_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "database"
    first = read_master_secret(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert read_master_secret(file).password("x") == first.password("x")
    assert [path.name for path in file.parent.iterdir()] == ["database"]
    file.chmod(0o644)
    with pytest.raises(UnusableFileError, match="everybody"):
        read_master_secret(file)


def test_a_short_master_secret_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "database"
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(UnusableFileError, match="32"):
        read_master_secret(file)


async def test_deployments_of_one_moment_are_paged_without_gap_or_repeat(
    database: Database, tenant: TenantId
) -> None:
    async with database.tenant(tenant) as connection:
        # One transaction: all have one time.
        for number in range(5):
            await write(connection, tenant, request_id=str(number))
        seen: list[DeploymentId] = []
        before: tuple[datetime, DeploymentId] | None = None
        while page := await store.list_deployments(connection, tenant, before, 2):
            seen += [deployment.deployment_id for deployment in page]
            before = (page[-1].create_time.astimezone(UTC), page[-1].deployment_id)
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen, reverse=True)
