"""Two logins take turns at a database: what opens it, when, and for whom they act (P-02)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers import guard, postgres_process
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.protocol import Measured
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_deployment_id
from tests.local_databases import open_session, wanted

READER, WRITER = DatabaseRole.READER, DatabaseRole.WRITER
PATIENCE_SECONDS = 30
ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Rotated:
    """One deployment's database, whose passwords change."""

    def __init__(self, driver: LocalDriver, address: DatabaseAddress, own: DeploymentId) -> None:
        self.driver = driver
        self.address = address
        self.deployment = own
        self.opened: list[Session] = []

    async def come_in(self, generation: int, role: DatabaseRole = WRITER) -> Session:
        login = self.driver.login(self.deployment, role, generation)
        self.opened.append(await open_session(self.address, login))
        return self.opened[-1]

    async def opens(self, generation: int) -> bool:
        for role in DatabaseRole:
            try:
                await self.come_in(generation, role)
            except asyncpg.InvalidPasswordError:
                return False
        return True


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = postgres_process.reachable_home(tmp_path_factory.mktemp("rotated"))
    try:
        yield folder
    finally:
        await remove_home(folder)


@pytest.fixture(scope="module")
def driver(home: Path) -> LocalDriver:
    secret = MasterSecret(b"a secret that guards nothing at all")
    return LocalDriver(home, secret, PortRange(20_000, 31_999), 30_000)


@pytest.fixture
async def rotated(driver: LocalDriver) -> AsyncIterator[Rotated]:
    deployment = new_deployment_id()
    one = Rotated(driver, await driver.ensure(wanted(deployment)), deployment)
    yield one
    for session in one.opened:
        with contextlib.suppress(*ENDED):
            await session.close(timeout=2)
    await driver.destroy(deployment)


@pytest.mark.promise("P-02")
async def test_passwords_overlap_then_the_earlier_opens_nothing(rotated: Rotated) -> None:
    before = await rotated.come_in(1)
    assert not await rotated.opens(2)
    await rotated.driver.open_generation(rotated.deployment, 2)
    assert await rotated.opens(1)
    assert await rotated.opens(2)
    after = await rotated.come_in(2)
    await rotated.driver.close_generation(rotated.deployment, 1)
    with pytest.raises(ENDED):
        await before.fetchval("SELECT 1")
    assert await after.fetchval("SELECT 1") == 1
    assert not await rotated.opens(1)
    # The first one's login again, by another password.
    await rotated.driver.open_generation(rotated.deployment, 3)
    assert await rotated.opens(3)
    assert await rotated.opens(2)
    assert not await rotated.opens(1)


@pytest.mark.promise("P-02")
async def test_each_step_of_a_rotation_can_be_repeated(rotated: Rotated) -> None:
    for _ in range(2):
        await rotated.driver.open_generation(rotated.deployment, 2)
    kept = await rotated.come_in(2)
    for _ in range(2):
        await rotated.driver.close_generation(rotated.deployment, 1)
    await rotated.driver.close_generation(rotated.deployment, 7)
    assert await kept.fetchval("SELECT 1") == 1
    again = wanted(rotated.deployment, rotated.address.port, generations=(2,))
    assert await rotated.driver.ensure(again) == rotated.address
    assert await kept.fetchval("SELECT 1") == 1


@pytest.mark.promise("P-02")
async def test_ensuring_ends_what_a_rotation_that_died_left_open(rotated: Rotated) -> None:
    await rotated.driver.open_generation(rotated.deployment, 2)
    intruder = await rotated.come_in(2)
    await rotated.driver.ensure(wanted(rotated.deployment, rotated.address.port))
    with pytest.raises(ENDED):
        await intruder.fetchval("SELECT 1")
    assert not await rotated.opens(2)
    assert await rotated.opens(1)


@pytest.mark.promise("P-02")
async def test_a_rotation_of_what_sleeps_is_made_up_for_when_it_wakes(rotated: Rotated) -> None:
    await rotated.driver.sleep(rotated.deployment)
    await rotated.driver.open_generation(rotated.deployment, 2)
    await rotated.driver.close_generation(rotated.deployment, 1)
    assert await rotated.driver.exists(rotated.deployment) is None
    both = wanted(rotated.deployment, rotated.address.port, generations=(1, 2))
    rotated.address = await rotated.driver.ensure(both)
    assert await rotated.opens(1)
    assert await rotated.opens(2)


@pytest.mark.promise("P-02")
async def test_no_open_transaction_holds_a_rotation_up(rotated: Rotated) -> None:
    holder = await rotated.come_in(1)
    await holder.execute("SET ROLE NONE; BEGIN; ALTER ROLE writer_a PASSWORD 'mine'")
    await rotated.driver.open_generation(rotated.deployment, 2)
    await rotated.driver.close_generation(rotated.deployment, 1)
    with pytest.raises(ENDED):
        await holder.execute("COMMIT")
    assert not await rotated.opens(1)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=rotated.address.host,
            port=rotated.address.port,
            user="writer_a",
            password="mine",
            database="app",
            ssl=False,
        )


@pytest.mark.promise("P-02")
async def test_no_login_of_one_deployment_opens_another(
    rotated: Rotated, driver: LocalDriver
) -> None:
    other = new_deployment_id()
    address = await driver.ensure(wanted(other, generations=(1, 2)))
    for role in DatabaseRole:
        for generation in (1, 2):
            theirs = driver.login(rotated.deployment, role, generation)
            with pytest.raises(asyncpg.InvalidPasswordError):
                await open_session(address, theirs)
    await driver.destroy(other)


GIVEN_UP = {
    "everything of a session": "DISCARD ALL",
    "its role": "SET ROLE NONE",
    "its default": "RESET ROLE",
    "whom it passes as": "RESET SESSION AUTHORIZATION",
}
THINGS = """
    CREATE TABLE made (a int PRIMARY KEY);
    CREATE TABLE chosen AS SELECT 1 AS a;
    SELECT 1 AS a INTO selected;
    CREATE SEQUENCE counted;
    CREATE VIEW viewed AS SELECT 1 AS a;
    CREATE MATERIALIZED VIEW kept AS SELECT 1 AS a;
    CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1';
    CREATE TYPE kind AS ENUM ('a');
    DO $$ BEGIN EXECUTE 'CREATE TABLE done (a int)'; END $$;
    CREATE FUNCTION sets() RETURNS void LANGUAGE plpgsql SET role = none AS
        $$ BEGIN CREATE TABLE set_aside (a int); END $$;
    SELECT sets();
"""
OWNED_BY_A_LOGIN = """
    SELECT count(*) FROM pg_shdepend JOIN pg_roles ON pg_roles.oid = refobjid
    WHERE deptype = 'o' AND rolname LIKE '%\\_%' AND rolname NOT LIKE 'pg\\_%'
        AND classid <> 'pg_default_acl'::regclass
"""


@pytest.mark.promise("P-02")
@pytest.mark.parametrize("way", GIVEN_UP)
async def test_a_login_makes_nothing_that_is_its_own_alone(rotated: Rotated, way: str) -> None:
    await rotated.driver.open_generation(rotated.deployment, 2)
    session = await rotated.come_in(1)
    await session.execute(GIVEN_UP[way])
    # What no trigger sees: it is handed over within the guard's next rounds.
    await session.execute("SELECT lo_create(0)")
    await session.execute("EXPLAIN ANALYZE CREATE TABLE explained AS SELECT 1 AS a")
    await session.execute(THINGS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await session.fetchval(OWNED_BY_A_LOGIN):
            await asyncio.sleep(0.05)
    await rotated.driver.close_generation(rotated.deployment, 1)
    reader = await rotated.come_in(2, READER)
    tables = ("made", "chosen", "selected", "done", "set_aside", "explained")
    for table in (*tables, "viewed", "kept"):
        assert await reader.fetchval(f"SELECT count(*) >= 0 FROM {table}")
    writer = await rotated.come_in(2)
    await writer.execute(f"DROP TABLE {', '.join(tables)}; DROP TYPE kind")
    await writer.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


@pytest.mark.promise("P-02")
async def test_every_session_acts_as_its_role(rotated: Rotated) -> None:
    await rotated.driver.open_generation(rotated.deployment, 2)
    for generation, turn in ((1, "a"), (2, "b")):
        for role in DatabaseRole:
            session = await rotated.come_in(generation, role)
            for state in ("RESET ALL", "DISCARD ALL", "RESET ROLE"):
                await session.execute(state)
                acting = await session.fetchrow("SELECT session_user, current_user")
                assert tuple(acting or ()) == (f"{role.value}_{turn}", role.value)


async def quiet(rotated: Rotated) -> Measured:
    """Returns the measurement after which nothing happens for some of the guard's rounds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            first = await rotated.driver.measure(rotated.deployment)
            await asyncio.sleep(2.5 * guard.PAUSE_MILLISECONDS / 1000)
            second = await rotated.driver.measure(rotated.deployment)
            assert first is not None
            assert second is not None
            if first.statements == second.statements:
                return second


async def test_measuring_sees_tenants_alone(rotated: Rotated) -> None:
    first = await quiet(rotated)
    assert not first.busy
    session = await rotated.come_in(1, READER)
    await session.execute("BEGIN; SELECT 1")
    busy = await rotated.driver.measure(rotated.deployment)
    assert busy is not None
    assert busy.busy
    assert busy.statements > first.statements
    await session.execute("ROLLBACK")
    idle = await rotated.driver.measure(rotated.deployment)
    assert idle is not None
    assert not idle.busy
    assert idle.statements > busy.statements
