"""Bindings: which connection is lent to which deployment, and under what name (P-22)."""

from dataclasses import dataclass
from datetime import datetime

from services.credentials import binding_store as store
from services.credentials import connection_store
from services.credentials.domain import (
    GOING,
    Binding,
    Connection,
    ConnectionKind,
    ConnectionState,
    StateReason,
)
from services.credentials.ports import Bearer, Registry
from services.credentials.refusals import ceiling_never_kept, needs_reauthorization, not_active
from services.shared.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    Reason,
)
from services.shared.ids import BindingId, ConnectionId, DeploymentId, TenantId, new_binding_id
from services.shared.postgres import Connection as DbConnection
from services.shared.postgres import Database

# What the tenant gave as it is: no provider says what it can do, and none gives it with less.
_UNKNOWN_SCOPES = frozenset({ConnectionKind.STATIC_TOKEN, ConnectionKind.API_KEY})


@dataclass(frozen=True, slots=True)
class WantedBinding:
    """What is to be lent to whom."""

    deployment_id: DeploymentId
    connection_id: ConnectionId
    # Empty: the provider's name.
    alias: str
    # Sorted; empty: no ceiling.
    scope_ceiling: tuple[str, ...]
    expires_at: datetime | None
    # An alias that is taken changes to this connection.
    replace: bool

    def is_met_by(self, binding: Binding) -> bool:
        """Whether `binding`, which has the alias, is already as it is wanted."""
        has = (binding.connection_id, binding.scope_ceiling, binding.expires_at)
        return has == (self.connection_id, self.scope_ceiling, self.expires_at)


class Bindings:
    """Lends connections to deployments of the same tenant."""

    def __init__(self, database: Database, registry: Registry, *, per_deployment: int) -> None:
        self._database = database
        self._registry = registry
        self._most = per_deployment

    async def bind(self, tenant: TenantId, bearer: Bearer, wanted: WantedBinding) -> Binding:
        """Returns the binding; the same one again changes nothing.

        Raises:
            NotFoundError: the deployment or the connection is not the tenant's, or is going.
            AlreadyExistsError: the deployment has the alias for something else.
            FailedPreconditionError: the connection is another deployment's alone, is not active
                and would take the place of another, or cannot keep to a ceiling.
            LimitExceededError: the deployment has as many bindings as it may have.
            UnavailableError: auth or the database is away; nothing was lent.
        """
        await self._check_deployment(tenant, bearer, wanted.deployment_id)
        async with self._database.tenant(tenant) as db:
            # In this order everywhere: deployment, connection, bindings.
            if not await store.lock_deployment(db, tenant, wanted.deployment_id):
                raise NotFoundError("deployment")
            connection = await connection_store.get(db, wanted.connection_id, lock=True)
            if connection is None or connection.state in GOING:
                raise NotFoundError("connection")
            return await self._write(db, tenant, connection, wanted)

    async def unbind(self, tenant: TenantId, binding: BindingId) -> None:
        """Ends the binding: the next vend heeds it.

        Raises:
            NotFoundError: the tenant has none of that id.
        """
        async with self._database.tenant(tenant) as db:
            if not await store.delete(db, tenant, binding):
                raise NotFoundError("binding")

    async def page(
        self,
        tenant: TenantId,
        deployment: DeploymentId | None,
        connection: ConnectionId | None,
        before: tuple[datetime, str] | None,
        most: int,
    ) -> list[Binding]:
        """Returns at most `most` of the tenant's bindings, newest first."""
        async with self._database.tenant(tenant) as db:
            return await store.page(db, tenant, deployment, connection, before, most)

    async def release(self, tenant: TenantId, deployment: DeploymentId) -> int:
        """Ends every binding of the deployment, for good; returns how many there were.

        Of a deployment that is another tenant's, or that nothing was ever lent to, there are none.
        """
        async with self._database.tenant(tenant) as db:
            return await store.release_deployment(db, tenant, deployment)

    async def _check_deployment(
        self, tenant: TenantId, bearer: Bearer, deployment: DeploymentId
    ) -> None:
        """Asks auth whose it is; from then on its row here says so, and whether it is going."""
        await self._registry.verify(bearer, deployment)
        async with self._database.tenant(tenant) as db:
            is_new = await store.remember_deployment(db, tenant, deployment)
        if is_new:
            # It may have been retired, and released, before there was a row to say so.
            await self._registry.verify(bearer, deployment)

    async def _write(
        self, db: DbConnection, tenant: TenantId, connection: Connection, wanted: WantedBinding
    ) -> Binding:
        alias = wanted.alias or connection.provider
        if wanted.expires_at is not None and wanted.expires_at <= await connection_store.now(db):
            raise InvalidFieldError("expire_time", "must be in the future")
        if wanted.scope_ceiling and connection.kind in _UNKNOWN_SCOPES:
            raise ceiling_never_kept()
        await store.end_expired(db, wanted.deployment_id, alias, wanted.connection_id)
        there = await store.of_alias(db, wanted.deployment_id, alias)
        if there is not None and wanted.is_met_by(there):
            return there
        if there is not None and not wanted.replace:
            raise _alias_taken(there)
        if there is not None and there.connection_id != connection.connection_id:
            _check_works(connection)
        if connection.exclusive:
            await _check_free(db, wanted, alias)
        if there is None and await store.count(db, wanted.deployment_id) >= self._most:
            raise LimitExceededError(
                f"at most {self._most} bindings are allowed", Reason.CONNECTION_LIMIT, "bindings"
            )
        return await store.put(db, tenant, _row(connection, wanted, alias))


def _check_works(connection: Connection) -> None:
    """Returns when the connection may take the place of one that may be in use this moment."""
    if connection.state is ConnectionState.NEEDS_REAUTHORIZATION:
        raise needs_reauthorization(
            connection.state_reason or StateReason.GRANT_REFUSED,
            connection.kind,
            connection.connection_id,
        )
    if connection.state is not ConnectionState.ACTIVE:
        raise not_active()


async def _check_free(db: DbConnection, wanted: WantedBinding, alias: str) -> None:
    # The connection's row is locked: nobody else lends it meanwhile.
    holder = await store.holder(db, wanted.connection_id, wanted.deployment_id, alias)
    if holder is not None:
        raise FailedPreconditionError(
            f"the connection serves one deployment alone, and has one: {holder}",
            Reason.CONNECTION_EXCLUSIVE,
            metadata={"deployment_id": holder},
        )


def _alias_taken(there: Binding) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"the deployment has a connection as {there.alias}; `replace` changes it",
        Reason.ALIAS_TAKEN,
        metadata={"binding_id": there.binding_id},
    )


def _row(connection: Connection, wanted: WantedBinding, alias: str) -> store.NewRow:
    return store.NewRow(
        binding_id=new_binding_id(),
        deployment_id=wanted.deployment_id,
        connection_id=wanted.connection_id,
        exclusive=connection.exclusive,
        alias=alias,
        scope_ceiling=wanted.scope_ceiling,
        expires_at=wanted.expires_at,
    )
