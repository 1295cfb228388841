"""What every kind of database must do, on a real one of each."""

import asyncio
import contextlib
import stat
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import reachable_home
from services.provisioner.drivers.protocol import (
    DamagedError,
    DatabaseDriver,
    DriverError,
    UnsupportedError,
)
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_backup_id, new_deployment_id
from tests.cnpg_drivers import open_cluster
from tests.local_databases import open_session, wanted

READER, WRITER = DatabaseRole.READER, DatabaseRole.WRITER
CAP_MILLISECONDS = 30_000
BACKUP = new_backup_id()
PATIENCE_SECONDS = 45

# The drivers that say that they do; of the others is asked that they say so.
BACKING_UP = pytest.mark.parametrize("driver", ["local"], indirect=True)

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(scope="module", params=["local", "cnpg"])
async def driver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DatabaseDriver]:
    """A driver of each kind; a further one needs a line of its own here, and nothing else."""
    opened = {"local": open_local, "cnpg": open_cnpg}[request.param]
    async with opened(tmp_path_factory.mktemp("databases")) as driver:
        yield driver


@contextlib.asynccontextmanager
async def open_local(folder: Path) -> AsyncIterator[DatabaseDriver]:
    home = reachable_home(folder)
    secret = MasterSecret(b"a secret that guards nothing at all")
    try:
        yield LocalDriver(home, secret, PortRange(20_000, 31_999), CAP_MILLISECONDS)
    finally:
        await remove_home(home)


@contextlib.asynccontextmanager
async def open_cnpg(folder: Path) -> AsyncIterator[DatabaseDriver]:
    async with open_cluster(folder) as cluster:
        yield cluster.driver


@pytest.fixture
async def deployment(driver: DatabaseDriver) -> AsyncIterator[DeploymentId]:
    """A deployment without a database as yet."""
    fresh = new_deployment_id()
    yield fresh
    await driver.destroy(fresh)


@pytest.fixture
async def other(driver: DatabaseDriver) -> AsyncIterator[DeploymentId]:
    """Another one."""
    fresh = new_deployment_id()
    yield fresh
    await driver.destroy(fresh)


@pytest.fixture
async def made(driver: DatabaseDriver, deployment: DeploymentId) -> DeploymentId:
    """A deployment with a database, which holds a table of one row."""
    await run(driver, deployment, "CREATE TABLE marks AS SELECT 1 AS mark")
    return deployment


@contextlib.asynccontextmanager
async def session(
    driver: DatabaseDriver,
    deployment: DeploymentId,
    role: DatabaseRole = WRITER,
    generation: int = 1,
) -> AsyncIterator[Session]:
    """A session at the database, which has to be running or be made."""
    address = await driver.exists(deployment) or await driver.ensure(wanted(deployment))
    opened = await open_session(address, driver.login(deployment, role, generation))
    try:
        yield opened
    finally:
        opened.terminate()


async def run(driver: DatabaseDriver, deployment: DeploymentId, statement: str) -> None:
    async with session(driver, deployment) as writer:
        await writer.execute(statement)


async def marks(driver: DatabaseDriver, deployment: DeploymentId) -> list[int]:
    async with session(driver, deployment, READER) as reader:
        return [row["mark"] for row in await reader.fetch("SELECT mark FROM marks ORDER BY 1")]


async def opens(
    driver: DatabaseDriver, address: DatabaseAddress, of: DeploymentId, generation: int = 1
) -> bool:
    """Whether a password opens a database."""
    try:
        (await open_session(address, driver.login(of, WRITER, generation))).terminate()
    except asyncpg.InvalidPasswordError:
        return False
    return True


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def nothing_is_left(driver: DatabaseDriver, deployment: DeploymentId) -> bool:
    return (
        await driver.exists(deployment) is None
        and not await driver.kept(deployment)
        and deployment not in await driver.found()
    )


async def test_what_is_not_there_can_be_asked_for_and_ended(
    driver: DatabaseDriver, deployment: DeploymentId, other: DeploymentId, tmp_path: Path
) -> None:
    assert await driver.exists(deployment) is None
    assert await driver.measure(deployment) is None
    await driver.sleep(deployment)
    await driver.destroy(deployment)
    await driver.open_generation(deployment, 2)
    await driver.close_generation(deployment, 1)
    await driver.set_quota(deployment, 1)
    with pytest.raises(DriverError):
        await driver.branch(deployment, other)
    with pytest.raises(DriverError):
        await driver.back_up(deployment, tmp_path / "backup", BACKUP)
    with pytest.raises(DriverError):
        await driver.restore(tmp_path / "backup", other, deployment, BACKUP)
    assert names(tmp_path) == []
    assert await nothing_is_left(driver, deployment)
    assert await nothing_is_left(driver, other)


async def test_ensuring_twice_and_twice_at_once_makes_one_database(
    driver: DatabaseDriver, deployment: DeploymentId
) -> None:
    addresses = await asyncio.gather(*(driver.ensure(wanted(deployment)) for _ in range(3)))
    await run(driver, deployment, "CREATE TABLE marks AS SELECT 1 AS mark")
    addresses.append(await driver.ensure(wanted(deployment)))
    assert addresses == [await driver.exists(deployment)] * 4
    assert await driver.kept(deployment)
    assert deployment in await driver.found()
    assert await marks(driver, deployment) == [1]


async def test_the_writer_writes_the_reader_reads_and_nobody_elses_password_opens(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId
) -> None:
    async with session(driver, made, READER) as reader:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute("INSERT INTO marks VALUES (2)")
    address = await driver.exists(made)
    assert address is not None
    assert not await opens(driver, address, other)
    assert not await opens(driver, address, made, 2)


async def test_what_sleeps_keeps_its_data_and_wakes_where_it_was(
    driver: DatabaseDriver, made: DeploymentId
) -> None:
    address = await driver.exists(made)
    assert address is not None
    await asyncio.gather(driver.sleep(made), driver.sleep(made))
    await driver.sleep(made)
    assert await driver.exists(made) is None
    assert await driver.kept(made)
    assert await driver.measure(made) is None
    assert await driver.ensure(wanted(made, address.port)) == address
    assert await marks(driver, made) == [1]


async def test_what_is_destroyed_leaves_nothing_and_comes_back_empty(
    driver: DatabaseDriver, made: DeploymentId
) -> None:
    async with session(driver, made) as writer:
        await asyncio.gather(driver.destroy(made), driver.destroy(made))
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await writer.execute("SELECT 1")
    assert await nothing_is_left(driver, made)
    with pytest.raises(asyncpg.UndefinedTableError):
        await marks(driver, made)


async def test_two_generations_open_it_during_an_overlap_and_one_after(
    driver: DatabaseDriver, made: DeploymentId
) -> None:
    async with session(driver, made) as before:
        for _ in range(2):
            await driver.open_generation(made, 2)
        async with session(driver, made, WRITER, 2) as after:
            await before.execute("INSERT INTO marks VALUES (2)")
            for _ in range(2):
                await driver.close_generation(made, 1)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await before.execute("INSERT INTO marks VALUES (3)")
            # Whoever came in by the new one stays, and owns what was there.
            await after.execute("ALTER TABLE marks ADD COLUMN more integer")
    address = await driver.ensure(wanted(made, generations=(2,)))
    assert not await opens(driver, address, made, 1)
    assert await opens(driver, address, made, 2)
    # A start tells it the same anew, whatever it had been told.
    await driver.sleep(made)
    address = await driver.ensure(wanted(made, generations=(2, 3)))
    assert [await opens(driver, address, made, each) for each in (1, 2, 3)] == [False, True, True]


@pytest.mark.promise("P-03")
async def test_a_quota_holds_when_it_is_set_and_is_measured(
    driver: DatabaseDriver, made: DeploymentId
) -> None:
    before = await driver.measure(made)
    assert before is not None
    assert not before.over_quota
    async with session(driver, made) as writer, writer.transaction():
        await writer.execute("INSERT INTO marks SELECT generate_series(2, 1000)")
        during = await driver.measure(made)
        assert during is not None
        assert during.busy
        assert during.statements > before.statements
    await driver.set_quota(made, 1)
    over = await driver.measure(made)
    assert over is not None
    assert over.over_quota
    assert over.used_bytes >= before.used_bytes > 1
    with pytest.raises(asyncpg.DiskFullError):
        await run(driver, made, "INSERT INTO marks VALUES (0)")
    await driver.set_quota(made, 1 << 30)
    await run(driver, made, "INSERT INTO marks VALUES (0)")


@pytest.mark.parametrize("asleep", [False, True], ids=["running", "asleep"])
async def test_a_branch_is_a_database_of_its_own_with_the_same_content(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId, *, asleep: bool
) -> None:
    if asleep:
        await driver.sleep(made)
    await asyncio.gather(driver.branch(made, other), driver.branch(made, other))
    assert (await driver.exists(made) is None) == asleep
    assert await driver.exists(other) is None
    address = await driver.ensure(wanted(other))
    assert not await opens(driver, address, made)
    await run(driver, other, "INSERT INTO marks VALUES (2)")
    await run(driver, made, "INSERT INTO marks VALUES (3)")
    # What is there is not made anew.
    await driver.branch(made, other)
    assert await marks(driver, other) == [1, 2]
    assert await marks(driver, made) == [1, 3]
    await driver.destroy(made)
    assert await marks(driver, other) == [1, 2]


@BACKING_UP
@pytest.mark.parametrize("asleep", [False, True], ids=["running", "asleep"])
async def test_a_backup_holds_what_was_there_and_is_restored_elsewhere(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId, tmp_path: Path, *, asleep: bool
) -> None:
    file = tmp_path / "backup"
    if asleep:
        await driver.sleep(made)
    size = await driver.back_up(made, file, BACKUP)
    content = file.read_bytes()
    assert (size, stat.S_IMODE(file.stat().st_mode)) == (len(content), 0o600)
    await run(driver, made, "INSERT INTO marks VALUES (2)")
    assert await driver.back_up(made, file, BACKUP) == size
    assert file.read_bytes() == content
    await driver.destroy(made)
    for _ in range(2):
        await driver.restore(file, other, made, BACKUP)
    address = await driver.ensure(wanted(other))
    assert not await opens(driver, address, made)
    assert await marks(driver, other) == [1]
    assert names(tmp_path) == [file.name]


@BACKING_UP
async def test_only_a_whole_backup_with_that_very_source_and_id_is_restored(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    await driver.back_up(made, file, BACKUP)
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    fresh = new_backup_id()
    damaged = {
        "cut": content[:middle],
        "flipped": flipped,
        "another's": content,
        "another": content,
    }
    for how, what in damaged.items():
        file.write_bytes(what)
        source = other if how == "another's" else made
        with pytest.raises(DamagedError):
            await driver.restore(file, other, source, fresh if how == "another" else BACKUP)
        assert await nothing_is_left(driver, other), how
    file.write_bytes(content)
    await driver.restore(file, other, made, BACKUP)
    assert await marks(driver, other) == [1]


async def test_what_is_given_up_at_any_moment_is_begun_anew(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId, tmp_path: Path
) -> None:
    file = tmp_path / "backup"
    begun: list[Awaitable[object]] = []
    for moment in range(2):
        for work in (
            driver.ensure(wanted(made)),
            driver.branch(made, other),
            driver.back_up(made, file, BACKUP),
        ):
            task = asyncio.ensure_future(work)
            await asyncio.wait([task], timeout=moment * 0.05)
            task.cancel()
            begun.append(task)
        await asyncio.gather(*begun, return_exceptions=True)
    await driver.branch(made, other)
    assert await marks(driver, other) == [1]
    if driver.backs_up:
        await driver.back_up(made, file, BACKUP)
    assert names(tmp_path) == [file.name] * driver.backs_up


async def test_what_is_not_supported_is_refused_as_that(
    driver: DatabaseDriver, made: DeploymentId, other: DeploymentId, tmp_path: Path
) -> None:
    if not driver.backs_up:
        with pytest.raises(UnsupportedError):
            await driver.back_up(made, tmp_path / "backup", BACKUP)
        with pytest.raises(UnsupportedError):
            await driver.restore(tmp_path / "backup", other, made, BACKUP)
    assert names(tmp_path) == []
