"""`python -m tests.beholding_process CERTIFICATE KEY AUTHORITY`: answers calls, prints its port."""

import asyncio
import sys
from pathlib import Path

from services.shared.tls import Identity
from tests.renewals import Beholder, beheld


async def _behold(files: list[str]) -> None:
    identity = Identity.read(*map(Path, files))
    async with beheld(lambda: identity, Beholder()) as port:
        print(port, flush=True)  # noqa: T201 read by the test
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_behold(sys.argv[1:]))
