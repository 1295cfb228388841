"""The use cases: routes as the provisioner writes them, and the check of each request."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from services.app_proxy.door import (
    Allowance,
    Guest,
    Refusal,
    Visit,
    key_invalid,
    key_missing,
    not_running,
    opens,
    over_limit,
    presented_key,
    unavailable,
    unknown_host,
)
from services.app_proxy.routes import Erased, Remembered, Route, host_of, routable_host
from services.shared.errors import NotFoundError, UnavailableError
from services.shared.ids import DeploymentId, TenantId
from services.shared.keyformat import DEFAULT_PREFIX, digest, well_formed
from services.shared.principal import Principal

Forget = Callable[[str], Awaitable[None]]
ForgetAll = Callable[[Sequence[str]], Awaitable[None]]
Write = Callable[[str, Route | None], Awaitable[None]]


class RouteRows(Protocol):
    """The routes as they are: Postgres."""

    async def put(self, route: Route, forget: Forget) -> None:
        """Writes the deployment's route; calls `forget` with another host that it had before."""
        ...

    async def get(self, tenant: TenantId, host: str) -> Route | None:
        """Returns the tenant's own route of `host`."""
        ...

    async def find(self, host: str) -> Route | None:
        """Returns whoever's route of `host`."""
        ...

    async def delete(self, tenant: TenantId, deployment_id: DeploymentId, forget: Forget) -> None:
        """Deletes the tenant's own route, having called `forget` with its host."""
        ...

    async def erase(self, tenant: TenantId, forget_all: ForgetAll) -> Erased:
        """Deletes all routes of the tenant, having called `forget_all` with their hosts."""
        ...

    async def publish(self, host: str, write: Write) -> None:
        """Calls `write` with the present route of `host`, one publisher of a host at a time."""
        ...


class RouteCache(Protocol):
    """The routes as they are remembered: Valkey."""

    async def look_up(self, host: str) -> Remembered | None:
        """Returns what is remembered of `host`; None when nothing is."""
        ...

    async def refill(self, host: str, route: Route | None) -> None:
        """Remembers what was read, unless something newer is remembered already."""
        ...

    async def write(self, host: str, route: Route | None) -> None:
        """Remembers what was written, over anything else."""
        ...

    async def forget(self, host: str) -> None:
        """Remembers for a while that `host` is nobody's, over anything else."""
        ...

    async def forget_all(self, hosts: Sequence[str]) -> None:
        """Remembers for a while that none of `hosts` is anybody's, over anything else."""
        ...


class Keys(Protocol):
    """auth, as the one that knows whose keys are whose."""

    async def resolve(self, key_digest: bytes) -> Principal | None:
        """Returns whose key has the digest; None when no valid key has."""
        ...


class Limits(Protocol):
    """ratelimit."""

    async def acquire(self, key_digest: bytes) -> Allowance:
        """Takes one call of the key's deployment."""
        ...


class Routing:
    """The routes: written to Postgres first, then published to Valkey."""

    def __init__(self, rows: RouteRows, cache: RouteCache, domain: str) -> None:
        self._rows = rows
        self._cache = cache
        self._domain = domain

    async def put(self, route: Route) -> None:
        """Creates or replaces the deployment's route; every replica knows it when this returns.

        Raises:
            InvalidFieldError: the host is not one below the platform's domain.
            NotFoundError: the deployment's route is another tenant's (P-41).
            AlreadyExistsError: the host is another deployment's; not said whose (P-41).
            UnavailableError: a store is away; repeating it is safe and needed.
        """
        routable_host("route.host", route.host, self._domain)
        await self._rows.put(route, self._cache.forget)
        await self._rows.publish(route.host, self._cache.write)

    async def get(self, tenant: TenantId, host: str) -> Route:
        """Returns the tenant's route of exactly this host.

        Raises:
            NotFoundError: the host is nobody's, or another tenant's (P-41).
        """
        route = await self._rows.get(tenant, host)
        if route is None:
            raise NotFoundError("route")
        return route

    async def delete(self, tenant: TenantId, deployment_id: DeploymentId) -> None:
        """Deletes the deployment's route; its host is unknown to every replica when this returns.

        Deleting what is not there is fine.

        Raises:
            UnavailableError: a store is away; repeating it is safe and needed.
        """
        await self._rows.delete(tenant, deployment_id, self._cache.forget)

    async def erase(self, tenant: TenantId) -> Erased:
        """Deletes every route of the tenant; its hosts are unknown to every replica at the return.

        None can be put again (P-39). Asked again, it answers the same.

        Raises:
            UnavailableError: a store is away; repeating it is safe and needed.
        """
        return await self._rows.erase(tenant, self._cache.forget_all)

    async def find(self, host: str) -> Route | None:
        """Returns whoever's route of `host`: remembered, or read and then remembered."""
        try:
            known = await self._cache.look_up(host)
        except UnavailableError:
            return await self._rows.find(host)
        if known is not None:
            return known.route
        route = await self._rows.find(host)
        await self._refill(host, route)
        return route

    async def _refill(self, host: str, route: Route | None) -> None:
        try:
            await self._cache.refill(host, route)
        except UnavailableError as error:
            structlog.get_logger().warning("route not remembered", host=host, why=error.message)


FindRoute = Callable[[str], Awaitable[Route | None]]

_RECENT_SECONDS = 1.0
_MOST_RECENT = 10_000


class RecentRoutes:
    """The routes by which requests were admitted within the last second."""

    def __init__(self) -> None:
        self._routes: dict[str, tuple[Route, float]] = {}

    def remember(self, route: Route) -> None:
        """Remembers the route for a second."""
        if len(self._routes) >= _MOST_RECENT:
            self._routes.clear()
        self._routes[route.host] = (route, time.monotonic() + _RECENT_SECONDS)

    def get(self, host: str) -> Route | None:
        """Returns the route of `host`, if a request was admitted by it just now."""
        route, until = self._routes.get(host, (None, 0.0))
        return route if time.monotonic() < until else None


class Door:
    """Checks requests: host, state, key, deployment, limit, in this order; it fails closed."""

    def __init__(
        self,
        find_route: FindRoute,
        keys: Keys,
        limits: Limits,
        key_prefix: str = DEFAULT_PREFIX,
    ) -> None:
        self._find_route = find_route
        self._keys = keys
        self._limits = limits
        self._key_prefix = key_prefix
        self._admitted = RecentRoutes()

    async def admit(self, visit: Visit) -> Guest | Refusal:
        """Returns who visits, having taken one call of its limits; or why the visit ends here."""
        guest = await self._identified(visit, self._find_route)
        if isinstance(guest, Refusal):
            return guest
        try:
            allowance = await self._limits.acquire(digest(guest.key))
        except UnavailableError as error:
            return unavailable(error)
        self._admitted.remember(guest.route)
        return over_limit(allowance) or replace(guest, quotas=allowance.quotas)

    async def identify(self, visit: Visit) -> Guest | Refusal:
        """Returns who visits, or why the visit ends here; for a request that was admitted before.

        The route may be the one by which a request was admitted here up to a second ago.
        """
        return await self._identified(visit, self._find_recent)

    async def _find_recent(self, host: str) -> Route | None:
        return self._admitted.get(host) or await self._find_route(host)

    async def _identified(self, visit: Visit, find: FindRoute) -> Guest | Refusal:
        try:
            route = await self._route(visit.authority, find)
            if route is None:
                return unknown_host()
            return not_running(route) or await self._guest(route, visit.authorization)
        except UnavailableError as error:
            return unavailable(error)

    async def _route(self, authority: str, find: FindRoute) -> Route | None:
        host = host_of(authority)
        return await find(host) if host is not None else None

    async def _guest(self, route: Route, authorization: str | None) -> Guest | Refusal:
        key = presented_key(authorization)
        if key is None:
            return key_missing()
        if not well_formed(key, self._key_prefix):
            return key_invalid()
        principal = await self._keys.resolve(digest(key))
        if not opens(principal, route) or principal is None:
            return key_invalid()
        return Guest(route, principal, key)
