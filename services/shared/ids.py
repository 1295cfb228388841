"""Identifiers: a readable prefix and 130 random bits in Crockford's base 32."""

import secrets
from typing import NewType

TenantId = NewType("TenantId", str)
DeploymentId = NewType("DeploymentId", str)
KeyId = NewType("KeyId", str)
OperationId = NewType("OperationId", str)
AuditEventId = NewType("AuditEventId", str)
ConnectionId = NewType("ConnectionId", str)
BindingId = NewType("BindingId", str)
BackupId = NewType("BackupId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26
_OF_BYTES = _ALPHABET.encode("ascii") * 8


def new_tenant_id() -> TenantId:
    """Returns `ten_…`."""
    return TenantId(f"ten_{random_text()}")


def new_deployment_id() -> DeploymentId:
    """Returns `dep_…`."""
    return DeploymentId(f"dep_{random_text()}")


def new_key_id() -> KeyId:
    """Returns `key_…`."""
    return KeyId(f"key_{random_text()}")


def new_operation_id() -> OperationId:
    """Returns `op_…`."""
    return OperationId(f"op_{random_text()}")


def new_audit_event_id() -> AuditEventId:
    """Returns `aud_…`."""
    return AuditEventId(f"aud_{random_text()}")


def new_connection_id() -> ConnectionId:
    """Returns `con_…`."""
    return ConnectionId(f"con_{random_text()}")


def new_binding_id() -> BindingId:
    """Returns `bnd_…`."""
    return BindingId(f"bnd_{random_text()}")


def new_backup_id() -> BackupId:
    """Returns `bak_…`."""
    return BackupId(f"bak_{random_text()}")


def random_text(length: int = _LENGTH) -> str:
    """Returns `length` random characters of the base-32 alphabet, 5 bits each."""
    # Each character stands for eight of the 256 values of a byte: all are equally likely.
    return secrets.token_bytes(length).translate(_OF_BYTES).decode("ascii")
