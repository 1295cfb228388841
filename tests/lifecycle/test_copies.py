"""Copies of databases that are written to or were killed, and copies whose maker is killed."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.provisioner.domain import DatabaseRole
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.local_database import MAINTENANCE, SUPERUSER
from services.provisioner.drivers.protocol import Login
from services.shared.ids import DeploymentId, new_backup_id, new_deployment_id
from tests.lifecycle.test_local_postgres import SECRET, eventually, killed_after, local_driver
from tests.local_databases import open_session, wanted

BACKUP = new_backup_id()
LEDGER = """
CREATE TABLE entries (entry serial PRIMARY KEY, account int NOT NULL, amount int NOT NULL);
CREATE INDEX ON entries (account);
CREATE TABLE transfers (transfer serial PRIMARY KEY, filler text NOT NULL);
"""
# Both entries of a transfer, or neither; a checkpoint or a vacuum may come at any time.
TRANSFER = """
WITH noted AS (INSERT INTO transfers (filler) VALUES (repeat('x', 2000)) RETURNING transfer)
INSERT INTO entries (account, amount)
    SELECT account, amount FROM noted, (VALUES (1, 7), (2, -7)) AS both_sides (account, amount)
"""


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = postgres_process.reachable_home(tmp_path_factory.mktemp("copies"))
    try:
        yield folder
    finally:
        await remove_home(folder)


@pytest.fixture
def driver(home: Path) -> LocalDriver:
    return local_driver(home)


@pytest.fixture
async def source(driver: LocalDriver) -> AsyncIterator[DeploymentId]:
    """A deployment with a ledger in its database."""
    made = new_deployment_id()
    await run(driver, made, LEDGER + TRANSFER)
    yield made
    await driver.destroy(made)


async def writer(
    driver: LocalDriver, deployment: DeploymentId
) -> "asyncpg.Connection[asyncpg.Record]":
    address = await driver.exists(deployment) or await driver.ensure(wanted(deployment))
    return await open_session(address, driver.login(deployment, DatabaseRole.WRITER, 1))


async def as_superuser(
    driver: LocalDriver, deployment: DeploymentId
) -> "asyncpg.Connection[asyncpg.Record]":
    address = await driver.exists(deployment)
    assert address is not None
    login = Login(SUPERUSER, SECRET.password(deployment, SUPERUSER))
    return await open_session(address, login, MAINTENANCE)


async def run(driver: LocalDriver, deployment: DeploymentId, statements: str) -> None:
    session = await writer(driver, deployment)
    await session.execute(statements)
    await session.close()


async def balanced(driver: LocalDriver, deployment: DeploymentId) -> int:
    """Returns how many transfers there are; every one of them is whole, in tables and indexes."""
    session = await writer(driver, deployment)
    transfers = 0
    for planner in ("enable_seqscan", "enable_indexscan"):
        await session.execute(f"SET {planner} = off; SET enable_bitmapscan = off")
        row = await session.fetchrow(
            "SELECT sum(amount) AS total, count(*) AS entries,"
            " (SELECT count(*) FROM transfers) AS transfers,"
            " (SELECT sum(amount) FROM entries WHERE account = 1) AS one FROM entries"
        )
        await session.execute("RESET ALL")
        assert row is not None
        assert (row["total"], row["entries"]) == (0, 2 * row["transfers"])
        assert row["one"] == 7 * row["transfers"]
        transfers = row["transfers"]
    # Every page can be read, and written again.
    await session.execute("VACUUM (FULL) entries")
    await session.close()
    return transfers


@contextlib.asynccontextmanager
async def transferring(driver: LocalDriver, deployment: DeploymentId) -> AsyncIterator[list[int]]:
    """Writes to the ledger without a pause; yields how many transfers were committed so far.

    Checkpoints come all the while: the server has no more use for the WAL from before them.
    """
    session = await writer(driver, deployment)
    superuser = await as_superuser(driver, deployment)
    done = [1]

    async def transfer() -> None:
        while True:
            await session.execute(TRANSFER)
            done[0] += 1

    async def checkpoint() -> None:
        while True:
            await superuser.execute("CHECKPOINT")
            await superuser.execute("SELECT pg_switch_wal()")

    tasks = [asyncio.create_task(transfer()), asyncio.create_task(checkpoint())]
    try:
        yield done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session.terminate()
        superuser.terminate()


@pytest.fixture
async def copy(driver: LocalDriver) -> AsyncIterator[DeploymentId]:
    """A deployment whose database is yet to be."""
    fresh = new_deployment_id()
    yield fresh
    await driver.destroy(fresh)


@pytest.mark.parametrize("by_way_of_a_file", [False, True], ids=["branch", "backup"])
async def test_a_copy_of_what_is_written_to_is_of_one_moment(
    driver: LocalDriver,
    source: DeploymentId,
    copy: DeploymentId,
    tmp_path: Path,
    *,
    by_way_of_a_file: bool,
) -> None:
    file = tmp_path / "backup"
    async with transferring(driver, source) as done:
        await eventually(lambda: done[0] > 20)
        earliest = done[0]
        if by_way_of_a_file:
            await driver.back_up(source, file, BACKUP)
        else:
            await driver.branch(source, copy)
        # One may have been committed of which nobody was told yet.
        latest = done[0] + 1
        await eventually(lambda: done[0] > latest)
    assert latest > earliest + 1, "nothing was written meanwhile"
    if by_way_of_a_file:
        await driver.restore(file, copy, source, BACKUP)
    assert earliest <= await balanced(driver, copy) <= latest
    assert await balanced(driver, source) > latest


async def test_a_copy_of_what_was_killed_is_what_it_recovers_to(
    driver: LocalDriver, home: Path, source: DeploymentId, copy: DeploymentId
) -> None:
    async with transferring(driver, source) as done:
        await eventually(lambda: done[0] > 20)
        server = postgres_process.running(home / source)
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        # For a moment it is still dying: a copy that began then would only have to be tried again.
        await eventually(lambda: postgres_process.running(home / source) is None)
    await driver.branch(source, copy)
    assert done[0] <= await balanced(driver, copy) <= done[0] + 1
    assert await balanced(driver, source) == await balanced(driver, copy)


@pytest.mark.parametrize("milliseconds", [60, 300])
async def test_a_copy_whose_maker_is_killed_is_whole_or_made_anew(
    driver: LocalDriver, home: Path, source: DeploymentId, copy: DeploymentId, milliseconds: int
) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path;"
        "from tests.lifecycle.test_local_postgres import local_driver;"
        "driver = local_driver(Path(sys.argv[1]));"
        "print('now', flush=True);"
        "asyncio.run(driver.branch(sys.argv[2], sys.argv[3]))"
    )
    await killed_after(milliseconds / 1000, script, str(home), source, copy)
    assert await driver.exists(copy) is None
    await driver.branch(source, copy)
    assert await balanced(driver, copy) == 1
    # Not even the WAL that the copy would have needed is kept for it.
    left = sorted(path.name for path in _all(home) if copy in path.name)
    assert left == [f".{copy}.lock", copy]
    await eventually(lambda: not _names(home / source / "pg_replslot"))


async def test_nothing_of_one_run_of_the_source_is_copied(
    driver: LocalDriver, home: Path, source: DeploymentId, copy: DeploymentId
) -> None:
    await driver.branch(source, copy)
    own = {name for name in _names(home / copy) if not name.startswith(("pg_", "base", "global"))}
    assert own == {"PG_VERSION", "postgresql.conf", "postgresql.auto.conf"} | (
        own & {"backup_label.old"}
    )
    assert _names(home / copy / "pg_replslot") == set()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _all(folder: Path) -> list[Path]:
    return list(folder.iterdir())
