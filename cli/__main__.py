"""The `bulkhead` command."""

import gc
import sys
from collections.abc import Callable

# As shells tell of whom Ctrl-C has ended: 128 and the number of SIGINT.
_INTERRUPTED = 130


def _program() -> Callable[[], None]:
    # There is nothing to collect yet, and a fifth of the time goes into looking for it.
    gc.disable()
    from cli.program import build  # noqa: PLC0415 see where it is called

    program = build()
    gc.enable()
    return program


def main() -> None:
    """Exits with 0 when done, 1 when refused, 2 on wrong use, 130 on Ctrl-C."""
    try:
        # What it imports takes longer than most commands: Ctrl-C may come in the middle of it.
        _program()()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
