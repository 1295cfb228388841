"""The `bulkhead` command as a person uses it: a process, its key in the environment, JSON out."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
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
class CommandLine:
    """Runs `bulkhead` against one API."""

    api: str

    async def refused(self, *arguments: str, key: str = "") -> Outcome:
        """Returns what a command that must be refused came to.

        Raises:
            Surprise: it was not refused, but done or misused.
        """
        outcome = await self.run(*arguments, key=key)
        if outcome.exit_code != 1:
            raise _surprise(outcome, "a refusal")
        return outcome

    async def done(self, *arguments: str, key: str = "") -> Outcome:
        """Returns what a command that must succeed came to.

        Raises:
            Surprise: it did not succeed.
        """
        outcome = await self.run(*arguments, key=key)
        if outcome.exit_code != 0:
            raise _surprise(outcome, "success")
        return outcome

    async def run(self, *arguments: str, key: str = "") -> Outcome:
        """Returns what a command came to; it always prints JSON."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cli", *arguments, "--json"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(key),
        )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                output, told = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        document = json.loads(output) if output.strip() else {}
        lines = tuple(told.decode().splitlines())
        return Outcome(
            shlex.join(("bulkhead", *arguments, "--json")), process.returncode or 0, document, lines
        )

    def _environment(self, key: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if name != "BULKHEAD_KEY"}
        return {**own, "BULKHEAD_API": self.api, **({"BULKHEAD_KEY": key} if key else {})}


def _surprise(outcome: Outcome, expected: str) -> Surprise:
    words = "; ".join(outcome.told[-3:])
    line = f"`{outcome.line}`: expected {expected}, got exit code {outcome.exit_code}: {words}"
    return Surprise(masked(line))
