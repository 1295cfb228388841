"""A replica in a process of its own, so that it can be killed: `python -m tests.ratelimit_process`.

Its stores are in `BULKHEAD_*`. It takes calls of one deployment for ever, and prints after each
batch how many it was admitted.
"""

import asyncio
import sys

from services.ratelimit.counting import counting
from services.ratelimit.domain import Limits
from services.ratelimit.gcra import Ceiling
from services.ratelimit.settings import Settings
from services.shared.ids import DeploymentId
from services.shared.postgres import open_database
from services.shared.redis import open_valkey
from tests.databases import SERVICES
from tests.ratelimit_replicas import admitted


async def main(deployment: DeploymentId, monthly: int) -> None:
    """Takes calls until it is killed."""
    settings = Settings()
    limits = Limits(Ceiling(1_000_000, 1_000_000), monthly)
    async with (
        open_database(settings, "ratelimit", SERVICES / "ratelimit" / "migrations") as opened,
        open_valkey(settings) as client,
        counting(settings, client, opened) as circuit,
    ):
        while True:
            sys.stdout.write(f"{await admitted(circuit, deployment, limits, 4)}\n")
            sys.stdout.flush()
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(main(DeploymentId(sys.argv[1]), int(sys.argv[2])))
