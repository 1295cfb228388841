"""Connections: made of what a tenant has already, shown, changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from services.credentials import binding_store
from services.credentials import connection_store as store
from services.credentials.domain import (
    GOING,
    Connection,
    ConnectionState,
    Grant,
    ProviderError,
)
from services.credentials.grants import keep_grant
from services.credentials.making import check_limit, earlier, make
from services.credentials.ports import Bearer, Gateway, Registry
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.places import PATIENCE, Places
from services.credentials.providers.refusals import told
from services.credentials.sealing import cipher_of, sealed_client_secret, sealed_secret
from services.credentials.wanted import (
    Credential,
    KeptSecret,
    NewConnection,
    OwnClient,
    Update,
    check_kind,
    check_username,
)
from services.shared.crypto import TenantCipher
from services.shared.data_keys import DataKeys
from services.shared.errors import (
    FailedPreconditionError,
    InvalidFieldError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.ids import ConnectionId, TenantId, new_connection_id
from services.shared.postgres import Connection as DbConnection
from services.shared.postgres import Database


@dataclass(frozen=True, slots=True)
class _First:
    """The first token of a client that acts for itself."""

    grant: Grant
    asked: tuple[str, ...]
    asked_at: datetime


class Connections:
    """What a tenant has at providers."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        catalogue: Catalogue,
        gateway: Gateway,
        registry: Registry,
        places: Places,
        *,
        per_tenant: int,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._catalogue = catalogue
        self._gateway = gateway
        self._registry = registry
        self._places = places
        self._most = per_tenant

    async def create(self, tenant: TenantId, bearer: Bearer, new: NewConnection) -> Connection:
        """Returns the connection, with its credential kept. Idempotent by the request's id.

        Raises:
            InvalidFieldError: the catalogue does not have that, or not like that.
            AlreadyExistsError: the request's id was used before for something else.
            LimitExceededError: the tenant has as many connections as it may have.
            FailedPreconditionError: the provider refused the client; nothing was kept.
            UnavailableError: the provider, auth or the database is away; it is safe to repeat.
        """
        provider = self._checked(new)
        cipher = await cipher_of(self._data_keys, tenant)
        digest = cipher.keyed_hash("request", new.content())
        async with self._database.tenant(tenant) as db:
            made = await earlier(db, tenant, new.request_id, digest)
            if made is None:
                await check_limit(db, tenant, self._most)
            now = await store.now(db)
        if made is None:
            first = await self._first(tenant, provider, new.credential, new.parameters, now)
            made = await self._write(tenant, cipher, new, digest, first)
        # Also when it was made before: the call that did may not have come so far.
        await self._registry.register(bearer, made.connection_id)
        return made

    async def get(self, tenant: TenantId, connection_id: ConnectionId) -> Connection:
        """Returns the tenant's connection.

        Raises:
            NotFoundError: it has none of that id, or it is deleted.
        """
        async with self._database.tenant(tenant) as db:
            return await _got(db, connection_id)

    async def page(
        self,
        tenant: TenantId,
        state: ConnectionState | None,
        before: tuple[datetime, str] | None,
        most: int,
    ) -> list[Connection]:
        """Returns at most `most` connections of the tenant that are not deleted, newest first."""
        async with self._database.tenant(tenant) as db:
            return await store.page(db, tenant, state, before, most)

    async def update(
        self, tenant: TenantId, connection_id: ConnectionId, update: Update
    ) -> Connection:
        """Returns the connection, changed: all that was asked for, or nothing.

        Raises:
            NotFoundError: the tenant has none of that id.
            InvalidFieldError: the new credential cannot be used.
            FailedPreconditionError: the connection is going, is of another kind or has more than
                one binding, or the provider refused the client.
            UnavailableError: the provider or the database is away; nothing was changed.
        """
        async with self._database.tenant(tenant) as db:
            current = await _changeable(db, connection_id)
            now = await store.now(db)
        if update.credential is None:
            replaced = None
        else:
            provider = self._check_new(current, update.credential)
            first = await self._first(tenant, provider, update.credential, current.parameters, now)
            cipher = await cipher_of(self._data_keys, tenant)
            replaced = partial(_replace, cipher, current, update.credential, first)
        async with self._database.tenant(tenant) as db:
            await _changeable(db, connection_id)
            await _describe(db, connection_id, update)
            if replaced is not None:
                await replaced(db)
            return await _got(db, connection_id)

    def _checked(self, new: NewConnection) -> Provider:
        provider = self._catalogue.get(new.provider)
        if provider is None:
            raise InvalidFieldError("provider", "is not in the catalogue")
        check_kind(provider, new.credential.kind, "credential")
        provider.check_parameters(new.parameters)
        if isinstance(new.credential, KeptSecret):
            check_username(provider, new.credential)
        return provider

    def _check_new(self, current: Connection, credential: Credential) -> Provider:
        if credential.kind is not current.kind:
            raise FailedPreconditionError(
                f"the connection is of kind {current.kind}", Reason.CONNECTION_KIND
            )
        provider = self._catalogue.get(current.provider)
        if provider is None:
            raise UnavailableError(
                "the provider is not in the catalogue any more", Reason.PROVIDER_UNAVAILABLE
            )
        if isinstance(credential, KeptSecret):
            check_username(provider, credential)
        return provider

    async def _first(
        self,
        tenant: TenantId,
        provider: Provider,
        credential: Credential,
        parameters: Mapping[str, str],
        now: datetime,
    ) -> _First | None:
        """Returns what the provider gives the client, which proves that it is one there."""
        _check_end(credential, now)
        if isinstance(credential, KeptSecret) or provider.oauth is None:
            return None
        asked = credential.scopes or tuple(provider.oauth.default_scopes)
        try:
            async with self._places.take(tenant, provider.name, PATIENCE):
                grant = await self._gateway.client_credentials(
                    provider, credential.client, parameters, scopes=asked
                )
        except ProviderError as error:
            raise told(provider.title, error) from error
        return _First(grant, asked, now)

    async def _write(
        self,
        tenant: TenantId,
        cipher: TenantCipher,
        new: NewConnection,
        digest: bytes,
        first: _First | None,
    ) -> Connection:
        row = _row(cipher, new, digest)
        async with self._database.tenant(tenant) as db:
            made = await make(db, tenant, row, most=self._most)
            if made.connection_id != row.connection_id or first is None:
                return made
            await _keep(db, cipher, made, first)
            return await _got(db, made.connection_id)


def _check_end(credential: Credential, now: datetime) -> None:
    if isinstance(credential, OwnClient) or credential.expires_at is None:
        return
    if credential.expires_at <= now:
        raise InvalidFieldError("static_token.expire_time", "must be in the future")


def _row(cipher: TenantCipher, new: NewConnection, digest: bytes) -> store.NewRow:
    connection_id = new_connection_id()
    credential = new.credential
    client = credential.client if isinstance(credential, OwnClient) else None
    kept = credential if isinstance(credential, KeptSecret) else None
    return store.NewRow(
        connection_id=connection_id,
        request_id=new.request_id,
        request_digest=digest,
        name=new.name,
        provider=new.provider,
        kind=credential.kind,
        exclusive=new.exclusive,
        parameters=new.parameters,
        state=ConnectionState.ACTIVE,
        client_id=None if client is None else client.client_id,
        sealed_client_secret=sealed_client_secret(cipher, connection_id, client),
        sealed_secret=None if kept is None else sealed_secret(cipher, connection_id, kept),
        secret_expires_at=None if kept is None else kept.expires_at,
    )


async def _got(db: DbConnection, connection_id: ConnectionId) -> Connection:
    connection = await store.get(db, connection_id)
    if connection is None or connection.state is ConnectionState.DELETED:
        raise NotFoundError("connection")
    return connection


async def _changeable(db: DbConnection, connection_id: ConnectionId) -> Connection:
    """Returns the connection, which nobody else changes until the transaction ends."""
    connection = await store.get(db, connection_id, lock=True)
    if connection is None or connection.state is ConnectionState.DELETED:
        raise NotFoundError("connection")
    if connection.state in GOING:
        raise FailedPreconditionError(
            "the connection is being deleted", Reason.CONNECTION_NOT_ACTIVE
        )
    return connection


async def _describe(db: DbConnection, connection_id: ConnectionId, update: Update) -> None:
    if update.name is not None:
        await store.set_name(db, connection_id, update.name)
    if update.exclusive is None:
        return
    await binding_store.end_expired_of(db, connection_id)
    if not await store.set_exclusive(db, connection_id, update.exclusive):
        raise FailedPreconditionError(
            "the connection serves more than one deployment: unbind it from the others first",
            Reason.CONNECTION_EXCLUSIVE,
        )


async def _replace(
    cipher: TenantCipher,
    current: Connection,
    credential: Credential,
    first: _First | None,
    db: DbConnection,
) -> None:
    """Keeps the new credential; `db` is the last, for whoever knows all else before."""
    connection_id = current.connection_id
    if isinstance(credential, KeptSecret):
        sealed = sealed_secret(cipher, connection_id, credential)
        await store.set_secret(db, connection_id, sealed, credential.expires_at)
    elif first is not None:
        secret = sealed_client_secret(cipher, connection_id, credential.client)
        await store.set_client(db, connection_id, credential.client.client_id, secret)
        await _keep(db, cipher, current, first)


async def _keep(
    db: DbConnection, cipher: TenantCipher, connection: Connection, first: _First
) -> None:
    await keep_grant(
        db,
        cipher,
        connection.tenant_id,
        connection.connection_id,
        first.grant,
        asked=first.asked,
        asked_at=first.asked_at,
    )
