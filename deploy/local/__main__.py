"""`python -m deploy.local`: runs a stack in the foreground until it is told to end."""

import argparse
import asyncio
import sys
from pathlib import Path

from deploy.local.control import ALREADY_RUNNING
from deploy.local.foreground import parse_overrides, serve, tell
from deploy.local.programs import Options
from deploy.local.stack import Stack
from deploy.local.supervisor import AlreadyRunningError, StartError

_REFUSED = 1


def main() -> None:
    """Exits with 0 after SIGTERM or SIGINT, 1 when the stack cannot be started, 2 on wrong use."""
    parser = _parser()
    given = parser.parse_args()
    try:
        overrides = parse_overrides(given.set)
    except ValueError as error:
        parser.error(str(error))
    options = Options(
        otlp=given.otlp, edge_port=given.edge_port, unchecked=given.unchecked, overrides=overrides
    )
    try:
        asyncio.run(serve(Stack(given.state, options), tell, lambda _: None))
    except StartError as error:
        tell(str(error))
        sys.exit(_REFUSED)
    except AlreadyRunningError:
        tell(f"a stack runs in {given.state} already")
        sys.exit(ALREADY_RUNNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".bulkhead"))
    parser.add_argument("--otlp", default="", metavar="HOST:PORT")
    parser.add_argument("--edge-port", type=int, metavar="N")
    parser.add_argument("--unchecked", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="SERVICE.SETTING=VALUE")
    return parser


if __name__ == "__main__":
    main()
