"""Ties a program to the process that starts it, then becomes that program.

`python lifeline.py PARENT_PID SIGNAL PROGRAM ARGUMENT…`: when the supervisor is killed without a
word, its children are sent the signal, instead of being left behind for ever. Run as a script,
since what is done between fork and exec in a process with threads is not safe in Python.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PRIVATE = 0o077


def main() -> None:
    """Replaces this process by the program; ends it when the parent has gone already."""
    parent, signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal)
    if os.getppid() != parent:
        sys.exit(1)
    os.umask(_PRIVATE)
    os.execve(program[0], program, os.environ)  # noqa: S606 a path of our own, no shell


if __name__ == "__main__":
    main()
