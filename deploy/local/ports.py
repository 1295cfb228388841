"""Ports of the loopback interface for the processes of one stack."""

import os
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

LOOPBACK = "127.0.0.1"
# Below the range from which the system takes ports for outgoing connections, and apart from that of
# deployments' databases: a port that is kept from one start to the next is still free then.
_FIRST, _LAST = 10_000, 19_999
RANGE_VARIABLE = "BULKHEAD_PORT_RANGE"


def free_ports(count: int) -> list[int]:
    """Returns `count` different TCP ports that nothing listens on now."""
    return list(islice(_free_ports(), count))


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now; one in TIME_WAIT counts as free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def keep_or_pick(kept: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
    """Returns a port per name: the kept one while it is free, a fresh one otherwise."""
    wanted = list(names)
    usable = {name: kept[name] for name in wanted if name in kept and is_free(kept[name])}
    missing = [name for name in wanted if name not in usable]
    fresh = (port for port in _free_ports() if port not in usable.values())
    return usable | dict(zip(missing, islice(fresh, len(missing)), strict=True))


def _free_ports() -> Iterator[int]:
    first, last = _range()
    candidates = list(range(first, last + 1))
    secrets.SystemRandom().shuffle(candidates)
    return (port for port in candidates if is_free(port))


def _range() -> tuple[int, int]:
    # Two that pick at the same moment could pick the same port: those who know of each other are
    # given a range each, as `10000-14999`.
    first, _, last = os.environ.get(RANGE_VARIABLE, f"{_FIRST}-{_LAST}").partition("-")
    return int(first), int(last)
