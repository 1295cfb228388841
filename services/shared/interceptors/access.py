"""Access as the contract declares it: peer, key, kind, scope, audit; in this order."""

from collections.abc import Iterator
from contextlib import asynccontextmanager

from bulkhead.common.v1 import access_pb2
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.message import Message

from services.shared.access import Auditor, Authenticator
from services.shared.errors import (
    InvalidFieldError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from services.shared.interceptors.call import Call, Entered
from services.shared.keyformat import without_keys
from services.shared.principal import Caller, Principal, set_caller
from services.shared.principal_messages import KEY_KINDS
from services.shared.tls import peer_service


class AccessControl:
    """Enforces the `access` option, so that no handler can forget to."""

    def __init__(self, authenticator: Authenticator, auditor: Auditor, trust_domain: str) -> None:
        self._authenticator = authenticator
        self._auditor = auditor
        self._trust_domain = trust_domain

    @asynccontextmanager
    async def __call__(self, call: Call) -> Entered:
        """Admits the call and tells the handler its caller, or refuses it."""
        call.peer = self._peer(call)
        bearer = None if call.access.keyless else _bearer(call)
        if bearer is not None:
            principal = await self._authenticator.authenticate(bearer)
            _check_bound(principal, call.peer)
            call.principal = principal
            _check_kind_and_scope(principal, call.access)
        if call.request is None:
            raise InvalidFieldError("request", "is no message of this method")
        caller = Caller(call.peer, call.principal, bearer)
        set_caller(caller)
        if call.access.audit == access_pb2.AUDIT_BEFORE:
            await self._record(caller, call.method, call.request)
        yield

    def _peer(self, call: Call) -> str:
        peer = peer_service(call.context, self._trust_domain)
        if peer is None or (call.access.peers and peer not in call.access.peers):
            raise PermissionDeniedError(
                "this method is not for the calling service", Reason.PEER_REFUSED
            )
        return peer

    async def _record(self, caller: Caller, method: str, request: Message) -> None:
        try:
            await self._auditor.record(caller, method, dict(named_resources(request)))
        except UnavailableError as error:
            raise UnavailableError(
                "the audit log cannot be written, so nothing was done", Reason.AUDIT_UNAVAILABLE
            ) from error


def named_resources(request: Message) -> Iterator[tuple[str, str]]:
    """Yields kind and id of each resource that the request names."""
    for field, value in request.ListFields():
        kind = field.GetOptions().Extensions[access_pb2.resource].kind
        if kind and isinstance(value, str):
            # Neither a key nor long, since what is written here was not looked at yet.
            yield kind, without_keys(value)[:_MOST_ID_LENGTH]


_MOST_ID_LENGTH = 100


def _bearer(call: Call) -> str:
    scheme, _, key = call.metadata.get("authorization", "").partition(" ")
    if not scheme:
        raise UnauthenticatedError(Reason.KEY_MISSING)
    if scheme.lower() != "bearer" or not key:
        raise UnauthenticatedError
    return key.strip()


def _check_bound(principal: Principal, peer: str) -> None:
    if principal.bound_peer is not None and principal.bound_peer != peer:
        # A key in the wrong hands is no key (P-30).
        raise UnauthenticatedError


def _check_kind_and_scope(principal: Principal, access: Access) -> None:
    opening = [KEY_KINDS[kind] for kind in access.keys]
    if principal.kind not in opening:
        raise PermissionDeniedError(
            f"a key of kind {principal.kind} does not open this method; it takes one of kind "
            + " or ".join(sorted(opening)),
            Reason.KEY_KIND_REFUSED,
        )
    if access.scope and not principal.permits(access.scope):
        raise PermissionDeniedError(
            f"the key lacks the scope {access.scope}",
            Reason.SCOPE_MISSING,
            metadata={"scope": access.scope},
        )
