"""What auth does."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from services.auth import audit_store, store
from services.auth.domain import (
    JOB_SCOPES,
    OPERATOR_SCOPES,
    TENANT_SCOPES,
    AuditEvent,
    IssuedKey,
    Key,
    NewKey,
    Pepper,
    Revocation,
    Tenant,
    granted_scopes,
)
from services.auth.revocations import RevocationFeed
from services.shared.clock import Clock
from services.shared.errors import AlreadyExistsError, Reason
from services.shared.ids import (
    AuditEventId,
    DeploymentId,
    KeyId,
    TenantId,
    new_audit_event_id,
    new_key_id,
    new_tenant_id,
    random_text,
)
from services.shared.keyformat import digest, hint, new_key
from services.shared.postgres import Connection, Database
from services.shared.principal import KeyKind, Plan, Principal

_BOOTSTRAP = KeyId("key_bootstrap")


class AuthService:
    """Tenants, keys and the audit log, over one database."""

    def __init__(
        self,
        database: Database,
        pepper: Pepper,
        feed: RevocationFeed,
        clock: Clock,
        *,
        key_prefix: str,
        job_key_lifetime: timedelta,
    ) -> None:
        self._database = database
        self._pepper = pepper
        self._feed = feed
        self._clock = clock
        self._key_prefix = key_prefix
        self._job_key_lifetime = job_key_lifetime

    async def create_tenant(
        self, operator: Principal, request_id: str, name: str, plan: Plan
    ) -> tuple[Tenant, IssuedKey]:
        """Returns the tenant and its first key; the same request again creates nothing new.

        Raises:
            AlreadyExistsError: the request was made before with other content, or its key is in
                use already and so cannot be shown again.
        """
        issued, key = self._mint(
            KeyKind.TENANT,
            None,
            TENANT_SCOPES,
            operator.key_id,
            f"create/{request_id}",
            "first key",
        )
        async with self._database.service() as connection:
            await store.insert_tenant(
                connection, new_tenant_id(), name, plan, operator.key_id, request_id
            )
            tenant = await store.tenant_of_request(connection, operator.key_id, request_id)
            if (tenant.name, tenant.plan) != (name, plan):
                raise _replayed("this request_id created another tenant")
            return tenant, await _write_key(connection, tenant.tenant_id, issued, key)

    async def get_tenant(self, tenant_id: TenantId) -> Tenant:
        """Returns the tenant."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.get_tenant(connection, tenant_id)

    async def issue_key(
        self,
        issuer: Principal,
        request_id: str,
        deployment_id: DeploymentId | None,
        scopes: Sequence[str],
        name: str,
    ) -> IssuedKey:
        """Returns a new key of the issuer's tenant, or of one of its deployments.

        Raises:
            NotFoundError: the deployment is not the tenant's.
            AlreadyExistsError: the request was made before and its key is in use.
        """
        kind = KeyKind.TENANT if deployment_id is None else KeyKind.DEPLOYMENT
        granted = granted_scopes(kind, scopes, issuer)
        issued, key = self._mint(kind, deployment_id, granted, issuer.key_id, request_id, name)
        async with self._database.tenant(issuer.tenant) as connection:
            if deployment_id is not None:
                await store.lock_deployment(connection, issuer.tenant, deployment_id)
            return await _write_key(connection, issuer.tenant, issued, key)

    async def delegate(self, issuer: Principal, peer: str, purpose: str) -> IssuedKey:
        """Returns a key with which a job of `peer` acts for the issuer's tenant."""
        issued, key = self._mint(
            KeyKind.JOB,
            None,
            JOB_SCOPES,
            issuer.key_id,
            f"job/{random_text()}",
            purpose,
            bound_peer=peer,
            expires_at=self._clock() + self._job_key_lifetime,
        )
        async with self._database.tenant(issuer.tenant) as connection:
            await store.delete_expired_jobs(connection, issuer.tenant)
            return await _write_key(connection, issuer.tenant, issued, key)

    async def put_operator_key(self, key: str) -> None:
        """Makes `key` the operator's."""
        record = NewKey(
            key_id=new_key_id(),
            kind=KeyKind.OPERATOR,
            deployment_id=None,
            digest=self._pepper.apply(digest(key)),
            hint=hint(key),
            name="operator",
            scopes=OPERATOR_SCOPES,
            issued_by=_BOOTSTRAP,
            request_id="bootstrap",
        )
        async with self._database.service() as connection:
            await store.put_operator_key(connection, record)

    async def revoke_key(self, tenant_id: TenantId, key_id: KeyId) -> datetime:
        """Revokes the key; returns since when it is revoked."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.revoke_key(connection, tenant_id, key_id)

    async def list_keys(
        self,
        tenant_id: TenantId,
        deployment_id: DeploymentId | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Key]:
        """Returns the tenant's keys, newest first."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.list_keys(connection, tenant_id, deployment_id, after, limit)

    async def resolve_keys(self, digests: Sequence[bytes]) -> tuple[int, list[Principal | None]]:
        """Returns the last revocation taken into account, and whose each key is."""
        peppered = [self._pepper.apply(key_digest) for key_digest in digests]
        async with self._database.service() as connection:
            return await store.resolve_keys(connection, peppered)

    def watch_revocations(self) -> AsyncIterator[Revocation]:
        """Yields revocations and heartbeats from now on."""
        return self._feed.watch()

    async def register_deployment(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Binds the deployment's id to the tenant."""
        async with self._database.tenant(tenant_id) as connection:
            await store.register_deployment(connection, tenant_id, deployment_id)

    async def retire_deployment(self, tenant_id: TenantId, deployment_id: DeploymentId) -> int:
        """Revokes every key of the deployment, for good; returns how many were valid."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.retire_deployment(connection, tenant_id, deployment_id)

    async def verify_deployment(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Returns when the deployment is the tenant's."""
        async with self._database.tenant(tenant_id) as connection:
            await store.verify_deployment(connection, tenant_id, deployment_id)

    async def record_audit_event(
        self,
        principal: Principal,
        peer: str,
        method: str,
        resources: Mapping[str, str],
        trace_id: str,
    ) -> AuditEventId:
        """Returns the id of the event once it is written."""
        event = AuditEvent(
            event_id=new_audit_event_id(),
            at=self._clock(),
            key_id=principal.key_id,
            peer=peer,
            method=method,
            resources=resources,
            trace_id=trace_id,
        )
        # An operator has no tenant whose rows a tenant transaction could be confined to.
        transaction = (
            self._database.service()
            if principal.tenant_id is None
            else self._database.tenant(principal.tenant_id)
        )
        async with transaction as connection:
            await audit_store.insert_audit_event(connection, principal.tenant_id, event)
        return event.event_id

    async def list_audit_events(
        self, tenant_id: TenantId, after: tuple[datetime, str] | None, limit: int
    ) -> list[AuditEvent]:
        """Returns the tenant's events, newest first."""
        async with self._database.tenant(tenant_id) as connection:
            return await audit_store.list_audit_events(connection, tenant_id, after, limit)

    def _mint(
        self,
        kind: KeyKind,
        deployment_id: DeploymentId | None,
        scopes: frozenset[str],
        issued_by: KeyId,
        request_id: str,
        name: str,
        *,
        bound_peer: str | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[IssuedKey, NewKey]:
        key = new_key(kind, self._key_prefix)
        key_id = new_key_id()
        issued = IssuedKey(key_id, key, kind, deployment_id, scopes, expires_at)
        record = NewKey(
            key_id=key_id,
            kind=kind,
            deployment_id=deployment_id,
            digest=self._pepper.apply(digest(key)),
            hint=hint(key),
            name=name,
            scopes=scopes,
            issued_by=issued_by,
            request_id=request_id,
            bound_peer=bound_peer,
            expires_at=expires_at,
        )
        return issued, record


async def _write_key(
    connection: Connection, tenant_id: TenantId, issued: IssuedKey, key: NewKey
) -> IssuedKey:
    """Returns the key as it stands: new, or the repeated request's with a fresh secret."""
    if await store.insert_key(connection, tenant_id, key):
        return issued
    key_id = await store.reissue_key(connection, tenant_id, key)
    if key_id is None:
        raise _replayed("this request_id was used before; its key cannot be shown again")
    return replace(issued, key_id=key_id)


def _replayed(message: str) -> AlreadyExistsError:
    return AlreadyExistsError(message, Reason.REQUEST_REPLAYED)
