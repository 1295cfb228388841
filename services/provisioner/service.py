"""What the provisioner does, by subject."""

from dataclasses import dataclass

from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deployments import DeploymentService


@dataclass(frozen=True, slots=True)
class ProvisionerService:
    """Deployments and their resources, over one database."""

    creation: Creation
    deletion: Deletion
    deployments: DeploymentService
    databases: DatabaseService
