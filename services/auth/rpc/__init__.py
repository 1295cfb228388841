"""auth.proto to the domain and back, a file a subject."""

from services.auth.rpc.audit import AuditRpc
from services.auth.rpc.keys import KeysRpc
from services.auth.rpc.owned import OwnedRpc
from services.auth.rpc.support import SupportRpc
from services.auth.rpc.tenants import TenantsRpc
from services.auth.rpc.watchers import WatchersRpc


class AuthRpc(TenantsRpc, KeysRpc, OwnedRpc, WatchersRpc, AuditRpc, SupportRpc):
    """Every method of `AuthService`."""
