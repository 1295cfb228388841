"""How keys end: revoked, or replaced by a successor."""

from dataclasses import replace
from datetime import datetime, timedelta

from services.auth import ending_store, owned_store, store
from services.auth.domain import (
    Effect,
    IssuedKey,
    Key,
    NewKey,
    Rotated,
    check_held,
    earliest,
    key_ended,
)
from services.auth.effects import Effects
from services.auth.minting import Mint, replayed
from services.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
)
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection, Database
from services.shared.principal import Principal


class Endings:
    """Ends keys, and answers when that holds in every replica (P-37)."""

    def __init__(self, database: Database, mint: Mint, effects: Effects) -> None:
        self._database = database
        self._mint = mint
        self._effects = effects

    async def revoke(self, tenant_id: TenantId, key_id: KeyId) -> tuple[datetime, Effect]:
        """Revokes the key; returns since when it is revoked, and the effect.

        Raises:
            NotFoundError: no key of the tenant.
            UnavailableError: it is revoked, but that is not known to hold everywhere yet.
        """
        async with self._database.tenant(tenant_id) as connection:
            key, _ = await ending_store.get_key(connection, tenant_id, key_id, lock=True)
            revoked_at, sequence = key.revoked_at, key.announced or 0
            if revoked_at is None:
                sequence, revoked_at = await ending_store.end_keys(connection, tenant_id, [key_id])
        return revoked_at, await self._effects.of(sequence)

    async def rotate(
        self, issuer: Principal, request_id: str, key_id: KeyId, grace: timedelta
    ) -> tuple[Rotated, Effect]:
        """Returns the key's successor, once every replica knows until when the key works on.

        Raises:
            NotFoundError: no key of the tenant.
            PermissionDeniedError: the issuer lacks a scope of the key, or the key is an operator's.
            FailedPreconditionError: the key is revoked, expired or replaced, or lives longer than
                the issuer's own.
            AlreadyExistsError: the request was made before with other content, or its key is used.
        """
        async with self._database.tenant(issuer.tenant) as connection:
            rotated = await self._rotate(connection, issuer, request_id, key_id, grace)
        return rotated, await self._effects.of(rotated.announced)

    async def _rotate(
        self,
        connection: Connection,
        issuer: Principal,
        request_id: str,
        key_id: KeyId,
        grace: timedelta,
    ) -> Rotated:
        await store.hold_tenant(connection, issuer.tenant)
        old, now = await _locked(connection, issuer.tenant, key_id)
        if old.support_reason is not None:
            raise PermissionDeniedError("a support key has no successor", Reason.KEY_KIND_REFUSED)
        check_held(old.scopes, issuer)
        issued, key = self._successor(old, issuer, request_id, grace)
        if await ending_store.made_before(connection, issuer.tenant, request_id):
            return await _repeated(connection, issuer, old, issued, key)
        if old.ended(now):
            raise key_ended()
        _check_reaches(issuer, old, old.expires_at)
        await store.insert_key(connection, issuer.tenant, key)
        announced, ends_at = await ending_store.replace_key(connection, issuer.tenant, key)
        return Rotated(issued, ends_at, announced)

    def _successor(
        self, old: Key, issuer: Principal, request_id: str, grace: timedelta
    ) -> tuple[IssuedKey, NewKey]:
        return self._mint.key(
            old.kind,
            old.owned,
            old.scopes,
            issuer.key_id,
            request_id,
            old.name,
            expires_at=earliest(old.expires_at, issuer.expires_at),
            predecessor=old.key_id,
            grace=grace,
        )


async def _locked(
    connection: Connection, tenant_id: TenantId, key_id: KeyId
) -> tuple[Key, datetime]:
    """Returns the key; neither it nor what it is of ends until the commit."""
    key, _ = await ending_store.get_key(connection, tenant_id, key_id)
    if key.owned is not None:
        try:
            await owned_store.lock(connection, tenant_id, key.owned)
        except NotFoundError:
            # Retired, and its keys with it.
            raise key_ended() from None
    return await ending_store.get_key(connection, tenant_id, key_id, lock=True)


def _check_reaches(issuer: Principal, old: Key, ends_at: datetime | None) -> None:
    """Checks that a successor that ends at `ends_at` does not outlive the issuer's key.

    Else whoever holds a key for a while could end others with its own, or gain one for longer by
    repeating a rotation. A key may always replace itself.

    Raises:
        FailedPreconditionError: the issuer's key ends sooner.
    """
    if issuer.expires_at is None or issuer.key_id == old.key_id:
        return
    if ends_at is None or ends_at > issuer.expires_at:
        raise FailedPreconditionError(
            "the presented key ends before the one that it is to replace",
            Reason.KEY_EXPIRES_SOONER,
        )


async def _repeated(
    connection: Connection, issuer: Principal, old: Key, issued: IssuedKey, key: NewKey
) -> Rotated:
    again = await ending_store.reissue_successor(connection, issuer.tenant, key)
    ends_at = old.revoked_at or old.expires_at
    if again is None or ends_at is None or old.successor != again[0]:
        raise replayed("this request_id was used before; its key cannot be shown again")
    key_id, expires_at = again
    _check_reaches(issuer, old, expires_at)
    return Rotated(
        replace(issued, key_id=key_id, expires_at=expires_at), ends_at, old.announced or 0
    )
