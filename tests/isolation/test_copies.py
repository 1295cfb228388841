"""Attacks on copies of databases: by the source's passwords, by crafted backups, by replication."""

import asyncio
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.local_database import GUARD, SUPERUSER
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import HOST, free_port, reachable_home
from services.provisioner.drivers.protocol import DamagedError, DriverError, Login
from services.provisioner.drivers.sealed_stream import SealedWriter
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_backup_id, new_deployment_id
from tests.local_databases import open_session, wanted

SECRET = MasterSecret(b"a secret that guards nothing at all")
BACKUP = new_backup_id()
THEIRS = MasterSecret(b"what an attacker takes in its place")


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = reachable_home(tmp_path_factory.mktemp("copies"))
    try:
        yield folder
    finally:
        await remove_home(folder)


@pytest.fixture
def driver(home: Path) -> LocalDriver:
    return LocalDriver(home, SECRET, PortRange(20_000, 31_999), 30_000)


@pytest.fixture
async def source(driver: LocalDriver) -> AsyncIterator[DeploymentId]:
    made = new_deployment_id()
    await driver.ensure(wanted(made))
    yield made
    await driver.destroy(made)


@pytest.fixture
async def target(driver: LocalDriver) -> AsyncIterator[DeploymentId]:
    fresh = new_deployment_id()
    yield fresh
    await driver.destroy(fresh)


def logins(driver: LocalDriver, source: DeploymentId) -> list[tuple[Login, str]]:
    """Everybody who may come in at the source, and to which database."""
    of_tenant = [driver.login(source, role, 1) for role in DatabaseRole]
    of_us = [Login(user, SECRET.password(source, user)) for user in (SUPERUSER, GUARD)]
    return [(login, "app") for login in of_tenant] + [(login, "postgres") for login in of_us]


async def tried(address: DatabaseAddress, login: Login, database: str) -> str:
    """Returns how an attempt to come in ends."""
    try:
        session = await open_session(address, login, database)
    except OSError:
        return "nobody listens"
    except asyncpg.CannotConnectNowError:
        return "starting"
    except asyncpg.InvalidPasswordError:
        return "refused"
    except (asyncpg.PostgresConnectionError, asyncpg.ConnectionDoesNotExistError):
        return "cut off"
    session.terminate()
    return f"{login.user} came in"


@pytest.mark.promise("P-02")
async def test_no_password_of_the_source_opens_the_branch_at_any_moment(
    driver: LocalDriver, source: DeploymentId, target: DeploymentId
) -> None:
    address = DatabaseAddress(HOST, free_port())
    seen: set[str] = set()

    async def attack(login: Login, database: str) -> None:
        while True:
            seen.add(await tried(address, login, database))
            await asyncio.sleep(0.001)

    attacks = [
        asyncio.create_task(attack(login, database)) for login, database in logins(driver, source)
    ]
    try:
        await driver.branch(source, target)
        assert await driver.ensure(wanted(target, address.port)) == address
        seen |= {await tried(address, *each) for each in logins(driver, source)}
    finally:
        for each in attacks:
            each.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
    assert seen <= {"nobody listens", "starting", "cut off", "refused"}
    assert "refused" in seen
    own = await open_session(address, driver.login(target, DatabaseRole.WRITER, 1))
    own.terminate()


@pytest.mark.promise("P-02")
async def test_nobody_of_a_tenant_can_copy_a_database_as_we_do(
    driver: LocalDriver, source: DeploymentId
) -> None:
    address = await driver.exists(source)
    assert address is not None
    for role in DatabaseRole:
        login = driver.login(source, role, 1)
        for replication in ("true", "database"):
            with pytest.raises(asyncpg.PostgresError) as refused:
                await asyncpg.connect(
                    host=address.host,
                    port=address.port,
                    user=login.user,
                    password=login.password,
                    database="app",
                    ssl=False,
                    server_settings={"replication": replication},
                )
            assert refused.value.sqlstate in ("28000", "42501", "53300")
        session = await open_session(address, login)
        for statement in (
            "SELECT pg_backup_start('mine')",
            "SELECT pg_backup_stop()",
            "SELECT pg_create_physical_replication_slot('mine', true)",
            "SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",
            "SELECT pg_read_binary_file('global/pg_control')",
            "SELECT pg_ls_waldir()",
        ):
            with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RaiseError)):
                await session.execute(statement)
        session.terminate()


def archive(file: Path, secret: MasterSecret, source: DeploymentId, *names: str) -> None:
    """Writes what passes for a backup, of files of these names."""
    with file.open("wb") as target:
        sealed = SealedWriter(target, lambda salt: secret.key("backup", source, BACKUP, salt.hex()))
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w|gz") as tar:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = 4
                tar.addfile(entry, io.BytesIO(b"evil"))
        sealed.write(plain.getvalue())
        sealed.finish()


@pytest.mark.promise("P-02")
async def test_a_backup_that_a_tenant_made_by_itself_is_never_a_database(
    driver: LocalDriver,
    home: Path,
    source: DeploymentId,
    target: DeploymentId,
    tmp_path: Path,
) -> None:
    file = tmp_path / "backup"
    # A tenant may overwrite what lies in its own bucket; a data directory of its choice would run
    # programs of its choice, as the user of everybody's servers.
    archive(file, THEIRS, source, "PG_VERSION", "postgresql.auto.conf")
    with pytest.raises(DamagedError):
        await driver.restore(file, target, source, BACKUP)
    assert not await driver.kept(target)
    # Sealed with the right key, a name still leads nowhere else.
    for name in ("../evil", "/tmp/evil", "base/../../evil"):  # noqa: S108 nothing is to be there
        archive(file, SECRET, source, name)
        with pytest.raises(DamagedError):
            await driver.restore(file, target, source, BACKUP)
    assert [path.name for path in _all(home) if path.name == "evil"] == []
    assert "evil" not in await asyncio.to_thread(os.listdir, "/tmp")  # noqa: S108 it is not there
    assert target not in await driver.found()


@pytest.mark.promise("P-02")
async def test_a_link_in_a_server_directory_leads_a_copy_nowhere(
    driver: LocalDriver, home: Path, source: DeploymentId, target: DeploymentId, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    ours.write_text("nobody else's")
    # What somebody could do who has taken over a server's process.
    planted = home / source / "base" / "1000000"
    planted.symlink_to(ours)
    try:
        with pytest.raises(DriverError):
            await driver.branch(source, target)
        with pytest.raises(DriverError):
            await driver.back_up(source, tmp_path / "backup", BACKUP)
    finally:
        planted.unlink()
    assert target not in await driver.found()
    assert [path.name for path in _all(tmp_path)] == ["ours"]


def _all(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))
