"""The `bulkhead` command."""

import sys

# As shells tell of whom Ctrl-C has ended: 128 and the number of SIGINT.
_INTERRUPTED = 130


def main() -> None:
    """Exits with 0 when done, 1 when refused, 2 on wrong use, 130 on Ctrl-C."""
    try:
        # What it imports takes longer than most commands: Ctrl-C may come in the middle of it.
        from cli.program import build  # noqa: PLC0415 see above

        build()()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
