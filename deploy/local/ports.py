"""Ports of the loopback interface for the processes of one stack."""

import socket
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Returns `count` different TCP ports that nothing listens on now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now; one in TIME_WAIT counts as free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def keep_or_pick(kept: dict[str, int], names: Iterable[str]) -> dict[str, int]:
    """Returns a port per name: the kept one while it is free, a fresh one otherwise."""
    wanted = list(names)
    usable = {name: kept[name] for name in wanted if name in kept and is_free(kept[name])}
    missing = [name for name in wanted if name not in usable]
    return usable | dict(zip(missing, free_ports(len(missing)), strict=True))
