"""A stack for the length of a block: in a folder of its own, gone afterwards without a trace."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from deploy.local.layout import Layout
from deploy.local.programs import Options
from deploy.local.stack import Addresses, Stack
from deploy.local.supervisor import Progress


@contextmanager
def temporary_state(prefix: str) -> Iterator[Path]:
    """Yields an empty state folder; it and the servers' folder that belongs to it go at the end."""
    state = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    layout = Layout.of(state)
    try:
        # First of all, since whether the servers' user may pass decides where servers live.
        layout.make()
        yield state
    finally:
        for folder in (layout.servers, state):
            shutil.rmtree(folder)


@asynccontextmanager
async def temporary_stack(
    options: Options, progress: Progress = lambda _: None, prefix: str = "bulkhead-"
) -> AsyncIterator[Addresses]:
    """Yields the addresses of a healthy stack; nothing of it is left afterwards.

    Raises:
        StartError: a process did not become healthy.
    """
    with temporary_state(prefix) as state:
        async with Stack(state, options).running(progress) as addresses:
            yield addresses
