"""Databases that sleep when nobody uses them, and wake for whoever comes (P-12)."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import remove_home
from services.provisioner.drivers.protocol import Measured
from services.provisioner.locks import DeploymentLocks
from services.provisioner.sleeping import Sleeping
from services.provisioner.uses import Uses
from services.shared.postgres import open_database
from tests.beds import IDLE_SECONDS, NEVER_SECONDS, Bed, a_bed, given, psql
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Mesh, bearer

pytestmark = pytest.mark.promise("P-12")

LOOK_SECONDS = 0.1
MEMBERS = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
SOME_DAY = datetime(2026, 1, 1, tzinfo=UTC)
MIGRATIONS = Path(__file__).parents[2] / "services/provisioner/migrations"
MARK = "SELECT set_config('bed.mark', 'made', false)"
SSL_REQUEST = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")


@pytest.fixture(scope="module")
async def mesh(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """A mesh of its own, whose provisioner looks often, and whose sweep sees what is ended."""
    overrides = {"provisioner": {"look_seconds": LOOK_SECONDS, "sweep_seconds": 0.5}}
    home = None
    try:
        async with start_mesh(overrides, MEMBERS) as running:
            home = postgres_process.reachable_home(running.home)
            yield running
    finally:
        if home is not None:
            await remove_home(home)


@pytest.fixture(scope="module")
async def bed(mesh: Mesh) -> Bed:
    """One database for all tests; each leaves it awake or asleep as it likes."""
    return await a_bed(mesh)


@pytest.fixture(scope="module")
async def neighbour(mesh: Mesh) -> Bed:
    """Another, which shows that time enough has passed to fall asleep."""
    return await a_bed(mesh)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def packet(code: int, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + code.to_bytes(4, "big") + body


def startup(user: str, database: str) -> bytes:
    return packet(196_608, f"user\0{user}\0database\0{database}\0\0".encode())


async def scan(port: int, said: bytes) -> bytes:
    """Returns what is answered to `said` before the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


async def test_psql_works_on_a_sleeping_database_by_the_same_string(bed: Bed) -> None:
    assert (await psql(bed.writer, "-c", "CREATE TABLE IF NOT EXISTS kept (n int)"))[0] == 0
    assert (await psql(bed.writer, "-c", "INSERT INTO kept VALUES (42)"))[0] == 0
    await bed.fall_asleep()
    assert await psql(bed.reader, "-c", "SELECT DISTINCT n FROM kept") == (0, "42\n", "")
    assert await bed.state() == "ready"


async def test_many_at_once_wake_a_sleeping_database_once(bed: Bed) -> None:
    await bed.fall_asleep()

    async def ask(uri: str) -> int:
        session = await asyncpg.connect(uri, timeout=PATIENCE_SECONDS)
        try:
            return int(await session.fetchval("SELECT 6 * 7"))
        finally:
            await session.close()

    # What the roles' own limits of connections allow: ten readers and eight writers.
    answers = await asyncio.gather(
        *(ask(bed.reader) for _ in range(10)), *(ask(bed.writer) for _ in range(8))
    )
    assert answers == [42] * 18


async def test_an_open_transaction_keeps_it_awake_and_an_idle_session_does_not(
    bed: Bed, neighbour: Bed
) -> None:
    session = await asyncpg.connect(bed.writer)
    pid = bed.pid
    async with session.transaction():
        await session.execute("SELECT 1")
        await bed.sleeps_after(IDLE_SECONDS)
        await neighbour.wake_and_fall_asleep()
        await neighbour.wake_and_fall_asleep()
        assert await session.fetchval("SELECT 1") == 1
        assert bed.pid == pid
    await bed.asleep()
    with pytest.raises((asyncpg.AdminShutdownError, asyncpg.InterfaceError, OSError)):
        await session.fetchval("SELECT 1")
    await session.close()


class Busy:
    """A double of the driver: a server that says how often it was used, and ends when told."""

    def __init__(self) -> None:
        self.statements = 0
        self.used = True
        self.slept: list[str] = []

    async def measure(self, deployment: str) -> Measured:
        self.statements += self.used
        return Measured(0, over_quota=False, busy=False, statements=self.statements)

    async def sleep(self, deployment: str) -> None:
        self.slept.append(deployment)


async def test_one_that_is_used_between_two_looks_does_not_fall_asleep(bed: Bed) -> None:
    assert (await psql(bed.reader, "-c", "SELECT 1"))[0] == 0
    settings: Any = bed.mesh.settings["provisioner"]
    await bed.mesh.stop("provisioner")
    try:
        # Every look comes later than that.
        await bed.sleeps_after(0.01)
        async with open_database(settings, "provisioner", MIGRATIONS) as database:
            driver: Any = Busy()
            sleeping = Sleeping(database, DeploymentLocks(database), driver, Uses(), 60)
            for _ in range(4):
                await asyncio.sleep(0.02)
                await sleeping.look()
                assert driver.slept == []
            driver.used = False
            await asyncio.sleep(0.02)
            await sleeping.look()
            assert driver.slept == [bed.deployment_id]
            assert await bed.state() == "sleeping"
    finally:
        await bed.sleeps_after(NEVER_SECONDS)
        await bed.sql(
            "UPDATE resources SET state = 'ready' WHERE deployment_id = $1 AND kind = 'database'",
            bed.deployment_id,
        )
        await bed.mesh.start("provisioner")


async def test_a_long_statement_keeps_it_awake_and_can_be_cancelled(
    bed: Bed, neighbour: Bed
) -> None:
    await bed.sleeps_after(NEVER_SECONDS)
    session = await asyncpg.connect(bed.reader)
    pid = bed.pid
    statement = asyncio.ensure_future(session.execute(f"SELECT pg_sleep(28); {MARK}"))
    await bed.sleeps_after(IDLE_SECONDS)
    await neighbour.wake_and_fall_asleep()
    await neighbour.wake_and_fall_asleep()
    await bed.sleeps_after(NEVER_SECONDS)
    assert bed.pid == pid
    assert not statement.done()
    # The driver opens a connection to the same port, which carries a CancelRequest.
    statement.cancel()
    await asyncio.wait([statement])
    # What comes after a statement that was cancelled is not done.
    assert await session.fetchval("SELECT current_setting('bed.mark', true)") is None
    await session.close()


async def test_an_agent_finds_its_database_whether_it_slept_or_not(bed: Bed) -> None:
    async with bed.agent() as agent:
        for number in range(2):
            await bed.fall_asleep()
            sql = f"CREATE TABLE made_{number} (n int)"
            made = await agent.call_tool("execute", {"sql": sql})
            assert not made.is_error, made
            for tool, arguments in (("query", {"sql": "SELECT 1 AS n"}), ("list_tables", {})):
                await agent.call_tool("query", {"sql": "SELECT 1 AS n"})
                await bed.fall_asleep()
                answer = await agent.call_tool(tool, arguments)
                assert not answer.is_error, answer
                assert await bed.state() == "ready"


async def test_whoever_says_nothing_of_use_wakes_nothing(bed: Bed) -> None:
    await bed.fall_asleep()
    for said in (
        b"",
        SSL_REQUEST,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        packet(80_877_102, b"\0" * 8),
        startup("reader_a", "postgres"),
        startup("postgres", "app"),
        packet(196_608, b"user\0reader_a"),
    ):
        await scan(bed.port, said)
    assert bed.pid is None
    assert await bed.state() == "sleeping"
    code, _, complaint = await psql(bed.reader.replace("/app", "/other"), "-c", "SELECT 1")
    assert (code, "there is no such database here" in complaint) == (2, True)
    assert bed.pid is None


async def test_much_goes_both_ways_whole(bed: Bed) -> None:
    await bed.sleeps_after(NEVER_SECONDS)
    rows = b"".join(b"%d\t%s\n" % (number, b"x" * 100) for number in range(200_000))
    assert len(rows) > 20_000_000
    made = "CREATE TABLE much (n int, body text)"
    code, _, complaint = await psql(bed.writer, "-c", made, "-c", "COPY much FROM STDIN", text=rows)
    assert (code, complaint) == (0, "")
    code, said, _ = await psql(bed.writer, "-c", "COPY much TO STDOUT")
    assert code == 0
    assert said.encode() == rows
    assert (await psql(bed.writer, "-c", "DROP TABLE much"))[0] == 0


async def test_a_suspended_one_says_so_and_sleeps_on(bed: Bed) -> None:
    await bed.fall_asleep()
    states = (
        "UPDATE deployments SET state = $2, suspended_at = $3::timestamptz WHERE deployment_id = $1"
    )
    await bed.sql(states, bed.deployment_id, "suspended", SOME_DAY)
    try:
        code, _, complaint = await psql(bed.reader, "-c", "SELECT 1")
        assert (code, "the deployment is suspended" in complaint) == (2, True)
        with pytest.raises(asyncpg.CannotConnectNowError, match="suspended"):
            await asyncpg.connect(bed.reader, timeout=PATIENCE_SECONDS)
        assert bed.pid is None
    finally:
        await bed.sql(states, bed.deployment_id, "ready", None)


async def test_the_string_is_good_after_a_restart_asleep_or_awake(bed: Bed) -> None:
    for asleep in (True, False):
        if asleep:
            await bed.fall_asleep()
        await bed.mesh.stop("provisioner")
        try:
            with pytest.raises(OSError, match=r"refused|reset|call failed"):
                await asyncpg.connect(bed.reader, timeout=PATIENCE_SECONDS)
        finally:
            await bed.mesh.start("provisioner")
        assert (bed.pid is None) is asleep
        assert await psql(bed.reader, "-c", "SELECT 1") == (0, "1\n", "")
    again = await given(bed.mesh, bed.owner, bed.deployment_id, pb2.DATABASE_ROLE_READER)
    assert again.uri == bed.reader


async def test_a_killed_one_comes_back_and_one_that_sleeps_does_not(
    bed: Bed, neighbour: Bed
) -> None:
    await neighbour.wake_and_fall_asleep()
    assert (await psql(bed.reader, "-c", "SELECT 1"))[0] == 0
    killed = bed.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: bed.pid not in (None, killed))
    assert neighbour.pid is None
    assert await psql(bed.reader, "-c", "SELECT DISTINCT n FROM kept") == (0, "42\n", "")


async def test_a_lost_one_is_reported_and_not_made_anew(neighbour: Bed) -> None:
    await neighbour.wake_and_fall_asleep()
    away = neighbour.directory.with_name("taken-away")
    neighbour.directory.rename(away)
    try:
        code, _, complaint = await psql(neighbour.reader, "-c", "SELECT 1")
        assert (code, "not ready" in complaint) == (2, True)
        assert await neighbour.state() == "lost"
        assert not neighbour.directory.exists()
    finally:
        away.rename(neighbour.directory)


async def test_wake_database_starts_it(bed: Bed) -> None:
    await bed.fall_asleep()
    stub = bed.mesh.stub(ProvisionerServiceStub, "provisioner")
    request = pb2.WakeDatabaseRequest(deployment_id=bed.deployment_id)
    await stub.WakeDatabase(request, metadata=bearer(bed.owner.key), timeout=PATIENCE_SECONDS)
    assert bed.pid is not None
    assert await bed.state() == "ready"
