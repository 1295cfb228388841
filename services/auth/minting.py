"""Making keys: what is shown once, and what is stored."""

from dataclasses import replace
from datetime import datetime, timedelta

from services.auth import store
from services.auth.domain import IssuedKey, NewKey, Owned
from services.auth.pepper import Pepper
from services.shared.errors import AlreadyExistsError, Reason
from services.shared.ids import KeyId, TenantId, new_key_id
from services.shared.keyformat import digest, hint, new_key
from services.shared.postgres import Connection
from services.shared.principal import KeyKind


class Mint:
    """Makes keys of one prefix under one pepper."""

    def __init__(self, pepper: Pepper, key_prefix: str) -> None:
        self._pepper = pepper
        self._key_prefix = key_prefix

    def key(
        self,
        kind: KeyKind,
        owned: Owned | None,
        scopes: frozenset[str],
        issued_by: KeyId,
        request_id: str,
        name: str,
        *,
        bound_peer: str | None = None,
        expires_at: datetime | None = None,
        predecessor: KeyId | None = None,
        grace: timedelta | None = None,
    ) -> tuple[IssuedKey, NewKey]:
        """Returns a new key as it is shown, and as it is stored."""
        key = new_key(kind, self._key_prefix)
        key_id = new_key_id()
        issued = IssuedKey(key_id, key, kind, owned, scopes, expires_at)
        record = NewKey(
            key_id=key_id,
            kind=kind,
            owned=owned,
            digest=self._pepper.apply(digest(key)),
            pepper_id=self._pepper.id,
            hint=hint(key),
            name=name,
            scopes=scopes,
            issued_by=issued_by,
            request_id=request_id,
            bound_peer=bound_peer,
            expires_at=expires_at,
            predecessor=predecessor,
            grace=grace,
        )
        return issued, record


async def write_key(
    connection: Connection, tenant_id: TenantId, issued: IssuedKey, key: NewKey
) -> IssuedKey:
    """Returns the key as it stands: new, or the repeated request's with a fresh secret.

    Raises:
        AlreadyExistsError: the request was made before, and its key is in use or another.
    """
    if await store.insert_key(connection, tenant_id, key):
        return issued
    key_id = await store.reissue_key(connection, tenant_id, key)
    if key_id is None:
        raise replayed("this request_id was used before; its key cannot be shown again")
    return replace(issued, key_id=key_id)


def replayed(message: str) -> AlreadyExistsError:
    """Returns the refusal of a request that was made before."""
    return AlreadyExistsError(message, Reason.REQUEST_REPLAYED)
