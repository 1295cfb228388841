"""Principal from key: resolved by auth, remembered briefly, forgotten when revoked."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.errors import UnauthenticatedError
from services.shared.key_figures import observe_keys
from services.shared.key_resolver import KeyResolver, watching
from services.shared.keyformat import DEFAULT_PREFIX, digest, well_formed
from services.shared.principal import Caller, Principal
from services.shared.recording import UNRECORDED, Recording
from services.shared.status import translated


class Authenticator(Protocol):
    """Tells whose a presented key is."""

    async def authenticate(self, bearer: str) -> Principal:
        """Returns for whom the bearer speaks.

        Raises:
            UnauthenticatedError: the key is not valid.
            UnavailableError: that cannot be found out now.
        """
        ...


class Auditor(Protocol):
    """Writes calls to the audit log of their tenant."""

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written.

        Raises:
            UnavailableError: it cannot be written now.
        """
        ...


@asynccontextmanager
async def open_key_resolver(
    channel: grpc.aio.Channel, recording: Recording = UNRECORDED
) -> AsyncIterator[KeyResolver]:
    """Yields a resolver that follows the revocations of auth behind `channel`."""
    async with watching(KeyResolver(AuthServiceStub(channel))) as resolver:
        if (meter := recording.meter()) is not None:
            observe_keys(meter, lambda: resolver.figures)
        yield resolver


class RemoteAuthenticator:
    """Authenticates by asking auth."""

    def __init__(self, resolver: KeyResolver, key_prefix: str = DEFAULT_PREFIX) -> None:
        self._resolver = resolver
        self._key_prefix = key_prefix

    async def authenticate(self, bearer: str) -> Principal:
        """Returns for whom the bearer speaks; see `Authenticator`."""
        if not well_formed(bearer, self._key_prefix):
            raise UnauthenticatedError
        principal = await self._resolver.resolve(digest(bearer))
        if principal is None:
            raise UnauthenticatedError
        return principal


class RemoteAuditor:
    """Records into auth's audit log, with the caller's own key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written; see `Auditor`."""
        with translated():
            await self._stub.RecordAuditEvent(
                auth_pb2.RecordAuditEventRequest(
                    method=method, peer=caller.peer, resources=dict(resources)
                ),
                metadata=(("authorization", f"Bearer {caller.bearer}"),),
            )
