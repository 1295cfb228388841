"""Deleting a connection: stopped, revoked, no longer lent, its keys dead, erased; in this order.

Each step can be repeated, and a repeated call goes on where the last one ended (P-22).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from services.credentials import deletion_store as store
from services.credentials.deletion_store import SealedGrant, Tombstone
from services.credentials.domain import (
    Connection,
    ConnectionKind,
    ConnectionState,
    GrantRefusedError,
    OAuthClient,
    ProviderError,
    Revocation,
)
from services.credentials.grants import refresh_place, token_place
from services.credentials.ports import Bearer, Gateway, Registry
from services.credentials.providers.catalogue import Catalogue, Provider, RefreshRotation
from services.credentials.providers.clients import OperatorClients
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.sealing import opened_client
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import NotFoundError
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Database

# More than so many wait for their turn: each holds a session of the database's.
REVOCATIONS_AT_ONCE = 4
# Between tries: a provider that is away for longer is not waited for.
_WAITS = (timedelta(seconds=0.2), timedelta(seconds=0.6))


@dataclass(frozen=True, slots=True)
class Revoked:
    """What became of a grant at its provider."""

    revocation: Revocation
    # What a person should do now; empty when nothing.
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of a connection."""

    revoked: Revoked
    bindings_ended: int


@dataclass(frozen=True, slots=True)
class _Held:
    """What the provider can be asked to withdraw, in the open."""

    provider: Provider
    client: OAuthClient
    parameters: Mapping[str, str]
    refresh_token: str | None = field(repr=False)
    access_tokens: Sequence[str] = field(repr=False)


class Revoker:
    """Asks providers to withdraw what they granted (RFC 7009)."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        catalogue: Catalogue,
        operators: OperatorClients,
        gateway: Gateway,
        locks: RefreshLocks,
        *,
        patience: timedelta,
        within: timedelta,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._catalogue = catalogue
        self._operators = operators
        self._gateway = gateway
        self._locks = locks
        # For a refresh under way to end.
        self._patience = patience
        # For a provider to confirm, with all that is tried.
        self._within = within
        self._turns = asyncio.Semaphore(REVOCATIONS_AT_ONCE)

    async def revoke_grant(self, tenant: TenantId, connection_id: ConnectionId) -> Revoked:
        """Returns what became of the grant of a connection that is going, and writes it down.

        Asked again, it returns what is written, and the provider is left alone.

        Raises:
            NotFoundError: there is no such connection.
            UnavailableError: the database is away, or a refresh takes too long.
        """
        # A refresh under way ends first: what is withdrawn must be the newest.
        async with self._turns, self._locks.hold(connection_id, self._patience):
            async with self._database.tenant(tenant) as db:
                known = await store.tombstone(db, connection_id)
                sealed = await store.sealed_grant(db, connection_id)
            if known is None or sealed is None:
                raise NotFoundError("connection")
            if known.revocation is not None:
                return Revoked(known.revocation, known.advice)
            revoked = await self._revoked(tenant, sealed)
            async with self._database.tenant(tenant) as db:
                await store.set_revocation(db, connection_id, revoked.revocation, revoked.advice)
        return revoked

    async def _revoked(self, tenant: TenantId, sealed: SealedGrant) -> Revoked:
        connection = sealed.connection
        provider = self._catalogue.get(connection.provider)
        title = connection.provider if provider is None else provider.title
        if not sealed.holds_a_grant:
            return Revoked(Revocation.NOTHING, _advice(connection, title))
        if connection.kind in (ConnectionKind.STATIC_TOKEN, ConnectionKind.API_KEY):
            return Revoked(
                Revocation.UNSUPPORTED,
                f"{title} still takes this credential: withdraw it in the settings there",
            )
        if provider is None:
            return _failed(title, "it is not in the catalogue any more")
        if provider.oauth is None or not provider.oauth.revocable_tokens:
            return _unsupported(title)
        return await self._asked(tenant, sealed, provider)

    async def _asked(self, tenant: TenantId, sealed: SealedGrant, provider: Provider) -> Revoked:
        try:
            held = await self._opened(tenant, sealed, provider)
        except UnreadableError:
            return _failed(provider.title, "what was kept cannot be decrypted")
        if held is None:
            return _failed(provider.title, "the OAuth client is not there any more")
        if held.refresh_token is None and not held.access_tokens:
            return _unsupported(provider.title)
        try:
            async with asyncio.timeout(self._within.total_seconds()):
                await self._withdraw(held)
        except (ProviderError, TimeoutError) as error:
            structlog.get_logger().warning(
                "a grant was not revoked",
                connection_id=sealed.connection.connection_id,
                provider=provider.name,
                error=type(error).__name__,
            )
            return _failed(provider.title, "it did not confirm")
        if sealed.interrupted and not _repeatable(provider):
            return _failed(provider.title, "a refresh was interrupted, and may have made another")
        return Revoked(Revocation.REVOKED, _advice(sealed.connection, provider.title))

    async def _opened(
        self, tenant: TenantId, sealed: SealedGrant, provider: Provider
    ) -> _Held | None:
        cipher = await self._data_keys.existing(tenant)
        if cipher is None:
            raise UnreadableError("the data key is gone")
        connection = sealed.connection
        client = opened_client(cipher, self._operators, connection, sealed.sealed_client_secret)
        if client is None:
            return None
        hints = () if provider.oauth is None else provider.oauth.revocable_tokens
        return _Held(
            provider,
            client,
            connection.parameters,
            _refresh_token(cipher, sealed) if "refresh_token" in hints else None,
            _access_tokens(cipher, sealed) if "access_token" in hints else (),
        )

    async def _withdraw(self, held: _Held) -> None:
        """Returns when the provider has withdrawn what it takes.

        With a refresh token its access tokens go too (RFC 7009, 2.1): one that is refused then is
        gone already, or goes soon.
        """
        if held.refresh_token is not None:
            await self._revoke(held, held.refresh_token, "refresh_token")
        outcomes = await asyncio.gather(
            *(self._revoke(held, token, "access_token") for token in held.access_tokens),
            return_exceptions=True,
        )
        for outcome in outcomes:
            gone = held.refresh_token is not None and isinstance(outcome, GrantRefusedError)
            if isinstance(outcome, BaseException) and not gone:
                raise outcome

    async def _revoke(self, held: _Held, token: str, hint: str) -> None:
        """Tries a few times: to withdraw twice does no harm (RFC 7009, 2.2)."""
        for wait in (*_WAITS, None):
            try:
                await self._gateway.revoke(
                    held.provider, held.client, held.parameters, token=token, hint=hint
                )
            except GrantRefusedError:
                raise
            except ProviderError:
                if wait is None:
                    raise
                await asyncio.sleep(wait.total_seconds())
            else:
                return


class Deletion:
    """Deletes connections, a step at a time."""

    def __init__(self, database: Database, revoker: Revoker, registry: Registry) -> None:
        self._database = database
        self._revoker = revoker
        self._registry = registry

    async def delete(self, tenant: TenantId, bearer: Bearer, connection: ConnectionId) -> Deleted:
        """Returns what became of the connection; asked again, the same.

        Raises:
            NotFoundError: the tenant has none of that id.
            UnavailableError: auth or the database is away; it stays stopped, and may be repeated.
        """
        async with self._database.tenant(tenant) as db:
            tombstone = await store.begin_deletion(db, connection)
        if tombstone is None:
            raise NotFoundError("connection")
        if tombstone.state is not ConnectionState.DELETED:
            await self._revoker.revoke_grant(tenant, connection)
            async with self._database.tenant(tenant) as db:
                await store.end_bindings(db, connection)
            await self._registry.retire(bearer, connection)
            async with self._database.tenant(tenant) as db:
                await store.erase(db, connection)
                tombstone = await store.tombstone(db, connection)
        return _deleted(tombstone)


def _deleted(tombstone: Tombstone | None) -> Deleted:
    if tombstone is None or tombstone.revocation is None:
        raise NotFoundError("connection")
    revoked = Revoked(tombstone.revocation, tombstone.advice)
    return Deleted(revoked, tombstone.bindings_ended)


def _failed(title: str, why: str) -> Revoked:
    return Revoked(
        Revocation.FAILED,
        f"what {title} granted may live on there ({why}): withdraw it in the settings there",
    )


def _unsupported(title: str) -> Revoked:
    return Revoked(
        Revocation.UNSUPPORTED,
        f"{title} does not withdraw this by request: do it in the settings there",
    )


def _advice(connection: Connection, title: str) -> str:
    if connection.kind is not ConnectionKind.CLIENT_CREDENTIALS:
        return ""
    return f"{title} still knows the OAuth client: withdraw its secret in the settings there"


def _repeatable(provider: Provider) -> bool:
    oauth = provider.oauth
    return oauth is not None and oauth.refresh_rotation is RefreshRotation.STABLE


def _refresh_token(cipher: TenantCipher, sealed: SealedGrant) -> str | None:
    token = sealed.sealed_refresh_token
    place = refresh_place(sealed.connection.connection_id)
    return None if token is None else cipher.open(place, token)


def _access_tokens(cipher: TenantCipher, sealed: SealedGrant) -> list[str]:
    connection_id = sealed.connection.connection_id
    return [
        cipher.open(token_place(connection_id, key), token)
        for key, token in sealed.sealed_tokens.items()
    ]
