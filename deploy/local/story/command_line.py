"""The `bulkhead` command as a person uses it: a process, its key in the environment, JSON out."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from deploy.local.story.stage import Surprise, masked

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command came to."""

    # As one would type it, with the key in BULKHEAD_KEY.
    line: str
    exit_code: int
    document: Mapping[str, Any]
    # What it told on the way, one line each.
    told: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """A command that is still at work."""

    arguments: Sequence[str]
    process: asyncio.subprocess.Process
    _told: list[str] = field(default_factory=list)

    async def told(self, beginning: str) -> str:
        """Returns the next line that it tells and that begins so.

        Raises:
            Surprise: it ended before it told one.
        """
        async for line in self._lines():
            if line.startswith(beginning):
                return line
        raise _surprise(await self.outcome(), f"a line that begins with {beginning}")

    async def outcome(self) -> Outcome:
        """Returns what it came to, once it has ended."""
        output = asyncio.create_task(_stream(self.process.stdout).read())
        async for _ in self._lines():
            pass
        printed = await output
        return Outcome(
            shlex.join(("bulkhead", *self.arguments, "--json")),
            await self.process.wait(),
            json.loads(printed) if printed.strip() else {},
            tuple(self._told),
        )

    async def _lines(self) -> AsyncIterator[str]:
        async for line in _stream(self.process.stderr):
            self._told.append(line.decode().rstrip("\n"))
            yield self._told[-1]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs `bulkhead` against one API."""

    api: str

    async def refused(self, *arguments: str, key: str = "", given: str = "") -> Outcome:
        """Returns what a command that must be refused came to.

        Raises:
            Surprise: it was not refused, but done or misused.
        """
        outcome = await self.run(*arguments, key=key, given=given)
        if outcome.exit_code != 1:
            raise _surprise(outcome, "a refusal")
        return outcome

    async def done(self, *arguments: str, key: str = "", given: str = "") -> Outcome:
        """Returns what a command that must succeed came to.

        Raises:
            Surprise: it did not succeed.
        """
        return succeeded(await self.run(*arguments, key=key, given=given))

    async def run(self, *arguments: str, key: str = "", given: str = "") -> Outcome:
        """Returns what a command came to; it always prints JSON, and reads `given`."""
        async with self.running(*arguments, key=key, given=given) as command:
            return await command.outcome()

    @asynccontextmanager
    async def running(
        self, *arguments: str, key: str = "", given: str = ""
    ) -> AsyncIterator[Running]:
        """Yields a command while it works; whoever leaves before its end ends it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cli", *arguments, "--json"),
            stdin=asyncio.subprocess.PIPE if given else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(key),
        )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                if process.stdin is not None:
                    process.stdin.write(given.encode())
                    process.stdin.write_eof()
                yield Running(arguments, process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _environment(self, key: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name != "BULKHEAD_KEY"}
        return {**own, "BULKHEAD_API": self.api, **({"BULKHEAD_KEY": key} if key else {})}


def succeeded(outcome: Outcome) -> Outcome:
    """Returns what a command came to that must have succeeded.

    Raises:
        Surprise: it did not.
    """
    if outcome.exit_code != 0:
        raise _surprise(outcome, "success")
    return outcome


def _stream(stream: asyncio.StreamReader | None) -> asyncio.StreamReader:
    """Returns a stream that was asked for when the process was started."""
    assert stream is not None  # noqa: S101 it was asked for
    return stream


def _surprise(outcome: Outcome, expected: str) -> Surprise:
    words = "; ".join(outcome.told[-3:])
    line = f"`{outcome.line}`: expected {expected}, got exit code {outcome.exit_code}: {words}"
    return Surprise(masked(line))
