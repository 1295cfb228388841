"""What the provisioner does, by subject."""

from dataclasses import dataclass

from services.provisioner.administrators import Administrators
from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deployments import DeploymentService
from services.provisioner.environment import Environments
from services.provisioner.secrets import Secrets


@dataclass(frozen=True, slots=True)
class ProvisionerService:
    """Deployments and their resources, over one database."""

    creation: Creation
    deletion: Deletion
    deployments: DeploymentService
    databases: DatabaseService
    secrets: Secrets
    environments: Environments
    administrators: Administrators
