"""Whoever changes the audit log is refused, and whoever has the power to do it is found out."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cli.audit_log import read_lines
from cli.chain import ChainCheck, Fault, Head, event_hash
from services.auth.settings import Settings
from services.shared.ids import TenantId
from services.shared.postgres import Database, open_database
from services.shared.settings import PostgresSettings
from tests.audit_logs import verified, whole_log
from tests.contracts import ROOT
from tests.databases import SERVICES, Databases
from tests.mesh import Customer, Mesh, fresh_id

MIGRATIONS = SERVICES / "auth" / "migrations"
EVENTS = 8


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    return settings


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    """A customer with a few events in its log."""
    customer = await mesh.customer()
    for _ in range(EVENTS):
        await mesh.key(customer)
    return customer


@pytest.fixture
async def intruder(
    mesh: Mesh, databases: Databases
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """Whoever runs the database: its superuser, the triggers switched off."""
    connection = await databases.postgres.connect(settings_of(mesh).postgres_database)
    # As a replica would apply changes: no trigger of a table fires.
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


@pytest.fixture
async def database(mesh: Mesh) -> AsyncIterator[Database]:
    """auth's own database, as auth itself opens it."""
    async with open_database(settings_of(mesh), "auth", MIGRATIONS) as opened:
        yield opened


async def faults(mesh: Mesh, customer: Customer, *expected: Head) -> list[tuple[int, Fault]]:
    check = await verified(mesh, customer, *expected)
    return [(problem.sequence, problem.fault) for problem in check.problems]


async def test_the_log_of_a_customer_is_a_whole_chain(mesh: Mesh, customer: Customer) -> None:
    events, head = await whole_log(mesh, customer)
    assert [event.sequence for event in events] == list(range(1, EVENTS + 1))
    assert events[0].previous_hash == bytes(32)
    assert head == Head(EVENTS, events[-1].hash)
    assert all(event_hash(event) == event.hash for event in events)
    assert await faults(mesh, customer) == []


async def test_a_changed_row_is_found(mesh: Mesh, customer: Customer, intruder: Any) -> None:
    for change in (
        "key_id = 'key_x'",
        "at = at + interval '1 microsecond'",
        "resources = '{}' || jsonb_build_object('key', 'key_x')",
        "reason = 'because'",
    ):
        await intruder.execute(
            f"UPDATE audit_events SET {change} WHERE tenant_id = $1 AND sequence = 3",
            customer.tenant_id,
        )
        assert (3, Fault.CHANGED) in await faults(mesh, customer)


async def test_a_changed_row_with_a_fitting_hash_is_found_by_the_next(
    mesh: Mesh, customer: Customer, intruder: Any
) -> None:
    await intruder.execute(
        "UPDATE audit_events SET peer = 'nobody' WHERE tenant_id = $1 AND sequence = 3",
        customer.tenant_id,
    )
    await intruder.execute(
        "UPDATE audit_events e SET hash = audit_hash(e) WHERE tenant_id = $1 AND sequence = 3",
        customer.tenant_id,
    )
    assert await faults(mesh, customer) == [(4, Fault.UNLINKED)]


async def test_a_dropped_row_is_found(mesh: Mesh, customer: Customer, intruder: Any) -> None:
    await intruder.execute(
        "DELETE FROM audit_events WHERE tenant_id = $1 AND sequence = 3", customer.tenant_id
    )
    assert await faults(mesh, customer) == [(4, Fault.MISSING)]


async def test_two_swapped_rows_are_found(mesh: Mesh, customer: Customer, intruder: Any) -> None:
    await intruder.execute(
        "UPDATE audit_events SET sequence = CASE sequence WHEN 3 THEN -4 ELSE -3 END"
        " WHERE tenant_id = $1 AND sequence IN (3, 4)",
        customer.tenant_id,
    )
    await intruder.execute(
        "UPDATE audit_events SET sequence = -sequence WHERE tenant_id = $1 AND sequence < 0",
        customer.tenant_id,
    )
    found = await faults(mesh, customer)
    assert {(3, Fault.CHANGED), (4, Fault.CHANGED)} <= set(found)


async def test_a_cut_end_is_found_by_the_head_and_without_it_by_a_kept_one(
    mesh: Mesh, customer: Customer, intruder: Any
) -> None:
    _, kept = await whole_log(mesh, customer)
    await intruder.execute(
        "DELETE FROM audit_events WHERE tenant_id = $1 AND sequence > 6", customer.tenant_id
    )
    assert await faults(mesh, customer) == [(EVENTS, Fault.TRUNCATED)]
    await intruder.execute(
        "UPDATE audit_chains c SET sequence = 6, hash = e.hash FROM audit_events e"
        " WHERE c.tenant_id = $1 AND e.tenant_id = $1 AND e.sequence = 6",
        customer.tenant_id,
    )
    assert await faults(mesh, customer) == []
    assert await faults(mesh, customer, kept) == [(EVENTS, Fault.TRUNCATED)]
    for _ in range(2):
        await mesh.key(customer)
    assert await faults(mesh, customer) == []
    assert await faults(mesh, customer, kept) == [(EVENTS, Fault.OTHER_HEAD)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_events SET key_id = 'key_x'",
        "UPDATE audit_events SET key_id = 'key_x' WHERE false",
        "DELETE FROM audit_events",
        "TRUNCATE audit_events",
        "TRUNCATE audit_events, audit_chains",
        "UPDATE audit_chains SET sequence = 0",
        "DELETE FROM audit_chains",
        "INSERT INTO audit_chains (tenant_id, sequence) VALUES (NULL, 9)",
        "TRUNCATE audit_chains",
    ],
)
async def test_nobody_changes_the_log_neither_a_role_nor_the_owner_nor_the_superuser(
    databases: Databases, database: Database, mesh: Mesh, customer: Customer, statement: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(TenantId(customer.tenant_id)) as connection:
            await connection.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.service() as connection:
            await connection.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        await database.pool.execute(statement)
    superuser = await databases.postgres.connect(settings_of(mesh).postgres_database)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await superuser.execute(statement)
    finally:
        await superuser.close()
    assert await faults(mesh, customer) == []


@pytest.mark.parametrize("column", ["sequence", "previous_hash", "hash"])
async def test_who_may_add_an_event_cannot_choose_its_place(
    database: Database, customer: Customer, column: str
) -> None:
    value = "1" if column == "sequence" else "'\\x00'"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(TenantId(customer.tenant_id)) as connection:
            await connection.execute(
                f"INSERT INTO audit_events (event_id, tenant_id, key_id, peer, method, resources,"
                f" trace_id, {column}) VALUES ('aud_x', $1, 'k', 'p', 'm', '{{}}', '', {value})",
                customer.tenant_id,
            )


@pytest.mark.promise("P-36")
async def test_a_tenants_transaction_neither_sees_nor_extends_the_chain_of_another(
    mesh: Mesh, database: Database, customer: Customer
) -> None:
    other = await mesh.customer()
    async with database.tenant(TenantId(other.tenant_id)) as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit_chains") == 0
        assert await connection.fetchval("SELECT count(*) FROM audit_events") == 0
    for tenant_id in (customer.tenant_id, None):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(TenantId(other.tenant_id)) as connection:
                await connection.execute(
                    "INSERT INTO audit_events (event_id, tenant_id, key_id, peer, method,"
                    " resources, trace_id) VALUES ('aud_x', $1, 'k', 'p', 'm', '{}', '')",
                    tenant_id,
                )
    # The owner, outside of its two kinds of transaction, sees no head either.
    assert await database.pool.fetchval("SELECT count(*) FROM audit_chains") == 0
    assert await faults(mesh, customer) == []


async def test_a_head_of_ones_own_making_is_not_taken_for_the_real_one(
    mesh: Mesh, database: Database, customer: Customer
) -> None:
    async with database.tenant(TenantId(customer.tenant_id)) as connection:
        # A temporary table comes before one of the same name, unless the path says otherwise.
        await connection.execute(
            "CREATE TEMP TABLE audit_chains (chain text, tenant_id text, sequence bigint,"
            " hash bytea, at timestamptz) ON COMMIT DROP"
        )
        await connection.execute("GRANT ALL ON pg_temp.audit_chains TO PUBLIC")
        await connection.execute(
            "INSERT INTO pg_temp.audit_chains VALUES ($1, $1, 1, '\\x00', now())",
            customer.tenant_id,
        )
        await connection.execute(
            "INSERT INTO audit_events (event_id, tenant_id, key_id, peer, method, resources,"
            " trace_id) VALUES ('aud_x', $1, 'k', 'p', 'm', '{}', '')",
            customer.tenant_id,
        )
    assert (await whole_log(mesh, customer))[1].sequence == EVENTS + 1
    assert await faults(mesh, customer) == []


async def test_a_time_that_runs_back_does_not_take_the_log_with_it(
    mesh: Mesh, customer: Customer, intruder: Any
) -> None:
    await intruder.execute(
        "UPDATE audit_chains SET at = '2999-01-01' WHERE tenant_id = $1", customer.tenant_id
    )
    await mesh.key(customer)
    events, _ = await whole_log(mesh, customer)
    assert events[-1].time.ToJsonString() == "2999-01-01T00:00:00Z"
    assert await faults(mesh, customer) == []


async def test_many_calls_of_two_tenants_at_once_make_two_whole_chains(mesh: Mesh) -> None:
    customers = [await mesh.customer(), await mesh.customer()]
    each = 60
    await asyncio.gather(*(mesh.key(customer) for customer in customers * each))
    for customer in customers:
        events, head = await whole_log(mesh, customer)
        assert (len(events), head.sequence) == (each, each)
        assert await faults(mesh, customer) == []
        times = [event.time.ToNanoseconds() for event in events]
        assert times == sorted(times)


async def test_several_writers_of_one_chain_leave_no_gap_when_some_of_them_fail(
    mesh: Mesh, database: Database
) -> None:
    customer = await mesh.customer()

    async def write(number: int) -> None:
        async with database.tenant(TenantId(customer.tenant_id)) as connection:
            await connection.execute(
                "INSERT INTO audit_events (event_id, tenant_id, key_id, peer, method, resources,"
                " trace_id) VALUES ($1, $2, 'k', 'p', 'm', '{}', '')",
                f"aud_{fresh_id()}",
                customer.tenant_id,
            )
            if number % 3 == 0:
                raise ConnectionAbortedError

    outcomes = await asyncio.gather(
        *(write(number) for number in range(30)), return_exceptions=True
    )
    written = sum(outcome is None for outcome in outcomes)
    assert 0 < written < 30
    assert (await whole_log(mesh, customer))[1].sequence == written
    assert await faults(mesh, customer) == []


async def test_events_of_a_database_that_ran_before_are_chained_by_the_migration(
    mesh: Mesh, databases: Databases, tmp_path: Any
) -> None:
    settings = await without_tables(databases)
    before = tmp_path / "before"
    before.mkdir()
    for file in sorted(MIGRATIONS.glob("000[12]_*.sql")):
        (before / file.name).write_text(file.read_text())
    async with (
        open_database(settings, "auth", before) as database,
        database.service() as connection,
    ):
        await connection.execute(
            "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
            " SELECT 'ten_' || n, 'n', 'free', 'k', n::text FROM generate_series(1, 2) n"
        )
        await connection.execute(
            "INSERT INTO audit_events (event_id, tenant_id, at, key_id, peer, method, resources,"
            " trace_id) SELECT 'aud_' || n, CASE n % 3 WHEN 0 THEN NULL ELSE 'ten_' || n % 3 END,"
            """ now() - n * interval '1.000001 s', 'k', 'edge', 'm', '{"b": "é", "a": ""}', ''"""
            " FROM generate_series(1, 30) n"
        )
    async with open_database(settings, "auth", MIGRATIONS) as database, database.service() as found:
        rows = await found.fetch(
            """
            SELECT c.chain, c.sequence, count(*) AS events,
                   bool_and(e.hash = audit_hash(e)) AS fits,
                   bool_or(c.sequence = e.sequence AND c.hash = e.hash) AS head,
                   array_agg(e.at ORDER BY e.sequence) AS times
            FROM audit_chains c JOIN audit_events e ON e.tenant_id IS NOT DISTINCT FROM c.tenant_id
            GROUP BY c.chain, c.sequence ORDER BY c.chain
            """
        )
        assert [row["chain"] for row in rows] == ["operator", "ten_1", "ten_2"]
        for row in rows:
            assert (row["sequence"], row["events"], row["head"], row["fits"]) == (
                10,
                10,
                True,
                True,
            )
            assert row["times"] == sorted(row["times"])


async def without_tables(databases: Databases) -> PostgresSettings:
    """Returns auth's access to a database in which nothing was made yet."""
    settings = await databases.fresh("auth")
    connection = await databases.postgres.connect(settings.postgres_database)
    try:
        await connection.execute("DROP SCHEMA public CASCADE")
        await connection.execute("CREATE SCHEMA public AUTHORIZATION auth")
        await connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
    finally:
        await connection.close()
    return settings


async def test_the_operators_chain_is_exported_as_documented_and_found_whole(
    mesh: Mesh, intruder: Any, database: Database, tmp_path: Path
) -> None:
    await mesh.customer()
    text = await asyncio.to_thread((ROOT / "docs" / "audit.md").read_text)
    found = re.search(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    rows = await intruder.fetch(found[1])
    # Who owns the tables is not let past row-level security.
    assert await database.pool.fetch(found[1]) == []
    export = tmp_path / "operator.jsonl"
    await asyncio.to_thread(export.write_text, "".join(f"{row[0]}\n" for row in rows))
    check = ChainCheck().take_all(read_lines(export, print))
    assert (check.events, check.problems) == (len(rows), [])
    assert check.last.sequence == len(rows) > 0
