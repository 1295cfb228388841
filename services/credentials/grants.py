"""Keeping what a provider granted: sealed, in the transaction of whoever asked for it."""

from collections.abc import Sequence
from datetime import datetime

from services.credentials import grant_store as store
from services.credentials.domain import Grant, scope_key
from services.shared.crypto import Place, TenantCipher
from services.shared.errors import NotFoundError
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Connection as DbConnection


async def keep_grant(
    db: DbConnection,
    cipher: TenantCipher,
    tenant: TenantId,
    connection: ConnectionId,
    grant: Grant,
    *,
    asked: Sequence[str],
    asked_at: datetime | None = None,
) -> None:
    """Makes the connection active with `grant`, in place of whatever it had.

    `asked` are the scopes that were asked for: what the provider granted when it does not say
    (RFC 6749, 5.1). `asked_at`, by the database's clock, is when the provider was asked: a token's
    life counts from then; None: from this transaction on.

    Raises:
        NotFoundError: the connection is gone, or going.
    """
    sealed_refresh = (
        None
        if grant.refresh_token is None
        else cipher.seal(refresh_place(connection), grant.refresh_token)
    )
    scopes = granted_scopes(grant, asked)
    if not await store.renew_connection(
        db, connection, sealed_refresh_token=sealed_refresh, scopes=scopes
    ):
        raise NotFoundError("connection")
    await store.drop_access_tokens(db, connection)
    token = sealed_token(cipher, connection, grant, asked, narrowed=False)
    await store.put_access_token(db, tenant, connection, token, asked_at)


def sealed_token(
    cipher: TenantCipher,
    connection: ConnectionId,
    grant: Grant,
    asked: Sequence[str],
    *,
    narrowed: bool,
) -> store.SealedToken:
    """Returns the grant's access token for its row."""
    key = scope_key(tuple(asked)) if narrowed else ""
    return store.SealedToken(
        scope_key=key,
        sealed=cipher.seal(token_place(connection, key), grant.access_token),
        token_type=grant.token_type,
        expires_in=grant.expires_in,
        scopes=granted_scopes(grant, asked),
    )


def granted_scopes(grant: Grant, asked: Sequence[str]) -> tuple[str, ...] | None:
    """Returns what was granted; None when neither the answer nor the question says it."""
    return grant.scopes if grant.scopes is not None else tuple(asked) or None


def token_place(connection: ConnectionId, key: str) -> Place:
    """Returns where an access token belongs."""
    return Place("access_tokens", f"{connection}/{key}", "sealed_token")


def refresh_place(connection: ConnectionId) -> Place:
    """Returns where a refresh token belongs."""
    return Place("connections", connection, "sealed_refresh_token")


def secret_place(connection: ConnectionId) -> Place:
    """Returns where a static token or an API key belongs."""
    return Place("connections", connection, "sealed_secret")


def client_secret_place(connection: ConnectionId) -> Place:
    """Returns where the secret of a tenant's own OAuth client belongs."""
    return Place("connections", connection, "sealed_client_secret")
