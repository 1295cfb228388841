"""The routes in Postgres: one function a query."""

from typing import Any

import asyncpg

from services.app_proxy.routes import Erased, Route, RouteState
from services.app_proxy.service import Forget, ForgetAll, Write
from services.shared.errors import AlreadyExistsError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database


class RouteStore:
    """The routes as they are.

    A host's advisory lock orders what is published of it: whoever writes Valkey holds it and has
    read, or decided, the row's present state.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, route: Route, forget: Forget) -> None:
        """Writes the deployment's route, having called `forget` with another host it had before.

        Raises:
            NotFoundError: the deployment is another tenant's (P-41).
            AlreadyExistsError: the host is another deployment's.
        """
        try:
            async with self._database.tenant(route.tenant_id) as connection:
                old_host = await _host_for_update(connection, route.deployment_id)
                await _upsert(connection, route)
                if old_host is not None and old_host != route.host:
                    await _lock(connection, old_host)
                    await forget(old_host)
        except asyncpg.InsufficientPrivilegeError as error:
            raise NotFoundError("deployment") from error
        except asyncpg.UniqueViolationError as error:
            raise AlreadyExistsError("the host is taken", Reason.HOST_TAKEN) from error

    async def get(self, tenant: TenantId, host: str) -> Route | None:
        """Returns the tenant's own route of `host`."""
        async with self._database.tenant(tenant) as connection:
            return await _select(connection, host)

    async def find(self, host: str) -> Route | None:
        """Returns whoever's route of `host`: a visitor's tenant is not known before its route."""
        async with self._database.service() as connection:
            return await _select(connection, host)

    async def delete(self, tenant: TenantId, deployment_id: DeploymentId, forget: Forget) -> None:
        """Deletes the tenant's own route, having called `forget` with its host.

        Forgotten before the commit: were it after, a crash between the two would leave the host
        remembered, with no row left by which a repeated call could find it.
        """
        async with self._database.tenant(tenant) as connection:
            host = await _host_for_update(connection, deployment_id)
            if host is not None:
                await _lock(connection, host)
                await forget(host)
                await connection.execute(
                    "DELETE FROM routes WHERE deployment_id = $1", deployment_id
                )

    async def erase(self, tenant: TenantId, forget_all: ForgetAll) -> Erased:
        """Deletes all routes of the tenant, having called `forget_all` with their hosts.

        Forgotten before the commit, as when one is deleted. No route can be put from then on.
        """
        async with self._database.tenant(tenant) as connection:
            if (done := await _bury(connection, tenant)) is not None:
                return done
            hosts = await _locked_hosts(connection, tenant)
            await forget_all(hosts)
            await connection.execute("DELETE FROM routes WHERE tenant_id = $1", tenant)
            row = await connection.fetchrow(
                "UPDATE tombstones SET routes = $2 WHERE tenant_id = $1"
                " RETURNING erased_at, routes",
                tenant,
                len(hosts),
            )
        assert row is not None  # noqa: S101 the same transaction wrote it
        return Erased(row["erased_at"], row["routes"])

    async def publish(self, host: str, write: Write) -> None:
        """Calls `write` with the present route of `host`, one publisher of a host at a time."""
        async with self._database.service() as connection:
            await _lock(connection, host)
            await write(host, await _select(connection, host))


async def _bury(connection: Connection, tenant: TenantId) -> Erased | None:
    """Lets no route of the tenant be put any more; returns what it had if it is erased already."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('erasure ' || $1, 0))", tenant
    )
    status = await connection.execute(
        "INSERT INTO tombstones (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant
    )
    if status == "INSERT 0 1":
        return None
    row = await connection.fetchrow(
        "SELECT erased_at, routes FROM tombstones WHERE tenant_id = $1", tenant
    )
    assert row is not None  # noqa: S101 it is why nothing was inserted
    return Erased(row["erased_at"], row["routes"])


async def _locked_hosts(connection: Connection, tenant: TenantId) -> list[str]:
    """Returns the hosts of the tenant's routes; nothing is published of any until the commit."""
    rows = await connection.fetch(
        "SELECT host FROM routes WHERE tenant_id = $1 ORDER BY host FOR UPDATE", tenant
    )
    hosts = [str(row["host"]) for row in rows]
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('route:' || host, 0))"
        " FROM unnest($1::text[]) WITH ORDINALITY AS every (host, place) ORDER BY place",
        hosts,
    )
    return hosts


async def _host_for_update(connection: Connection, deployment_id: DeploymentId) -> str | None:
    host: str | None = await connection.fetchval(
        "SELECT host FROM routes WHERE deployment_id = $1 FOR UPDATE", deployment_id
    )
    return host


async def _lock(connection: Connection, host: str) -> None:
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('route:' || $1, 0))", host
    )


async def _upsert(connection: Connection, route: Route) -> None:
    await connection.execute(
        "INSERT INTO routes"
        " (deployment_id, tenant_id, host, state, name, mcp, database_generation)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)"
        " ON CONFLICT (deployment_id) DO UPDATE SET host = excluded.host,"
        " state = excluded.state, name = excluded.name, mcp = excluded.mcp,"
        " database_generation = excluded.database_generation, updated_at = now()",
        route.deployment_id,
        route.tenant_id,
        route.host,
        route.state.value,
        route.name,
        route.mcp,
        route.database_generation,
    )


async def _select(connection: Connection, host: str) -> Route | None:
    row = await connection.fetchrow(
        "SELECT deployment_id, tenant_id, host, state, name, mcp, database_generation"
        " FROM routes WHERE host = $1",
        host,
    )
    return _route(row) if row is not None else None


def _route(row: Any) -> Route:
    return Route(
        host=row["host"],
        deployment_id=DeploymentId(row["deployment_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        state=RouteState(row["state"]),
        name=row["name"],
        mcp=row["mcp"],
        database_generation=row["database_generation"],
    )
