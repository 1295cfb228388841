"""What auth does, by subject."""

from dataclasses import dataclass

from services.auth.audit import AuditLog
from services.auth.audit_intake import AuditIntake
from services.auth.endings import Endings
from services.auth.erasure import Erasure
from services.auth.keys import Keys
from services.auth.last_uses import LastUses
from services.auth.owned import OwnedIds
from services.auth.revocations import RevocationFeed
from services.auth.support import SupportKeys
from services.auth.tenants import Tenants
from services.auth.watchers import Watchers


@dataclass(frozen=True, slots=True)
class AuthService:
    """Tenants, keys and the audit log, over one database."""

    tenants: Tenants
    keys: Keys
    endings: Endings
    erasure: Erasure
    owned: OwnedIds
    audit: AuditLog
    intake: AuditIntake
    feed: RevocationFeed
    watchers: Watchers
    uses: LastUses
    support: SupportKeys
