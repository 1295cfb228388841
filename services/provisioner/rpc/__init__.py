"""provisioner.proto to the domain and back, a file a subject."""

from services.provisioner.rpc.backups import BackupsRpc
from services.provisioner.rpc.databases import DatabasesRpc
from services.provisioner.rpc.deletions import DeletionsRpc
from services.provisioner.rpc.deployments import DeploymentsRpc
from services.provisioner.rpc.rotations import RotationsRpc
from services.provisioner.rpc.secrets import SecretsRpc


class ProvisionerRpc(
    DeploymentsRpc, DatabasesRpc, DeletionsRpc, RotationsRpc, SecretsRpc, BackupsRpc
):
    """Every method of `ProvisionerService`."""
