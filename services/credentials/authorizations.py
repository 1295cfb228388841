"""OAuth's authorization code flow: begun with a key, allowed by a person, completed once."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.credentials import authorization_store as store
from services.credentials import connection_store
from services.credentials.domain import (
    GOING,
    Connection,
    ConnectionKind,
    ConnectionState,
    OAuthClient,
)
from services.credentials.making import make, replayed
from services.credentials.ports import Bearer, Gateway, Registry
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.clients import OperatorClients
from services.credentials.sealing import (
    cipher_of,
    opened_client,
    sealed_client_secret,
    unreadable,
)
from services.credentials.wanted import NewAuthorization, Renewal, check_kind
from services.shared.crypto import Place, TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import (
    FailedPreconditionError,
    InvalidFieldError,
    NotFoundError,
    Reason,
)
from services.shared.ids import ConnectionId, KeyId, TenantId, new_connection_id, random_text
from services.shared.keyformat import digest as digest_of_key
from services.shared.postgres import Connection as DbConnection
from services.shared.postgres import Database

# 256 random bits each; RFC 7636, 4.1 takes 43 to 128 characters.
_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where people are led back to, and how long they have."""

    # The front door's.
    url: str
    life: timedelta


@dataclass(frozen=True, slots=True)
class Asker:
    """Who begins an authorization."""

    tenant_id: TenantId
    key_id: KeyId
    bearer: Bearer = field(repr=False)


@dataclass(frozen=True, slots=True)
class Started:
    """An authorization that waits for a person."""

    connection: Connection
    url: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Terms:
    """With what the person will be asked."""

    connection: Connection
    provider: Provider
    # The tenant's own; None: the operator's.
    own: OAuthClient | None
    client: OAuthClient
    scopes: tuple[str, ...]


class Authorizations:
    """Begins authorizations; see `completion` for their end."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        catalogue: Catalogue,
        operators: OperatorClients,
        gateway: Gateway,
        registry: Registry,
        redirect: Redirect,
        *,
        per_tenant: int,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._catalogue = catalogue
        self._operators = operators
        self._gateway = gateway
        self._registry = registry
        self._redirect = redirect
        self._most = per_tenant

    async def start(self, asker: Asker, wanted: NewAuthorization | Renewal) -> Started:
        """Returns where a person allows it. Repeated, it is another URL, and the old one is dead.

        Raises:
            InvalidFieldError: the catalogue does not have that, or nobody has a client there.
            NotFoundError: the tenant has no such connection.
            AlreadyExistsError: the request's id was used before for something else.
            LimitExceededError: the tenant has as many connections as it may have.
            FailedPreconditionError: the connection is of another kind, or is going.
            UnavailableError: auth or the database is away; it is safe to repeat.
        """
        beneficiary = await self._registry.tenant_name(asker.bearer) or asker.tenant_id
        cipher = await cipher_of(self._data_keys, asker.tenant_id)
        digest = cipher.keyed_hash("request", wanted.content())
        state, verifier = (secrets.token_urlsafe(_RANDOM_BYTES) for _ in range(2))
        async with self._database.tenant(asker.tenant_id) as db:
            # Of two that are begun at once, one after the other.
            await connection_store.lock_tenant(db, asker.tenant_id)
            terms = await self._terms(db, asker.tenant_id, cipher, wanted, digest)
            row = self._row(asker, cipher, wanted, digest, terms, beneficiary, state, verifier)
            expires_at = await store.put(db, asker.tenant_id, row, self._redirect.life)
        await self._registry.register(asker.bearer, terms.connection.connection_id)
        url = self._gateway.authorization_url(
            terms.provider,
            terms.client,
            terms.connection.parameters,
            redirect_url=row.redirect_url,
            state=state,
            verifier=verifier,
            scopes=terms.scopes,
        )
        return Started(terms.connection, url, expires_at)

    async def _terms(
        self,
        db: DbConnection,
        tenant: TenantId,
        cipher: TenantCipher,
        wanted: NewAuthorization | Renewal,
        digest: bytes,
    ) -> _Terms:
        begun = await store.digest_of(db, tenant, wanted.request_id)
        if begun is not None and not hmac.compare_digest(begun, digest):
            raise replayed()
        if isinstance(wanted, NewAuthorization):
            provider = self._provider(wanted.provider)
            provider.check_parameters(wanted.parameters)
            own, client = wanted.client, self._client(provider, wanted.client)
            made = await make(db, tenant, _new_row(cipher, wanted, digest), most=self._most)
            connection = await _renewable(db, made.connection_id)
        else:
            if await connection_store.of_request(db, tenant, wanted.request_id) is not None:
                raise replayed()
            connection = await _renewable(db, wanted.connection_id)
            provider = self._provider(connection.provider)
            own = wanted.client or await self._own_client(db, cipher, connection)
            client = self._client(provider, own)
        scopes = wanted.scopes or _default_scopes(provider)
        return _Terms(connection, provider, own, client, scopes)

    def _provider(self, name: str) -> Provider:
        provider = self._catalogue.get(name)
        if provider is None:
            raise InvalidFieldError("provider", "is not in the catalogue")
        check_kind(provider, ConnectionKind.AUTHORIZATION_CODE, "provider")
        return provider

    def _client(self, provider: Provider, own: OAuthClient | None) -> OAuthClient:
        client = own or self._operators.get(provider.name)
        if client is None:
            raise InvalidFieldError(
                "client_id", f"the operator has no OAuth client at {provider.title}: name your own"
            )
        return client

    async def _own_client(
        self, db: DbConnection, cipher: TenantCipher, connection: Connection
    ) -> OAuthClient | None:
        if connection.client_id is None:
            return None
        sealed = await connection_store.sealed_client_secret_of(db, connection.connection_id)
        try:
            return opened_client(cipher, self._operators, connection, sealed)
        except UnreadableError as error:
            raise unreadable() from error

    def _row(
        self,
        asker: Asker,
        cipher: TenantCipher,
        wanted: NewAuthorization | Renewal,
        digest: bytes,
        terms: _Terms,
        beneficiary: str,
        state: str,
        verifier: str,
    ) -> store.NewRow:
        authorization_id = f"ath_{random_text()}"
        secret = terms.own.client_secret if terms.own is not None else ""
        place = client_secret_place(authorization_id)
        presented = digest_of_key(asker.bearer.key)
        return store.NewRow(
            authorization_id=authorization_id,
            connection_id=terms.connection.connection_id,
            request_id=wanted.request_id,
            request_digest=digest,
            key_id=asker.key_id,
            sealed_key_digest=cipher.seal(key_digest_place(authorization_id), presented.hex()),
            beneficiary=beneficiary,
            state_digest=state_digest(state),
            sealed_verifier=cipher.seal(verifier_place(authorization_id), verifier),
            client_id=None if terms.own is None else terms.own.client_id,
            sealed_client_secret=cipher.seal(place, secret) if secret else None,
            scopes=terms.scopes,
            redirect_url=wanted.redirect_url or self._redirect.url,
            at_door=wanted.redirect_url in ("", self._redirect.url),
        )


def state_digest(state: str) -> bytes:
    """Returns under what a state is found: it is itself nowhere stored."""
    return hashlib.sha256(state.encode()).digest()


def verifier_place(authorization_id: str) -> Place:
    """Returns where PKCE's verifier belongs."""
    return Place("authorizations", authorization_id, "sealed_verifier")


def client_secret_place(authorization_id: str) -> Place:
    """Returns where the secret of the tenant's own client belongs meanwhile."""
    return Place("authorizations", authorization_id, "sealed_client_secret")


def key_digest_place(authorization_id: str) -> Place:
    """Returns where the digest of the key belongs that began it, in hexadecimal."""
    return Place("authorizations", authorization_id, "sealed_key_digest")


def _default_scopes(provider: Provider) -> tuple[str, ...]:
    return () if provider.oauth is None else tuple(provider.oauth.default_scopes)


async def _renewable(db: DbConnection, connection_id: ConnectionId) -> Connection:
    """Returns the connection, which nobody else changes until the transaction ends."""
    connection = await connection_store.get(db, connection_id, lock=True)
    if connection is None or connection.state is ConnectionState.DELETED:
        raise NotFoundError("connection")
    if connection.kind is not ConnectionKind.AUTHORIZATION_CODE:
        raise FailedPreconditionError(
            f"the connection is of kind {connection.kind}", Reason.CONNECTION_KIND
        )
    if connection.state in GOING:
        raise FailedPreconditionError(
            "the connection is being deleted", Reason.CONNECTION_NOT_ACTIVE
        )
    return connection


def _new_row(
    cipher: TenantCipher, wanted: NewAuthorization, digest: bytes
) -> connection_store.NewRow:
    connection_id = new_connection_id()
    return connection_store.NewRow(
        connection_id=connection_id,
        request_id=wanted.request_id,
        request_digest=digest,
        name=wanted.name,
        provider=wanted.provider,
        kind=ConnectionKind.AUTHORIZATION_CODE,
        exclusive=wanted.exclusive,
        parameters=wanted.parameters,
        state=ConnectionState.AUTHORIZING,
        client_id=None if wanted.client is None else wanted.client.client_id,
        sealed_client_secret=sealed_client_secret(cipher, connection_id, wanted.client),
    )
