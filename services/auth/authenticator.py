"""Auth's own way to authenticate and to audit: it asks itself."""

from collections.abc import Mapping, Sequence

from opentelemetry import trace

from services.auth.service import AuthService
from services.shared.coalesce import Coalescer
from services.shared.errors import Reason, UnauthenticatedError
from services.shared.keyformat import digest, well_formed
from services.shared.principal import Caller, Principal


class LocalAuthenticator:
    """Looks keys up in auth's own tables; nothing is remembered, so nothing is stale."""

    def __init__(self, service: AuthService, key_prefix: str) -> None:
        self._key_prefix = key_prefix
        self._uses = service.uses

        async def resolve(digests: Sequence[bytes]) -> Sequence[Principal | None]:
            return (await service.keys.resolve(digests))[1]

        self._resolve: Coalescer[bytes, Principal | None] = Coalescer(resolve)

    async def authenticate(self, bearer: str) -> Principal:
        """Returns for whom the bearer speaks; see `Authenticator`."""
        if not well_formed(bearer, self._key_prefix):
            raise UnauthenticatedError
        principal = await self._resolve(digest(bearer))
        if principal is None:
            raise UnauthenticatedError
        self._uses.note([principal.key_id])
        return principal


class LocalAuditor:
    """Writes into auth's own audit log."""

    def __init__(self, service: AuthService) -> None:
        self._service = service

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written; see `Auditor`."""
        if caller.principal is None:
            raise UnauthenticatedError(Reason.KEY_MISSING)
        await self._service.audit.record(
            caller.principal, caller.peer, method, resources, current_trace_id()
        )


def current_trace_id() -> str:
    """Returns the W3C trace id of the call being served, 32 hex digits; empty without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
