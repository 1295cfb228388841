"""The routes as Valkey remembers them, under `deploy:` (P-34)."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster

from services.app_proxy.routes import Remembered, Route, RouteState
from services.shared.coalesce import Coalescer
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, TenantId
from services.shared.redis import Valkey, valkey_errors

_NOBODY = b"-"
# What is slower is done without for a while: a request has no time to wait for it, and Postgres
# knows the same.
_PATIENCE_SECONDS: Final = 0.25
_WITHOUT_SECONDS: Final = 1.0
# Commands under way at once, of the client's connections.
_LANES: Final = 8


class ValkeyRouteCache:
    """Remembers routes for `seconds`, unknown hosts for `unknown_seconds`.

    What is written replaces anything; what was only read is remembered with SET NX, so that a slow
    reader never overwrites a newer write. A deleted host is remembered as nobody's for
    `tombstone_seconds`, longer than any reader takes, for the same reason.
    """

    def __init__(
        self,
        valkey: Valkey,
        *,
        seconds: int,
        unknown_seconds: int,
        tombstone_seconds: int,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self._valkey = valkey
        self._seconds = seconds
        self._unknown_seconds = unknown_seconds
        self._tombstone_seconds = tombstone_seconds
        self._patience = patience_seconds
        self._without_until = 0.0
        self._read: Coalescer[str, Remembered | None] = Coalescer(self._read_all, flights=1)

    async def look_up(self, host: str) -> Remembered | None:
        """Returns what is remembered of `host`; concurrent look-ups travel as one.

        Raises:
            UnavailableError: Valkey is away, or was a moment ago.
        """
        return await self._read(host)

    async def refill(self, host: str, route: Route | None) -> None:
        """Remembers what was read, unless something is remembered already."""
        seconds = self._seconds if route is not None else self._unknown_seconds
        with valkey_errors():
            await self._valkey.set(_key(host), _packed(route), ex=seconds, nx=True)

    async def write(self, host: str, route: Route | None) -> None:
        """Remembers what was written, over anything else."""
        seconds = self._seconds if route is not None else self._tombstone_seconds
        with valkey_errors():
            await self._valkey.set(_key(host), _packed(route), ex=seconds)

    async def forget(self, host: str) -> None:
        """Remembers for a while that `host` is nobody's, over anything else."""
        await self.write(host, None)

    async def forget_all(self, hosts: Sequence[str]) -> None:
        """Remembers for a while that none of `hosts` is anybody's, over anything else."""
        lanes = asyncio.Semaphore(_LANES)

        async def forget(host: str) -> None:
            async with lanes:
                await self.forget(host)

        await asyncio.gather(*(forget(host) for host in hosts))

    async def check(self) -> None:
        """Returns when Valkey answers; raises UnavailableError when it does not."""
        with valkey_errors():
            await self._valkey.get(_key("health"))

    async def _read_all(self, hosts: Sequence[str]) -> list[Remembered | None]:
        if time.monotonic() < self._without_until:
            raise UnavailableError("the store of routes was away a moment ago")
        try:
            values = await self._values([_key(host) for host in hosts])
        except UnavailableError:
            self._without_until = time.monotonic() + _WITHOUT_SECONDS
            raise
        return [_unpacked(host, value) for host, value in zip(hosts, values, strict=True)]

    async def _values(self, keys: list[str]) -> list[Any]:
        with valkey_errors():
            async with asyncio.timeout(self._patience):
                if isinstance(self._valkey, RedisCluster):
                    return list(await self._valkey.mget_nonatomic(keys))
                return list(await self._valkey.mget(keys))


def _key(host: str) -> str:
    return f"deploy:route:{host}"


def _packed(route: Route | None) -> bytes:
    return json.dumps(asdict(route)).encode() if route is not None else _NOBODY


def _unpacked(host: str, value: bytes | str | None) -> Remembered | None:
    """Returns what `value` says; what cannot be read counts as nothing, so Postgres is asked."""
    if value is None:
        return None
    if value == _NOBODY:
        return Remembered(None)
    try:
        route = _route(json.loads(value))
    except (ValueError, KeyError, TypeError):
        return None
    return Remembered(route) if route.host == host else None


def _route(fields: dict[str, Any]) -> Route:
    return Route(
        host=str(fields["host"]),
        deployment_id=DeploymentId(str(fields["deployment_id"])),
        tenant_id=TenantId(str(fields["tenant_id"])),
        state=RouteState(fields["state"]),
        name=str(fields["name"]),
        mcp=fields["mcp"] is True,
        # What was remembered by an earlier version has none.
        database_generation=int(fields.get("database_generation", 0)),
    )
