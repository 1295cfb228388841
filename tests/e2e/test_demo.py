"""`make demo`, as a person runs it: it ends well, says so when it does not, and leaves nothing."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from deploy.local.story.stage import COLUMNS, masked

SECONDS = 150.0
WHOLE_KEY = re.compile(r"smcp_\w{12,}")
WHOLE_PASSWORD = re.compile(r"://\w+:(?!…)[^@\s]+@")
ESCAPE = "\x1b"


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for temporary files that servers may enter, so that theirs lie in it as well."""
    with tempfile.TemporaryDirectory(prefix="bulkhead-test-") as folder:
        path = Path(folder)
        path.chmod(0o711)
        yield path


@asynccontextmanager
async def demo(home: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "deploy.local.demo", *arguments),
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


def assert_nothing_left(home: Path) -> None:
    assert list(home.iterdir()) == []
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
        "nothing surprised",
    ):
        assert words in output
    assert "edge  Authorization/Check" in output
    assert_nothing_left(home)
    assert ESCAPE not in output
    assert max(map(len, output.splitlines())) <= COLUMNS
    assert WHOLE_KEY.findall(output) == []
    assert WHOLE_PASSWORD.findall(output) == []


async def test_a_refusal_that_does_not_come_fails_the_demo(home: Path) -> None:
    nobody_refused = ("ratelimit.RATE_FREE=1000000", "ratelimit.BURST_FREE=1000000")
    async with demo(home, *(part for each in nobody_refused for part in ("--set", each))) as it:
        output = await told(it)
    assert it.returncode == 1, output
    assert "surprise: 5 times 60 requests at once: none was refused" in output
    assert_nothing_left(home)


@pytest.mark.parametrize("moment", ["valkey is healthy", "The operator creates two tenants"])
async def test_an_interrupted_demo_leaves_nothing(home: Path, moment: str) -> None:
    async with demo(home) as process:
        await until_told(process, moment)
        process.send_signal(signal.SIGINT)
        output = await told(process)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert_nothing_left(home)


def test_keys_and_passwords_are_masked() -> None:
    key = "smcp_1d_" + "a" * 49
    uri = "postgresql://reader:pass-word@127.0.0.1:20000/app"
    assert masked(f"{key} {uri}") == "smcp_1d_aaaa… postgresql://reader:…@127.0.0.1:20000/app"
