"""Messages of auth.proto from domain values, and domain values from fields."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.common.v1 import access_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.auth.domain import Effect, IssuedKey, Key, Owned, OwnedKind, Tenant, id_of
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.principal import KeyKind, Plan, Principal
from services.shared.principal_messages import PLANS

MOST_NAME = 100
_MOST_REQUEST_ID = 64
_DIGEST_BYTES = 32
_NANOS = 1_000_000_000
_MICROSECOND = timedelta(microseconds=1)
_OWNED_ID: Mapping[OwnedKind, re.Pattern[str]] = {
    OwnedKind.DEPLOYMENT: re.compile(r"dep_[0-9a-z]{26}"),
    OwnedKind.CONNECTION: re.compile(r"con_[0-9a-z]{26}"),
}

KIND_VALUES: Mapping[KeyKind, "access_pb2.KeyKind.ValueType"] = {
    KeyKind.OPERATOR: access_pb2.KEY_KIND_OPERATOR,
    KeyKind.TENANT: access_pb2.KEY_KIND_TENANT,
    KeyKind.DEPLOYMENT: access_pb2.KEY_KIND_DEPLOYMENT,
    KeyKind.CONNECTION: access_pb2.KEY_KIND_CONNECTION,
    KeyKind.SESSION: access_pb2.KEY_KIND_SESSION,
    KeyKind.JOB: access_pb2.KEY_KIND_JOB,
}
PLAN_VALUES: Mapping[Plan, "pb2.Plan.ValueType"] = {
    Plan.FREE: pb2.PLAN_FREE,
    Plan.PRO: pb2.PLAN_PRO,
    Plan.SCALE: pb2.PLAN_SCALE,
}


def read_request_id(value: str) -> str:
    """Returns the request's id.

    Raises:
        InvalidFieldError: it is empty, too long or not printable.
    """
    return text("request_id", value, most=_MOST_REQUEST_ID)


def read_owned(
    request: pb2.IssueKeyRequest | pb2.ListKeysRequest,
) -> list[Owned]:
    """Returns the deployment and the connection, as far as they are named.

    Raises:
        InvalidFieldError: an id is too long or not printable.
    """
    named = (
        (OwnedKind.DEPLOYMENT, request.deployment_id),
        (OwnedKind.CONNECTION, request.connection_id),
    )
    return [
        Owned(kind, text(f"{kind}_id", value, most=MOST_NAME)) for kind, value in named if value
    ]


def read_new_owned(kind: OwnedKind, value: str) -> Owned:
    """Returns what may be new, by its id.

    Raises:
        InvalidFieldError: the id has not the form of one.
    """
    if not _OWNED_ID[kind].fullmatch(value):
        raise InvalidFieldError(f"{kind}_id", f"must be {kind[:3]}_ and 26 base-32 characters")
    return Owned(kind, value)


def read_plan(value: "pb2.Plan.ValueType") -> Plan:
    """Returns the plan; unspecified is free.

    Raises:
        InvalidFieldError: it is none.
    """
    try:
        return PLANS[value]
    except KeyError:
        raise InvalidFieldError("plan", "is not a plan; use FREE, PRO or SCALE") from None


def read_time(field: str, value: Timestamp) -> datetime:
    """Returns the time, to the microsecond.

    Raises:
        InvalidFieldError: it is none.
    """
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidFieldError(field, "is not a time") from None


def read_digest(field: str, value: bytes) -> bytes:
    """Returns the SHA-256 of a key.

    Raises:
        InvalidFieldError: it has another length.
    """
    if len(value) != _DIGEST_BYTES:
        raise InvalidFieldError(field, f"must have {_DIGEST_BYTES} bytes")
    return value


def read_duration(field: str, value: Duration, most: timedelta) -> timedelta:
    """Returns the time span, to the microsecond.

    Raises:
        InvalidFieldError: it is negative or longer than `most`.
    """
    if not 0 <= value.nanos < _NANOS:
        raise InvalidFieldError(field, "is not a duration, or is negative")
    # Counted in whole nanoseconds: a duration has more of them than a timedelta can tell.
    if not 0 <= value.seconds * _NANOS + value.nanos <= most // _MICROSECOND * 1_000:
        raise InvalidFieldError(field, f"must be 0 to {_spoken(most)}")
    return value.ToTimedelta()


def _spoken(span: timedelta) -> str:
    return f"{span.days} days" if span.days else f"{span // timedelta(hours=1)} h"


def timestamp(at: datetime) -> Timestamp:
    """Returns the time as a message."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


def timestamp_if(at: datetime | None) -> Timestamp | None:
    """Returns the time as a message; None for none."""
    return timestamp(at) if at is not None else None


def effect_message(effect: Effect) -> pb2.Effect:
    """Returns the effect as a message."""
    return pb2.Effect(
        effective_at=timestamp(effect.effective_at),
        watchers_acknowledged=effect.acknowledged,
        watchers_fenced=effect.fenced,
    )


def tenant_message(tenant: Tenant) -> pb2.Tenant:
    """Returns the tenant as a message."""
    return pb2.Tenant(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        plan=PLAN_VALUES[tenant.plan],
        create_time=timestamp(tenant.created_at),
    )


def issued_message(issued: IssuedKey) -> pb2.IssueKeyResponse:
    """Returns the issued key as an answer."""
    return pb2.IssueKeyResponse(
        key_id=issued.key_id,
        key=issued.key,
        kind=KIND_VALUES[issued.kind],
        deployment_id=id_of(OwnedKind.DEPLOYMENT, issued.owned) or "",
        connection_id=id_of(OwnedKind.CONNECTION, issued.owned) or "",
        scopes=sorted(issued.scopes),
        expire_time=timestamp_if(issued.expires_at),
    )


def key_message(key: Key) -> pb2.Key:
    """Returns the key as a message."""
    return pb2.Key(
        key_id=key.key_id,
        kind=KIND_VALUES[key.kind],
        deployment_id=id_of(OwnedKind.DEPLOYMENT, key.owned) or "",
        connection_id=id_of(OwnedKind.CONNECTION, key.owned) or "",
        name=key.name,
        scopes=sorted(key.scopes),
        hint=key.hint,
        create_time=timestamp(key.created_at),
        revoke_time=timestamp_if(key.revoked_at),
        expire_time=timestamp_if(key.expires_at),
        last_use_time=timestamp_if(key.last_used_at),
        successor_key_id=key.successor or "",
        support_reason=key.support_reason or "",
    )


def resolution_message(principal: Principal | None) -> pb2.Resolution:
    """Returns whose a key is as a message."""
    if principal is None:
        return pb2.Resolution()
    return pb2.Resolution(
        principal=pb2.Principal(
            key_id=principal.key_id,
            kind=KIND_VALUES[principal.kind],
            tenant_id=principal.tenant_id or "",
            deployment_id=principal.deployment_id or "",
            scopes=sorted(principal.scopes),
            plan=PLAN_VALUES[principal.plan],
            expire_time=timestamp_if(principal.expires_at),
            bound_peer=principal.bound_peer or "",
            connection_id=principal.connection_id or "",
        )
    )
