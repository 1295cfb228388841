"""What auth does with keys."""

from collections.abc import Sequence
from datetime import datetime

from services.auth import owned_store, pepper_store, resolution_store, store
from services.auth.domain import (
    OPERATOR_SCOPES,
    IssuedKey,
    JobLifetimes,
    Key,
    NewKey,
    Owned,
    earliest,
    granted_scopes,
    job_scopes,
)
from services.auth.minting import Mint, write_key
from services.auth.pepper import Keyring
from services.auth.revocation_store import announce_revocation
from services.shared.clock import Clock
from services.shared.errors import InvalidFieldError
from services.shared.ids import KeyId, TenantId, new_key_id, random_text
from services.shared.keyformat import digest, hint
from services.shared.postgres import Connection, Database
from services.shared.principal import KeyKind, Principal

_BOOTSTRAP = KeyId("key_bootstrap")


class Keys:
    """Keys: issued, listed, resolved, lent to jobs."""

    def __init__(
        self,
        database: Database,
        mint: Mint,
        keyring: Keyring,
        clock: Clock,
        lifetimes: JobLifetimes,
    ) -> None:
        self._database = database
        self._mint = mint
        self._keyring = keyring
        self._clock = clock
        self._lifetimes = lifetimes

    async def issue(
        self,
        issuer: Principal,
        request_id: str,
        owned: Owned | None,
        scopes: Sequence[str],
        name: str,
        expires_at: datetime | None,
    ) -> IssuedKey:
        """Returns a new key of the issuer's tenant, or of one of its deployments or connections.

        It expires when it is asked to, and never later than the issuer's own key.

        Raises:
            InvalidFieldError: it would be expired already.
            NotFoundError: the deployment or connection is not the tenant's.
            AlreadyExistsError: the request was made before and its key is in use.
        """
        if expires_at is not None and expires_at <= self._clock():
            raise InvalidFieldError("expire_time", "must be in the future")
        kind = KeyKind.TENANT if owned is None else KeyKind(owned.kind)
        issued, key = self._mint.key(
            kind,
            owned,
            granted_scopes(kind, scopes, issuer),
            issuer.key_id,
            request_id,
            name,
            expires_at=earliest(expires_at, issuer.expires_at),
        )
        async with self._database.tenant(issuer.tenant) as connection:
            await store.hold_tenant(connection, issuer.tenant)
            if owned is not None:
                await owned_store.lock(connection, issuer.tenant, owned)
            return await write_key(connection, issuer.tenant, issued, key)

    async def delegate(
        self, issuer: Principal, peer: str, purpose: str, scopes: Sequence[str] = ()
    ) -> IssuedKey:
        """Returns a key with which a job of `peer` acts for the issuer's tenant.

        A job gives itself another before its own expires, also when the tenant is closed.

        Raises:
            InvalidFieldError: a scope that no job can have.
            PermissionDeniedError: a scope that the issuer does not hold itself.
            UnauthenticatedError: the job's key was revoked meanwhile.
            NotFoundError: the tenant is closed, or erased.
        """
        granted = job_scopes(scopes, issuer)
        async with self._database.tenant(issuer.tenant) as connection:
            closed = await _hold(connection, issuer)
            lifetime = self._lifetimes.closing if closed else self._lifetimes.usual
            issued, key = self._mint.key(
                KeyKind.JOB,
                None,
                granted,
                issuer.key_id,
                f"job/{random_text()}",
                purpose,
                bound_peer=peer,
                expires_at=self._clock() + lifetime,
            )
            await store.delete_expired_jobs(connection, issuer.tenant)
            return await write_key(connection, issuer.tenant, issued, key)

    async def put_operator_key(self, key: str) -> None:
        """Makes `key` the operator's."""
        record = NewKey(
            key_id=new_key_id(),
            kind=KeyKind.OPERATOR,
            owned=None,
            digest=self._keyring.current.apply(digest(key)),
            pepper_id=self._keyring.current.id,
            hint=hint(key),
            name="operator",
            scopes=OPERATOR_SCOPES,
            issued_by=_BOOTSTRAP,
            request_id="bootstrap",
        )
        async with self._database.service() as connection:
            changed = await store.put_operator_key(connection, record)
            if changed is not None:
                await announce_revocation(connection, [changed])

    async def page(
        self,
        tenant_id: TenantId,
        owned: Sequence[Owned],
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[Key]:
        """Returns the tenant's keys, newest first; of what is `owned` alone when that is named."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.list_keys(connection, tenant_id, owned, after, limit)

    async def resolve(self, digests: Sequence[bytes]) -> tuple[int, list[Principal | None]]:
        """Returns the last revocation taken into account, and whose each key is.

        Keys under a previous pepper are stored under the current one from then on.
        """
        asked = [self._keyring.candidates(key_digest) for key_digest in digests]
        async with self._database.service() as connection:
            sequence, matches = await resolution_store.resolve_keys(connection, asked)
            moves = {
                candidates[match.place]: candidates[0]
                for candidates, match in zip(asked, matches, strict=True)
                if match is not None and self._keyring.is_previous(match.place)
            }
            if moves:
                await pepper_store.move_keys(connection, moves, self._keyring.current.id)
        return sequence, [match.principal if match is not None else None for match in matches]


async def _hold(connection: Connection, issuer: Principal) -> bool:
    """Returns whether the issuer's tenant is closed, which it stays, or not, until the commit."""
    if issuer.kind is KeyKind.JOB:
        return await store.hold_tenant_of_job(connection, issuer.tenant, issuer.key_id)
    await store.hold_tenant(connection, issuer.tenant)
    return False
