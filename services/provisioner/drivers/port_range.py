"""Ports of this machine that something is to listen on."""

import random
import socket
from dataclasses import dataclass

from services.provisioner.drivers.protocol import DriverError

_TRIES = 256


@dataclass(frozen=True, slots=True)
class PortRange:
    """Where something listens: below the ports that the system lends to outgoing connections."""

    first: int
    last: int

    def pick(self, host: str) -> int:
        """Returns a port that was free a moment ago.

        Raises:
            DriverError: a good part of the range was tried in vain.
        """
        with self.bind(host) as probe:
            return int(probe.getsockname()[1])

    def bind(self, host: str) -> socket.socket:
        """Returns a socket with a port of its own, which does not listen yet.

        Raises:
            DriverError: a good part of the range was tried in vain.
        """
        for _ in range(_TRIES):
            port = random.randint(self.first, self.last)  # noqa: S311 a port is no secret
            bound = bind(host, port)
            if bound is not None:
                return bound
        raise DriverError("no port is free")


def bind(host: str, port: int) -> socket.socket | None:
    """Returns a socket with that port, which does not listen yet; None when another has it."""
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        return None
    return made
