"""What auth does, by subject."""

from dataclasses import dataclass

from services.auth.audit import AuditLog
from services.auth.deployments import Deployments
from services.auth.keys import Keys
from services.auth.revocations import RevocationFeed
from services.auth.tenants import Tenants


@dataclass(frozen=True, slots=True)
class AuthService:
    """Tenants, keys and the audit log, over one database."""

    tenants: Tenants
    keys: Keys
    deployments: Deployments
    audit: AuditLog
    feed: RevocationFeed
