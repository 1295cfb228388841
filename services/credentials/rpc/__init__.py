"""credentials.proto to the domain and back, a file a subject."""

from services.credentials.rpc.webhooks import WebhooksRpc


class CredentialsRpc(WebhooksRpc):
    """Every method of `CredentialsService`."""
