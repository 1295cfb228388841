"""What a certificate of deletion says (P-39); `docs/decisions/0015-deletion-certificates.md`."""

from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from services.provisioner.domain import Operation, Resource, ResourceKind
from services.shared.ids import OperationId, TenantId

VERSION: Final = 1
# Whose end is awaited by the call that asks for a deletion.
_CUT_OFF: Final = frozenset({ResourceKind.KEYS, ResourceKind.ROUTE})
# What a deletion leaves, in words for whoever reads the certificate.
_LOGS: Final = {
    "what": "logs and backups of the platform itself",
    "why": "they name ids, never content or secrets, and end with their own retention",
}
_STORES: Final = {
    "what": (
        "files of the platform's own stores: deleted rows until they are vacuumed, write-ahead and"
        " append-only logs, and in the object storage's files the credentials of deleted buckets"
    ),
    "why": "the stores reuse their files in their own time; what is left there opens nothing",
}
_CERTIFICATE: Final = {
    "what": (
        "the deployment's ids, name, host and times, what was done with it, and this certificate,"
        " with the SHA-256 of the token that opens it"
    ),
    "why": "so that no id is ever given to anything else; they go with the tenant",
}
_TOMBSTONE: Final = {
    "what": (
        "in each service the tenant's id, and what it told of the end; here this certificate, and"
        " the SHA-256 of the token that opens it"
    ),
    "why": "so that nothing comes to be of the tenant again, and the certificate can be asked for",
}


def of_deployment(
    issuer: str, operation: Operation, resources: Sequence[Resource], issued: datetime
) -> dict[str, Any]:
    """Returns the document about a deployment's deletion."""
    return {
        **_head(issuer, operation.operation_id, operation.tenant_id, issued),
        "sub": operation.deployment_id,
        "kind": "deployment",
        "requested_at": moment(operation.create_time),
        "cut_off_at": moment(_latest(resources, _CUT_OFF)),
        "access_revoked_at": moment(_latest(resources)),
        "resources": [of_resource(each) for each in resources],
        "retained": [_CERTIFICATE, _LOGS, _STORES],
    }


def of_tenant(
    issuer: str,
    operation_id: OperationId,
    tenant: TenantId,
    requested: datetime,
    issued: datetime,
    evidence: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the document about a tenant's deletion; what was found out on the way is evidence."""
    return {
        **_head(issuer, operation_id, tenant, issued),
        "sub": tenant,
        "kind": "tenant",
        "requested_at": moment(requested),
        "cut_off_at": evidence["cut_off_at"],
        # All in one form, so that the last one is the greatest text.
        "access_revoked_at": max(
            [evidence["cut_off_at"], *(each["access_revoked_at"] for each in evidence["resources"])]
        ),
        "deployments_deleted_before": evidence["deployments_deleted_before"],
        "resources": evidence["resources"],
        "services": evidence["services"],
        "unrevoked_grants": evidence["unrevoked_grants"],
        "retained": [_TOMBSTONE, _LOGS, _STORES],
    }


def of_resource(resource: Resource) -> dict[str, Any]:
    """Returns what is said of one resource's end."""
    times = {
        "access_revoked_at": resource.access_revoked_time,
        "destroyed_at": resource.destroyed_time,
        "verified_gone_at": resource.verified_gone_time,
        "unrecoverable_after": resource.unrecoverable_after,
    }
    return {
        "deployment_id": resource.deployment_id,
        "kind": str(resource.kind),
        **{name: moment(time) for name, time in times.items() if time is not None},
        "details": dict(resource.details),
    }


def moment(time: datetime) -> str:
    """Returns the time as RFC 3339 has it, in UTC, to the microsecond."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _head(
    issuer: str, operation_id: OperationId, tenant: TenantId, issued: datetime
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "iss": issuer,
        "jti": operation_id,
        "iat": int(issued.timestamp()),
        "issued_at": moment(issued),
        "tenant_id": tenant,
    }


def _latest(
    resources: Iterable[Resource], kinds: Container[ResourceKind] = frozenset(ResourceKind)
) -> datetime:
    """Returns when access to the last of these kinds had ended."""
    return max(
        each.access_revoked_time
        for each in resources
        if each.access_revoked_time and each.kind in kinds
    )
