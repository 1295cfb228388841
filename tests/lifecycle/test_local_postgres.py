"""The local database driver by itself: real servers, real kills."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import psutil
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole, deployment_id
from services.provisioner.drivers import guard, postgres_process
from services.provisioner.drivers.claim import claim
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import HOST, Blueprint, ServerError
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_deployment_id
from tests.local_databases import open_session, wanted

SECRET = MasterSecret(b"a secret that guards nothing at all")
PORTS = PortRange(20_000, 31_999)
CAP_MILLISECONDS = 2_000
ROOT = Path(__file__).parents[2]


def local_driver(home: Path) -> LocalDriver:
    return LocalDriver(home, SECRET, PORTS, CAP_MILLISECONDS)


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = postgres_process.reachable_home(tmp_path_factory.mktemp("local"))
    try:
        yield folder
    finally:
        await remove_home(folder)


@pytest.fixture
def driver(home: Path) -> LocalDriver:
    return local_driver(home)


@pytest.fixture
def deployment() -> DeploymentId:
    return new_deployment_id()


async def connect(
    driver: LocalDriver,
    deployment: DeploymentId,
    address: DatabaseAddress,
    role: DatabaseRole = DatabaseRole.WRITER,
) -> "asyncpg.Connection[asyncpg.Record]":
    return await open_session(address, driver.login(deployment, role, 1))


def server_pid(home: Path, deployment: DeploymentId) -> int:
    server = postgres_process.running(home / deployment)
    assert server is not None
    return server.pid


def processes_in(directory: Path) -> list[psutil.Process]:
    """Every live process that works in the directory or names it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            named = any(str(directory) in one for one in process.cmdline())
            mine = process.cwd() == str(directory) or named
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(45):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.promise("P-01")
@pytest.mark.promise("P-02")
async def test_two_deployments_share_no_process_no_directory_no_port_and_no_password(
    driver: LocalDriver, home: Path
) -> None:
    one, two = new_deployment_id(), new_deployment_id()
    addresses = await asyncio.gather(driver.ensure(wanted(one)), driver.ensure(wanted(two)))
    assert addresses[0].port != addresses[1].port
    assert server_pid(home, one) != server_pid(home, two)
    for role in DatabaseRole:
        assert driver.login(one, role, 1).password != driver.login(two, role, 1).password
    for deployment in (one, two):
        status = (home / deployment).stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        connection = await connect(driver, deployment, addresses[deployment == two])
        await connection.execute("CREATE TABLE marks AS SELECT $1::text AS mark", deployment)
        await connection.close()
    for role in DatabaseRole:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(driver, one, addresses[1], role)
    connection = await connect(driver, two, addresses[1], DatabaseRole.READER)
    assert await connection.fetchval("SELECT mark FROM marks") == two
    await connection.close()


async def test_the_template_is_made_when_servers_may_not_enter_the_folder_of_temporary_files(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody but us may enter what pytest makes.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    another = Blueprint("postgres", "a password of its own", "")
    half = home / f".{another.name}.partial.password"
    half.write_text("what one that was killed had left")
    template = await postgres_process.ensure_template(home, another)
    assert (template / "PG_VERSION").exists()
    assert not half.exists()


async def test_ensuring_again_adopts_the_running_server(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    pid = server_pid(home, deployment)
    # Another driver on the same home is what a provisioner is after its own restart.
    again = await local_driver(home).ensure(wanted(deployment, address.port))
    assert (again, server_pid(home, deployment)) == (address, pid)


async def test_many_who_ensure_at_once_make_one_server(
    home: Path, deployment: DeploymentId
) -> None:
    drivers = [local_driver(home) for _ in range(6)]
    addresses = await asyncio.gather(*(one.ensure(wanted(deployment)) for one in drivers))
    assert len(set(addresses)) == 1
    masters = [
        process
        for process in processes_in(home / deployment)
        if process.name() == "postgres" and "-D" in process.cmdline()
    ]
    assert len(masters) == 1


async def test_a_killed_server_comes_back_with_its_data_on_its_port(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    connection = await connect(driver, deployment, address)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    pid = server_pid(home, deployment)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: postgres_process.running(home / deployment) is None)
    assert await driver.exists(deployment) is None
    again = await driver.ensure(wanted(deployment, address.port))
    assert again == address
    assert server_pid(home, deployment) != pid
    connection = await connect(driver, deployment, again)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()


async def test_a_port_that_someone_else_took_is_left_to_them(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    await postgres_process.stop(home / deployment)
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((HOST, address.port))
        squatter.listen()
        again = await driver.ensure(wanted(deployment, address.port))
    assert again.port != address.port
    await (await connect(driver, deployment, again)).close()


async def test_a_recycled_process_id_is_neither_adopted_nor_killed(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    pid_file = home / deployment / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    await postgres_process.stop(home / deployment)
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        pid_file.write_text("\n".join([str(bystander.pid), *lines[1:]]) + "\n")
        assert postgres_process.running(home / deployment) is None
        await driver.ensure(wanted(deployment, address.port))
        await driver.destroy(deployment)
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()


def test_postgres_that_only_prepares_a_directory_is_no_server(tmp_path: Path) -> None:
    lines = (f"-{os.getpid()}", str(tmp_path), "1", "20000", "", "", "", "ready")
    (tmp_path / "postmaster.pid").write_text("\n".join(lines))
    assert postgres_process.running(tmp_path) is None


@pytest.mark.parametrize("moment", range(12))
async def test_killed_in_the_middle_of_ensure_the_next_one_completes_it(
    home: Path, moment: int
) -> None:
    deployment = new_deployment_id()
    script = (
        "import asyncio, sys; from pathlib import Path;"
        "from tests.lifecycle.test_local_postgres import local_driver, wanted;"
        "print('now', flush=True);"
        "asyncio.run(local_driver(Path(sys.argv[1])).ensure(wanted(sys.argv[2])))"
    )
    await killed_after(moment * 0.025, script, str(home), deployment)
    driver = local_driver(home)
    address = await driver.ensure(wanted(deployment))
    await (await connect(driver, deployment, address)).close()
    assert await driver.exists(deployment) == address
    await driver.destroy(deployment)
    assert_nothing_is_left(home, deployment)
    await eventually(lambda: not processes_in(home / deployment))


async def killed_after(seconds: float, script: str, *arguments: str) -> None:
    """Runs a script that says when it begins, and kills it so long after that."""
    killed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None
    await killed.stdout.readline()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await killed.wait()
    with contextlib.suppress(ProcessLookupError):
        killed.kill()
    await killed.wait()


def assert_nothing_is_left(home: Path, deployment: DeploymentId) -> None:
    assert [path.name for path in home.iterdir() if deployment in path.name] == []


async def test_destroying_leaves_no_file_and_no_process(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    connection = await connect(driver, deployment, address)
    assert deployment in await driver.found()
    await driver.destroy(deployment)
    assert_nothing_is_left(home, deployment)
    assert deployment not in await driver.found()
    await eventually(lambda: not processes_in(home / deployment))
    await driver.destroy(deployment)
    with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
        await connection.close(timeout=1)


async def test_what_a_killed_copy_left_is_found_and_removed(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    half = home / f".{deployment}.partial"
    half.mkdir(mode=0o700)
    (half / "PG_VERSION").write_text("16\n")
    assert deployment in await driver.found()
    await driver.destroy(deployment)
    assert_nothing_is_left(home, deployment)


@pytest.fixture
async def spare(driver: LocalDriver, home: Path) -> AsyncIterator[Path]:
    """The spare copy that `driver` keeps ready."""
    keeping = asyncio.create_task(driver.keep_spare())
    try:
        await eventually(lambda: bool(spares(home)))
        yield spares(home)[0]
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        for left in spares(home):
            await postgres_process.destroy(left)


def inode(path: Path) -> int:
    return path.stat().st_ino


def spares(home: Path) -> list[Path]:
    return sorted(home.glob("*.spare"))


async def test_a_deployment_takes_the_spare_and_the_next_one_is_made(
    driver: LocalDriver, home: Path, spare: Path
) -> None:
    for _ in range(2):
        await eventually(spare.exists)
        deployment, was = new_deployment_id(), inode(spare)
        address = await driver.ensure(wanted(deployment))
        assert inode(home / deployment) == was
        await (await connect(driver, deployment, address)).close()
        await driver.destroy(deployment)
    await eventually(lambda: spares(home) == [spare])


async def test_many_who_ensure_at_once_share_no_spare(
    driver: LocalDriver, home: Path, spare: Path
) -> None:
    deployments = [new_deployment_id() for _ in range(4)]
    assert spares(home) == [spare]
    await asyncio.gather(*(driver.ensure(wanted(one)) for one in deployments))
    assert len({server_pid(home, one) for one in deployments}) == len(deployments)
    assert len({inode(home / one) for one in deployments}) == len(deployments)


async def test_a_spare_is_nobodys_deployment(driver: LocalDriver, spare: Path) -> None:
    assert not [name for name in await driver.found() if name in spare.name]
    assert deployment_id(spare.name) is None


async def test_a_spare_of_another_template_is_removed(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    other = home / f"template-{'0' * 16}.spare"
    left = (other, home / f".{other.name}.partial", home / f".{other.name}.doomed")
    for folder in left:
        folder.mkdir()
        (folder / "PG_VERSION").write_text("16\n")
    keeping = asyncio.create_task(driver.keep_spare())
    await eventually(lambda: not any(folder.exists() for folder in left))
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    await driver.ensure(wanted(deployment))
    assert spares(home) == []


@pytest.mark.parametrize("moment", range(5))
async def test_a_spare_is_whole_or_not_there_whenever_its_maker_is_killed(
    driver: LocalDriver, home: Path, moment: int
) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path;"
        "from tests.lifecycle.test_local_postgres import local_driver;"
        "print('now', flush=True);"
        "asyncio.run(local_driver(Path(sys.argv[1])).keep_spare())"
    )
    await killed_after(moment * 0.04, script, str(home))
    for _ in range(2):
        deployment = new_deployment_id()
        address = await driver.ensure(wanted(deployment))
        await (await connect(driver, deployment, address)).close()
        await driver.destroy(deployment)
    assert spares(home) == []


async def test_a_guard_that_ends_is_missed_and_started_again(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    address = await driver.ensure(wanted(deployment))
    guard.end(home / deployment)
    server = postgres_process.running(home / deployment)
    assert server is not None
    await eventually(lambda: not guard.alive(home / deployment, server))
    assert await driver.exists(deployment) is None
    await driver.ensure(wanted(deployment, address.port))
    assert await driver.exists(deployment) == address


@pytest.mark.promise("P-39")
async def test_no_process_of_any_guard_is_left_unseen(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    directory = home / deployment
    await driver.ensure(wanted(deployment))
    # One that is not in the file any more, and will not end by itself.
    (directory / "bulkhead.guard").unlink()
    for process in processes_in(directory):
        if "bulkhead-guard" in process.cmdline():
            process.suspend()
    assert await driver.exists(deployment) is None
    await driver.ensure(wanted(deployment))
    await postgres_process.destroy(directory)
    assert deployment in await driver.found()
    await driver.destroy(deployment)
    assert [process.cmdline() for process in processes_in(directory)] == []
    assert deployment not in await driver.found()


async def test_no_password_stands_in_any_file_or_argument(
    driver: LocalDriver, home: Path, deployment: DeploymentId
) -> None:
    await driver.ensure(wanted(deployment))
    secrets = [driver.login(deployment, role, 1).password.encode() for role in DatabaseRole]
    for path in (home / deployment).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
    for process in processes_in(home / deployment):
        arguments = " ".join(process.cmdline()).encode()
        assert not any(secret in arguments for secret in secrets)


async def test_a_server_starts_with_nothing_of_our_environment(
    driver: LocalDriver, home: Path, deployment: DeploymentId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_POSTGRES_PASSWORD_FILE", "/nowhere")
    await driver.ensure(wanted(deployment))
    variables = psutil.Process(server_pid(home, deployment)).environ()
    assert not [name for name in variables if name.startswith("BULKHEAD")]


async def test_a_home_is_claimed_by_one_provisioner(tmp_path: Path) -> None:
    claim(tmp_path, "one")
    claim(tmp_path, "one")
    with pytest.raises(ServerError):
        claim(tmp_path, "two")
