"""Starting a service process: settings, logs, telemetry, and a drain on SIGTERM."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import uvloop
from pydantic import ValidationError

from services.shared.errors import UnavailableError
from services.shared.logging import configure_logging
from services.shared.migrations import MigrationError, migrations_of
from services.shared.postgres import migrate_alone
from services.shared.server import Service, serving
from services.shared.settings import PostgresSettings, ServiceSettings, UnusableFileError
from services.shared.telemetry import exported

S = TypeVar("S", bound=ServiceSettings)
Compose = Callable[[S], AbstractAsyncContextManager[Service]]

MIGRATE = "--migrate"
CANNOT_START = 1
WRONG_SETTINGS = 2
# A call makes and drops thousands of objects, none of them in a cycle: with the interpreter's own
# few hundred between two looks for cycles, looking is a third of the work of a large batch.
_OBJECTS_BETWEEN_LOOKS = 20_000


def main(
    name: str, settings_type: type[S], compose: Compose[S], arguments: Sequence[str] = ()
) -> None:
    """Serves until SIGTERM or SIGINT; bad settings end the process with 2 and one clear line.

    With the argument `--migrate` it brings the schema of the service's database up to date instead,
    and ends.
    """
    migrating = list(arguments) == [MIGRATE]
    if arguments and not migrating:
        print(f"usage: python -m services.{name} [{MIGRATE}]", file=sys.stderr)  # noqa: T201 the same
        raise SystemExit(WRONG_SETTINGS)
    settings = read_settings(settings_type)
    configure_logging(name, settings.log_level)
    try:
        if migrating:
            asyncio.run(_migrate(name, settings))
            return
        with exported(name, settings):
            uvloop.run(_serve(settings, compose))
    except UnusableFileError as error:
        print(error, file=sys.stderr)  # noqa: T201 for whoever starts it, beside the logs
        raise SystemExit(WRONG_SETTINGS) from None
    except UnavailableError as error:
        print(f"{name} cannot start: {error.message}", file=sys.stderr)  # noqa: T201 the same
        raise SystemExit(CANNOT_START) from None
    except MigrationError as error:
        print(f"{name} cannot start: {error}", file=sys.stderr)  # noqa: T201 the same
        raise SystemExit(CANNOT_START) from None


def read_settings(settings_type: type[S]) -> S:
    """Returns the settings in the environment.

    Raises:
        SystemExit: 2, after one line for each variable that cannot be used.
    """
    try:
        return settings_type()
    except ValidationError as error:
        for problem in error.errors():
            field = "_".join(str(part) for part in problem["loc"])
            # Never the value: it may be a secret.
            print(f"BULKHEAD_{field.upper()}: {problem['msg']}", file=sys.stderr)  # noqa: T201 logs are not set up yet
        raise SystemExit(WRONG_SETTINGS) from None


async def _migrate(name: str, settings: ServiceSettings) -> None:
    if isinstance(settings, PostgresSettings):
        await migrate_alone(settings, migrations_of(name))


async def _serve(settings: S, compose: Compose[S]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with compose(settings) as service, serving(service, settings):
        _spare_collector()
        await stop.wait()


def _spare_collector() -> None:
    """Lets the collector of cycles look less often, and no more at what lives as long as we do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_LOOKS, *gc.get_threshold()[1:])
    gc.enable()
