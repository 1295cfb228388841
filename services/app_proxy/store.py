"""The routes in Postgres: one function a query."""

from typing import Any

import asyncpg

from services.app_proxy.routes import Route, RouteState
from services.app_proxy.service import Forget, Write
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

    async def publish(self, host: str, write: Write) -> None:
        """Calls `write` with the present route of `host`, one publisher of a host at a time."""
        async with self._database.service() as connection:
            await _lock(connection, host)
            await write(host, await _select(connection, host))


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
        "INSERT INTO routes (deployment_id, tenant_id, host, state, name, mcp)"
        " VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (deployment_id) DO UPDATE SET host = excluded.host,"
        " state = excluded.state, name = excluded.name, mcp = excluded.mcp, updated_at = now()",
        route.deployment_id,
        route.tenant_id,
        route.host,
        route.state.value,
        route.name,
        route.mcp,
    )


async def _select(connection: Connection, host: str) -> Route | None:
    row = await connection.fetchrow(
        "SELECT deployment_id, tenant_id, host, state, name, mcp FROM routes WHERE host = $1",
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
    )
