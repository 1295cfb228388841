"""The embedded stack as a whole, by its command line alone."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import until
from tests.warm_commands import WarmCommands

pytestmark = pytest.mark.usefixtures("commands")
SECONDS = 60.0
# Between two commands that look how it goes: each takes from what it waits for.
LOOK_SECONDS = 0.3
PROCESSES = [
    "postgres",
    "valkey",
    "s3",
    "auth",
    "ratelimit",
    "credentials",
    "provisioner",
    "app_proxy",
    "edge",
]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


async def bulkhead(*arguments: str, **environment: str) -> Done:
    ended = await WarmCommands.found().run(arguments, {**os.environ, **environment}, None)
    return Done(ended.code, ended.out, ended.err)


async def anew(*arguments: str) -> Done:
    """Runs a command whose interpreter begins with it, as at a shell."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@dataclass(frozen=True)
class Stack:
    """A running stack and how it is spoken to."""

    state: Path
    up: Mapping[str, Any]

    async def command(self, name: str, *arguments: str) -> Done:
        return await bulkhead(name, "--state", str(self.state), *arguments)

    async def status(self) -> Any:
        return json.loads((await self.command("status", "--json")).out)

    async def pids(self) -> dict[str, int]:
        return {each["name"]: each["pid"] for each in (await self.status())["processes"]}


@asynccontextmanager
async def started(state: Path, *arguments: str) -> AsyncIterator[Stack]:
    try:
        up = await anew("up", "--detach", "--json", "--state", str(state), *arguments)
        yield Stack(state, up.document)
    finally:
        done = await anew("down", "--purge", "--state", str(state))
        assert done.code == 0, done.err


@pytest.fixture(scope="module")
async def stack(commands: None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    state = tmp_path_factory.mktemp("whole") / "state"
    async with started(state, "--set", "ratelimit.BURST_FREE=3") as running:
        yield running


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_of(state: Path) -> list[psutil.Process]:
    """Returns every process that works for the stack, whoever its parent is."""
    found = []
    servers = str(Layout.of(state).servers)
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd()]
        except psutil.Error:
            continue
        if any(str(state) in word or servers in word for word in words):
            found.append(process)
    return found


def secrets_of(state: Path) -> list[str]:
    files = [
        *state.glob("*/*.password"),
        *state.glob("secrets/*"),
        state / "s3/admin.secret",
        state / "operator.key",
    ]
    return [file.read_text().strip() for file in files]


async def made_deployment(stack: Stack) -> tuple[str, str]:
    """Returns the id of a new deployment, and how its database is reached."""
    tenant = await bulkhead(
        *("tenant", "create", "acme", "--json", "--api", stack.up["api"]),
        *("--key-file", stack.up["operator_key_file"]),
    )
    caller = {"BULKHEAD_API": stack.up["api"], "BULKHEAD_KEY": tenant.document["key"]}
    made = await bulkhead("deployment", "create", "notes", "--database", "--json", **caller)
    deployment = str(made.document["deployment_id"])
    reached = await bulkhead(
        "deployment", "connection", deployment, "--role", "writer", "--json", **caller
    )
    return deployment, str(reached.document["uri"])


@asynccontextmanager
async def connected(uri: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(uri, timeout=SECONDS)
    try:
        yield connection
    finally:
        await connection.close()


def test_it_tells_where_it_is_reached(stack: Stack) -> None:
    api, edge = stack.up["api"], stack.up["edge"]
    assert api.startswith("localhost:")
    assert edge == f"http://{api}"
    key_file = Path(stack.up["operator_key_file"])
    assert key_file.is_absolute()
    assert key_file.read_text().startswith("smcp_1o_")
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert sorted(each["name"] for each in stack.up["processes"]) == sorted(PROCESSES)


async def test_starting_what_runs_already_tells_the_same(stack: Stack) -> None:
    again = await stack.command("up", "--detach", "--json")
    assert again.document == stack.up
    foreground = await stack.command("up", "--json")
    assert foreground.document == stack.up
    assert "runs already" in foreground.err


async def test_every_process_is_healthy(stack: Stack) -> None:
    status = await stack.status()
    assert status["healthy"]
    assert sorted(each["name"] for each in status["processes"]) == sorted(PROCESSES)
    assert all(each["healthy"] for each in status["processes"])


async def test_people_are_led_back_through_the_front_door(stack: Stack) -> None:
    led_back = {"state": "planted-state", "code": "planted-code"}
    async with httpx.AsyncClient(base_url=stack.up["edge"], timeout=SECONDS) as browser:
        page = await browser.get("/oauth/callback", params=led_back)
    assert page.status_code == 404
    assert "<h1>This link does not work any more</h1>" in page.text
    credentials = psutil.Process((await stack.pids())["credentials"]).environ()
    assert credentials["BULKHEAD_REDIRECT_URL"] == f"{stack.up['edge']}/oauth/callback"
    assert "BULKHEAD_ALLOW_PRIVATE_TARGETS" not in credentials
    logs = [file.read_text() for file in Layout.of(stack.state).logs.iterdir()]
    assert not [text for text in logs if "planted" in text]


async def test_no_secret_is_on_a_command_line_or_in_an_environment(stack: Stack) -> None:
    secrets = secrets_of(stack.state)
    assert len(secrets) >= 9
    for pid in (await stack.pids()).values():
        process = psutil.Process(pid)
        words = " ".join([*process.cmdline(), *process.environ().values()])
        assert not [secret for secret in secrets if secret in words], process.name()


async def test_no_secret_is_in_a_log_or_readable_for_others(stack: Stack) -> None:
    secrets = secrets_of(stack.state)
    layout = Layout.of(stack.state)
    # What servers keep for themselves, in folders that are closed as a whole.
    closed = {layout.servers, layout.s3 / "data"}
    assert (layout.s3 / "data").stat().st_mode & 0o077 == 0
    for file in stack.state.rglob("*"):
        if closed & {file, *file.parents} or not file.is_file():
            continue
        assert file.stat().st_mode & 0o077 == 0, file
        if file.suffix == ".log":
            assert not [secret for secret in secrets if secret in file.read_text()], file


async def test_a_service_is_given_what_it_needs_and_no_more(stack: Stack) -> None:
    pids = await stack.pids()
    names = {service: set(psutil.Process(pids[service]).environ()) for service in PROCESSES[2:]}
    assert "BULKHEAD_PEPPER_FILE" in names["auth"]
    assert all(
        "BULKHEAD_PEPPER_FILE" not in names[other] for other in PROCESSES[2:] if other != "auth"
    )
    assert "BULKHEAD_DATABASE_SECRET_FILE" in names["provisioner"]
    assert "BULKHEAD_VALKEY_HOST" not in names["auth"]
    assert "HOME" not in set().union(*names.values())
    assert not [name for name in names["edge"] if name.startswith("BULKHEAD_")]


async def test_a_setting_reaches_its_service(stack: Stack) -> None:
    pids = await stack.pids()
    assert psutil.Process(pids["ratelimit"]).environ()["BULKHEAD_BURST_FREE"] == "3"


@pytest.mark.parametrize("name", ["ratelimit", "valkey", "s3", "edge", "postgres"])
async def test_a_killed_process_comes_back(stack: Stack, name: str) -> None:
    before = (await stack.pids())[name]
    os.kill(before, signal.SIGKILL)

    async def back() -> bool:
        await asyncio.sleep(LOOK_SECONDS)
        status = await stack.status()
        now = next(each for each in status["processes"] if each["name"] == name)
        return bool(now["pid"] not in (None, before) and now["restarts"] >= 1 and status["healthy"])

    await until(back, SECONDS)


async def test_after_the_supervisor_was_killed_everything_is_found_again(stack: Stack) -> None:
    deployment, _ = await made_deployment(stack)
    servers = (await stack.status())["servers"]
    assert [server["deployment_id"] for server in servers] == [deployment]
    before = await stack.pids()
    record = json.loads((stack.state / "running.json").read_text())
    os.kill(record["supervisor"]["pid"], signal.SIGKILL)
    again = (await stack.command("up", "--detach", "--json")).document
    assert [again[name] for name in ("api", "edge")] == [stack.up[name] for name in ("api", "edge")]
    assert (await stack.status())["servers"] == servers
    after = await stack.pids()
    assert after["postgres"] == before["postgres"]
    assert not [name for name in PROCESSES if name != "postgres" and lives(before[name])]


async def test_down_leaves_nothing_and_up_finds_it_again(tmp_path: Path) -> None:
    async with started(tmp_path / "state") as stack:
        deployment, uri = await made_deployment(stack)
        async with connected(uri) as database:
            await database.execute("CREATE TABLE kept AS SELECT 7 AS n")
        data = Path((await stack.status())["servers"][0]["data_directory"])
        assert (await stack.command("down")).code == 0
        assert not processes_of(stack.state)
        assert (data / "PG_VERSION").exists()
        status = await stack.command("status")
        assert (status.code, status.out.strip()) == (1, f"no stack runs in {stack.state}")
        again = await stack.command("up", "--detach", "--json")
        assert again.document["api"] == stack.up["api"]

        async def recovered() -> bool:
            await asyncio.sleep(LOOK_SECONDS)
            servers = (await stack.status())["servers"]
            return [server["deployment_id"] for server in servers] == [deployment]

        await until(recovered, SECONDS)
        async with connected(uri) as database:
            assert await database.fetchval("SELECT n FROM kept") == 7
        servers = Layout.of(stack.state).servers
        assert (await stack.command("down", "--purge")).code == 0
    assert not servers.exists()
    assert not stack.state.exists()


async def test_in_the_foreground_a_signal_ends_everything(tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "up", "--json", "--state", str(state)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout
        document = ""
        async with asyncio.timeout(SECONDS):
            while not document.endswith("\n}\n"):
                document += (await process.stdout.readline()).decode()
        assert json.loads(document)["state"] == str(state)
        # As a terminal does it: to the whole process group.
        os.killpg(process.pid, signal.SIGINT)
        assert await process.wait() == 0
        for log in PROCESSES[2:]:
            assert " ended with " not in (state / "logs" / f"{log}.log").read_text()
        assert not processes_of(state)
    finally:
        assert (await bulkhead("down", "--purge", "--state", str(state))).code == 0


async def test_a_taken_port_is_refused_and_named(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    state = str(tmp_path / "state")
    async with await asyncio.start_server(lambda *_: None, LOOPBACK, port):
        arguments = ("up", "--detach", "--state", state, "--edge-port", str(port))
        refused = await bulkhead(*arguments)
    assert refused.code == 1
    assert f"port {port} is taken" in refused.err
    down = await bulkhead("down", "--purge", "--state", state)
    assert (down.code, "removed it" in down.err) == (0, True)
    assert not os.listdir(tmp_path)  # noqa: PTH208 shorter than a thread
    assert "there is no stack" in (await bulkhead("down", "--purge", "--state", state)).err


async def test_a_setting_that_a_service_refuses_is_shown_by_its_name(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    layout = Layout.of(tmp_path / "state")
    layout.make()
    layout.log("ratelimit").write_text("BULKHEAD_BURST_FREE: Input should be a valid integer\n")
    refused = await bulkhead(
        "up", "--detach", "--state", state, "--set", "ratelimit.RATE_FREE=many"
    )
    assert refused.code == 1
    assert "BULKHEAD_RATE_FREE" in refused.err
    # What was said before this start is of no help now.
    assert "BULKHEAD_BURST_FREE" not in refused.err
    assert "Traceback" not in refused.err
    assert not processes_of(Path(state))
    assert (await bulkhead("down", "--purge", "--state", state)).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--set", "nonsense"),
        ("up", "--set", "nobody.BURST_FREE=5"),
        ("up", "--edge-port", "0"),
        ("up", "--otlp", "nowhere"),
        ("sideways",),
    ],
)
async def test_wrong_use_is_told(arguments: tuple[str, ...], tmp_path: Path) -> None:
    state = ("--state", str(tmp_path)) if len(arguments) > 1 else ()
    assert (await bulkhead(*arguments, *state)).code == 2
    assert not os.listdir(tmp_path)  # noqa: PTH208 shorter than a thread


async def test_down_where_nothing_was_started_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = await bulkhead("down", "--purge", "--state", str(tmp_path))
    assert done.code == 0
    assert (tmp_path / "precious").exists()
