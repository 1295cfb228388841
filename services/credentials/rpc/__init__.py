"""credentials.proto to the domain and back, a file a subject."""

from services.credentials.rpc.authorizations import AuthorizationsRpc
from services.credentials.rpc.bindings import BindingsRpc
from services.credentials.rpc.connections import ConnectionsRpc
from services.credentials.rpc.erasure import ErasureRpc
from services.credentials.rpc.vending import VendingRpc
from services.credentials.rpc.webhooks import WebhooksRpc


class CredentialsRpc(
    ConnectionsRpc, AuthorizationsRpc, BindingsRpc, WebhooksRpc, ErasureRpc, VendingRpc
):
    """Every method of `CredentialsService`."""
