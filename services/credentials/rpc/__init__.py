"""credentials.proto to the domain and back, a file a subject."""

from services.credentials.rpc.part import Part


class CredentialsRpc(Part):
    """Every method of `CredentialsService`."""
