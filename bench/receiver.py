"""Takes spans and metrics over OTLP at a port and drops them: `python bench/receiver.py PORT`."""

import asyncio
import signal
import sys

from deploy.local.traces import otlp_receiver


async def receive(port: int) -> None:
    """Receives until SIGTERM."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with otlp_receiver(port):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(receive(int(sys.argv[1])))
