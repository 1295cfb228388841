"""What the provisioner does, by subject."""

from dataclasses import dataclass

from services.provisioner.administrators import Administrators
from services.provisioner.backups import Backups
from services.provisioner.branching import Branching
from services.provisioner.certification import Certification
from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deployments import DeploymentService
from services.provisioner.environment import Environments
from services.provisioner.rotation import Rotation
from services.provisioner.secrets import Secrets
from services.provisioner.suspension import Suspension
from services.provisioner.tenant_deletion import TenantDeletion
from services.provisioner.updating import Terms, Updating


@dataclass(frozen=True, slots=True)
class ProvisionerService:
    """Deployments and their resources, over one database."""

    creation: Creation
    deletion: Deletion
    tenant_deletion: TenantDeletion
    certification: Certification
    branching: Branching
    backups: Backups
    deployments: DeploymentService
    databases: DatabaseService
    updating: Updating
    suspension: Suspension
    rotation: Rotation
    terms: Terms
    secrets: Secrets
    environments: Environments
    administrators: Administrators
