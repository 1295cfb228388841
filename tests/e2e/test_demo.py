"""`make demo` and `make bench`, as a person runs them: however they end, nothing is left."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from deploy.local.story.stage import COLUMNS, masked
from tests.contracts import ROOT

SECONDS = 240.0
WHOLE_KEY = re.compile(r"smcp_\w{12,}")
WHOLE_PASSWORD = re.compile(r"://\w+:(?!…)[^@\s]+@")
# As the authorization server makes them, and what of OAuth works once.
WHOLE_TOKEN = re.compile(r"\b[ar]t-[\w-]{8,}|\b(?:state|code)=(?!…)")
ESCAPE = "\x1b"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for temporary files that servers may enter, so that theirs lie in it as well."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-test-") as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


def demo(home: Path, *arguments: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    return started(home, "-P", "-m", "deploy.local.demo", *arguments)


@asynccontextmanager
async def started(home: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(home)},
        limit=1 << 20,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def told(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    output = await process.stdout.read()
    await process.wait()
    return output.decode()


async def until_told(process: asyncio.subprocess.Process, words: str) -> None:
    assert process.stdout is not None
    while words not in (line := (await process.stdout.readline()).decode()):
        assert line, f"it ended before it said: {words}"


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left_in(home: Path) -> list[Path]:
    return list(home.iterdir())


def assert_nothing_left(home: Path) -> None:
    assert left_in(home) == []
    assert [each for each in psutil.process_iter(["cmdline"]) if mentions(each, home)] == []


def mentions(process: psutil.Process, home: Path) -> bool:
    return any(str(home) in part for part in process.info["cmdline"] or ())


async def test_the_demo_plays_to_its_end_and_leaves_nothing(home: Path) -> None:
    async with demo(home) as process:
        output = await told(process)
    assert process.returncode == 0, output
    for words in (
        "401",
        "404",
        "429",
        "Retry-After",
        "SCOPE_MISSING",
        "28P01",
        "“Let acme act at Loopback?”",
        "BINDING_MISSING",
        "vends of it in the audit log             1",
        "in its grace period",
        "have forgotten it",
        "AccessDenied",
        "no process of it runs",
        "57P03",
        "402",
        "no server runs, and no file is left",
        "verified, without asking anybody         True",
        "the signature does not hold",
        "nothing surprised",
    ):
        assert words in output
    assert "edge  Authorization/Check" in output
    assert_nothing_left(home)
    assert ESCAPE not in output
    assert max(map(len, output.splitlines())) <= COLUMNS
    assert WHOLE_KEY.findall(output) == []
    assert WHOLE_PASSWORD.findall(output) == []
    assert WHOLE_TOKEN.findall(output) == []


async def test_what_goes_otherwise_than_it_must_fails_the_demo(home: Path) -> None:
    async with demo(home, "--set", "provisioner.DEPLOYMENTS_PER_TENANT=1") as it:
        output = await told(it)
    assert it.returncode == 1, output
    assert "surprise: " in output
    assert "nothing surprised" not in output
    assert_nothing_left(home)


@pytest.mark.parametrize("moment", ["valkey is healthy", "The operator creates two tenants"])
async def test_an_interrupted_demo_leaves_nothing(home: Path, moment: str) -> None:
    async with demo(home) as process:
        await until_told(process, moment)
        await interrupt_twice(process)
        output = await told(process)
    assert process.returncode == 130, output
    assert_nothing_left(home)


async def test_an_interrupted_benchmark_leaves_nothing(home: Path) -> None:
    async with started(home, str(ROOT / "bench" / "provision.py")) as process:
        await until_told(process, "run 1 of")
        await interrupt_twice(process)
        output = await told(process)
    assert process.returncode == 130, output
    assert_nothing_left(home)


async def test_a_killed_demo_leaves_servers_that_one_command_ends(home: Path) -> None:
    async with demo(home) as process:
        await until_told(process, "Each creates a deployment")
        supervised = psutil.Process(process.pid).children()
        process.kill()
        await process.wait()
        async with asyncio.timeout(SECONDS):
            while any(map(lives, supervised)):
                await asyncio.sleep(0.05)
    assert len(supervised) > 4
    (state,) = left_in(home)
    async with started(home, "-P", "-m", "cli", "down", "--state", str(state), "--purge") as down:
        output = await told(down)
    assert down.returncode == 0, output
    assert_nothing_left(home)


async def interrupt_twice(process: asyncio.subprocess.Process) -> None:
    """As `timeout` does and impatient people do."""
    process.send_signal(signal.SIGTERM)
    await until_told(process, "interrupted")
    process.send_signal(signal.SIGINT)


def test_keys_and_passwords_are_masked() -> None:
    key = "smcp_1d_" + "a" * 49
    uri = "postgresql://reader:pass-word@127.0.0.1:20000/app"
    assert masked(f"{key} {uri}") == "smcp_1d_aaaa… postgresql://reader:…@127.0.0.1:20000/app"
    back = "http://localhost/oauth/callback?code=abc&state=def"
    assert masked(back) == "http://localhost/oauth/callback?code=…&state=…"
