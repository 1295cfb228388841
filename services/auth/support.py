"""Support keys: the operator helps a tenant, for a short time and before its eyes."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.auth import store, support_store
from services.auth.audit import new_event, record_with
from services.auth.domain import IssuedKey, NewKey
from services.auth.minting import Mint, replayed
from services.auth.support_rules import support_scopes
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection, Database
from services.shared.principal import KeyKind, Principal

# Not printable, so that no request_id of a tenant's own can be the same.
_REQUEST = "support\n{}"


@dataclass(frozen=True, slots=True)
class SupportCall:
    """Who asks for a support key, by which call."""

    operator: Principal
    peer: str
    method: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class SupportRequest:
    """For whom, why, for how long and to do what."""

    request_id: str
    tenant_id: TenantId
    reason: str
    lifetime: timedelta
    scopes: frozenset[str]


class SupportKeys:
    """Issues keys of a tenant to the operator, and says so in both their logs."""

    def __init__(self, database: Database, mint: Mint) -> None:
        self._database = database
        self._mint = mint

    async def issue(self, call: SupportCall, request: SupportRequest) -> IssuedKey:
        """Returns a key of the tenant that expires soon.

        The key and its records are written by one transaction: no record, no key.

        Raises:
            InvalidFieldError: a scope that no support key can have.
            NotFoundError: the tenant is unknown, or closed.
            AlreadyExistsError: the request was made before and its key is in use or another.
            UnavailableError: it cannot be recorded now.
        """
        issued, key = self._mint.key(
            KeyKind.TENANT,
            None,
            support_scopes(request.scopes),
            call.operator.key_id,
            _REQUEST.format(request.request_id),
            "support",
        )
        async with self._database.service() as connection:
            await store.hold_tenant(connection, request.tenant_id)
            key_id, expires_at = await _written(connection, request, key)
            await _recorded(connection, call, request, key_id)
        return replace(issued, key_id=key_id, expires_at=expires_at)


async def _written(
    connection: Connection, request: SupportRequest, key: NewKey
) -> tuple[KeyId, datetime]:
    """Returns the id and the end of the new key, or of the repeated request's."""
    if await store.insert_key(connection, request.tenant_id, key):
        ends = await support_store.limit_key(
            connection, key.key_id, request.reason, request.lifetime
        )
        return key.key_id, ends
    again = await support_store.reissue_key(
        connection, request.tenant_id, key, request.reason, request.lifetime
    )
    if again is None:
        raise replayed("this request_id was used before; its key cannot be shown again")
    return again


async def _recorded(
    connection: Connection, call: SupportCall, request: SupportRequest, key_id: KeyId
) -> None:
    event = new_event(
        call.operator.key_id,
        call.peer,
        call.method,
        {"tenant": request.tenant_id, "key": key_id},
        call.trace_id,
        request.reason,
    )
    await record_with(connection, (None, request.tenant_id), event)
