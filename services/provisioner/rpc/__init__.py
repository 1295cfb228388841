"""provisioner.proto to the domain and back, a file a subject."""

from services.provisioner.rpc.databases import DatabasesRpc
from services.provisioner.rpc.deployments import DeploymentsRpc


class ProvisionerRpc(DeploymentsRpc, DatabasesRpc):
    """Every method of `ProvisionerService`."""
