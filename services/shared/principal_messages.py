"""Principals as auth's messages carry them."""

from collections.abc import Mapping
from datetime import UTC

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.common.v1 import access_pb2

from services.shared.ids import ConnectionId, DeploymentId, KeyId, TenantId
from services.shared.principal import KeyKind, Plan, Principal

KEY_KINDS: Mapping[int, KeyKind] = {
    access_pb2.KEY_KIND_OPERATOR: KeyKind.OPERATOR,
    access_pb2.KEY_KIND_TENANT: KeyKind.TENANT,
    access_pb2.KEY_KIND_DEPLOYMENT: KeyKind.DEPLOYMENT,
    access_pb2.KEY_KIND_CONNECTION: KeyKind.CONNECTION,
    access_pb2.KEY_KIND_SESSION: KeyKind.SESSION,
    access_pb2.KEY_KIND_JOB: KeyKind.JOB,
}
PLANS: Mapping[int, Plan] = {
    auth_pb2.PLAN_UNSPECIFIED: Plan.FREE,
    auth_pb2.PLAN_FREE: Plan.FREE,
    auth_pb2.PLAN_PRO: Plan.PRO,
    auth_pb2.PLAN_SCALE: Plan.SCALE,
}


def read_principal(resolution: auth_pb2.Resolution) -> Principal | None:
    """Returns whose the key is; None when it is no valid key's."""
    if not resolution.HasField("principal"):
        return None
    found = resolution.principal
    return Principal(
        key_id=KeyId(found.key_id),
        kind=KEY_KINDS[found.kind],
        tenant_id=TenantId(found.tenant_id) if found.tenant_id else None,
        deployment_id=DeploymentId(found.deployment_id) if found.deployment_id else None,
        scopes=frozenset(found.scopes),
        plan=PLANS[found.plan],
        expires_at=found.expire_time.ToDatetime(UTC) if found.HasField("expire_time") else None,
        bound_peer=found.bound_peer or None,
        connection_id=ConnectionId(found.connection_id) if found.connection_id else None,
    )
