"""The end of an authorization: a state is used up, then its code is exchanged, then it is kept."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import structlog

from services.credentials import authorization_store as store
from services.credentials import connection_store
from services.credentials.authorization_store import Authorization
from services.credentials.authorizations import (
    client_secret_place,
    key_digest_place,
    state_digest,
    verifier_place,
)
from services.credentials.domain import GOING, Connection, Grant, OAuthClient, ProviderError
from services.credentials.grants import keep_grant
from services.credentials.ports import Act, AuditRecord, AuditTrail, Gateway, Keys
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.clients import OperatorClients
from services.credentials.providers.places import PATIENCE, Places
from services.credentials.providers.refusals import told
from services.credentials.sealing import cipher_of, sealed_client_secret, unreadable
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import NotFoundError, Reason, UnavailableError
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Database

_START_AGAIN = "; the authorization has to be started again"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person at the redirect is asked to allow, and to whom."""

    provider_title: str
    connection_name: str
    beneficiary: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Which call ends an authorization at the front door."""

    peer: str
    trace_id: str


class Completion:
    """Ends authorizations. A state works once, whatever comes of it.

    The grant that a connection had before is erased, not revoked: at many providers that would end
    all that the person allowed this client, and the new grant with it.
    """

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        catalogue: Catalogue,
        operators: OperatorClients,
        gateway: Gateway,
        keys: Keys,
        trail: AuditTrail,
        places: Places,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._catalogue = catalogue
        self._operators = operators
        self._gateway = gateway
        self._keys = keys
        self._trail = trail
        self._places = places

    async def describe(self, state: str) -> Asked:
        """Returns what the front door tells the person about the state; it stays as good.

        Raises:
            NotFoundError: unknown, used, expired, not for the front door, or the key that began it
                is not valid any more (P-37).
            UnavailableError: auth or the database is away.
        """
        authorization = await self._at_door(state)
        asked = await self._asked(authorization)
        cipher = await cipher_of(self._data_keys, authorization.tenant_id)
        if await self._keys.resolve(_key_digest(cipher, authorization)) is None:
            raise NotFoundError("authorization")
        return asked

    async def complete(self, tenant: TenantId, key_id: KeyId, state: str, code: str) -> Connection:
        """Returns the connection, active with what the provider granted for the code.

        Raises:
            NotFoundError: unknown, used, expired, the front door's, or not begun by this key.
            FailedPreconditionError: the provider refused; the connection is as it was.
            UnavailableError: the provider gave no answer; a person has to start again.
        """
        cipher = await cipher_of(self._data_keys, tenant)
        async with self._database.tenant(tenant) as db:
            seen = await store.peek(db, tenant, key_id, state_digest(state))
        if seen is None:
            raise NotFoundError("authorization")
        async with self._place(seen):
            async with self._database.tenant(tenant) as db:
                authorization = await store.consume(db, tenant, key_id, state_digest(state))
            if authorization is None:
                raise NotFoundError("authorization")
            return await self._exchange(cipher, authorization, code)

    async def finish(self, origin: Origin, state: str, code: str) -> Asked:
        """Ends it for the person at the front door; an empty code: somebody said no.

        It is in the tenant's audit log before anything is done (P-33), and before the state is used
        up: while nothing can be written, the link stays as good.

        Raises:
            NotFoundError: unknown, used, expired, not for the front door, or the key that began it
                is not valid any more (P-37).
            FailedPreconditionError: the provider refused; the connection is as it was.
            UnavailableError: it cannot be written down, and nothing was done; or the provider gave
                no answer, and a person has to start again.
        """
        seen = await self._at_door(state)
        asked = await self._asked(seen)
        cipher = await cipher_of(self._data_keys, seen.tenant_id)
        async with self._place(seen):
            await self._record(origin, cipher, seen)
            # The state alone says whose it is: no key comes with it.
            async with self._database.service() as db:
                authorization = await store.consume_at_door(db, state_digest(state))
            if authorization is None:
                raise NotFoundError("authorization")
            if code:
                await self._exchange(cipher, authorization, code)
        return asked

    @asynccontextmanager
    async def _place(self, authorization: Authorization) -> AsyncIterator[None]:
        """Keeps a place at the provider: a state that would have to wait is not used up for it."""
        connection, _ = await self._connection(authorization)
        async with self._places.take(authorization.tenant_id, connection.provider, PATIENCE):
            yield

    async def _record(
        self, origin: Origin, cipher: TenantCipher, authorization: Authorization
    ) -> None:
        """Returns once it is written down, with the key that began it."""
        record = AuditRecord(
            act=Act.FINISH_AUTHORIZATION,
            key_digest=_key_digest(cipher, authorization),
            peer=origin.peer,
            resources={
                "connection": authorization.connection_id,
                "authorization": authorization.authorization_id,
            },
            trace_id=origin.trace_id,
        )
        try:
            written = await self._trail.record([record])
        except UnavailableError as error:
            raise UnavailableError(
                "the audit log cannot be written, so nothing was done", Reason.AUDIT_UNAVAILABLE
            ) from error
        if list(written) != [True]:
            raise NotFoundError("authorization")

    async def _at_door(self, state: str) -> Authorization:
        # The state alone says whose it is: no key comes with it.
        async with self._database.service() as db:
            authorization = await store.peek_at_door(db, state_digest(state))
        if authorization is None:
            raise NotFoundError("authorization")
        return authorization

    async def _asked(self, authorization: Authorization) -> Asked:
        connection, _ = await self._connection(authorization)
        return Asked(
            provider_title=self._provider(connection).title,
            connection_name=connection.name,
            beneficiary=authorization.beneficiary,
            scopes=authorization.scopes,
        )

    async def _connection(self, authorization: Authorization) -> tuple[Connection, datetime]:
        """Returns the connection that waits for it, and what time it is."""
        async with self._database.tenant(authorization.tenant_id) as db:
            connection = await connection_store.get(db, authorization.connection_id)
            now = await connection_store.now(db)
        if connection is None or connection.state in GOING:
            raise NotFoundError("authorization")
        return connection, now

    def _provider(self, connection: Connection) -> Provider:
        provider = self._catalogue.get(connection.provider)
        if provider is None:
            raise UnavailableError(
                "the provider is not in the catalogue any more", Reason.PROVIDER_UNAVAILABLE
            )
        return provider

    async def _exchange(
        self, cipher: TenantCipher, authorization: Authorization, code: str
    ) -> Connection:
        connection, now = await self._connection(authorization)
        provider = self._provider(connection)
        own, verifier = _opened(cipher, authorization)
        client = own or self._operators.get(provider.name)
        if client is None:
            raise UnavailableError(
                f"the operator has no OAuth client at {provider.title} any more",
                Reason.PROVIDER_UNAVAILABLE,
            )
        try:
            grant = await self._gateway.exchange(
                provider,
                client,
                connection.parameters,
                redirect_url=authorization.redirect_url,
                code=code,
                verifier=verifier,
            )
        except ProviderError as error:
            raise told(provider.title, error, _START_AGAIN) from error
        try:
            return await self._keep(cipher, authorization, own, grant, now)
        except NotFoundError as error:
            await self._give_back(provider, client, connection, grant)
            raise NotFoundError("authorization") from error

    async def _keep(
        self,
        cipher: TenantCipher,
        authorization: Authorization,
        own: OAuthClient | None,
        grant: Grant,
        asked_at: datetime,
    ) -> Connection:
        tenant, connection_id = authorization.tenant_id, authorization.connection_id
        secret = sealed_client_secret(cipher, connection_id, own)
        async with self._database.tenant(tenant) as db:
            await keep_grant(
                db,
                cipher,
                tenant,
                connection_id,
                grant,
                asked=authorization.scopes,
                asked_at=asked_at,
            )
            client_id = None if own is None else own.client_id
            await connection_store.set_client(db, connection_id, client_id, secret)
            connection = await connection_store.get(db, connection_id)
        if connection is None:
            raise NotFoundError("connection")
        return connection

    async def _give_back(
        self, provider: Provider, client: OAuthClient, connection: Connection, grant: Grant
    ) -> None:
        """Revokes a grant that came when its connection was already going, if that can be done."""
        hints = () if provider.oauth is None else provider.oauth.revocable_tokens
        tokens = {"refresh_token": grant.refresh_token, "access_token": grant.access_token}
        for hint in hints:
            if (token := tokens[hint]) is None:
                continue
            try:
                await self._gateway.revoke(
                    provider, client, connection.parameters, token=token, hint=hint
                )
            except ProviderError as error:
                structlog.get_logger().warning(
                    "a grant that is not kept lives on at its provider",
                    connection_id=connection.connection_id,
                    provider=provider.name,
                    error=type(error).__name__,
                )
            return


def _key_digest(cipher: TenantCipher, authorization: Authorization) -> bytes:
    """Returns the SHA-256 of the key that began it."""
    place = key_digest_place(authorization.authorization_id)
    try:
        return bytes.fromhex(cipher.open(place, authorization.sealed_key_digest))
    except UnreadableError as error:
        raise unreadable() from error


def _opened(cipher: TenantCipher, authorization: Authorization) -> tuple[OAuthClient | None, str]:
    """Returns the tenant's own client, if it is not the operator's, and PKCE's verifier."""
    authorization_id, sealed = authorization.authorization_id, authorization.sealed_client_secret
    try:
        verifier = cipher.open(verifier_place(authorization_id), authorization.sealed_verifier)
        if authorization.client_id is None:
            return None, verifier
        secret = (
            "" if sealed is None else cipher.open(client_secret_place(authorization_id), sealed)
        )
    except UnreadableError as error:
        raise unreadable() from error
    return OAuthClient(authorization.client_id, secret), verifier
