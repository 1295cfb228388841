"""The way into the deployments' databases."""

from services.provisioner.deployments import DeploymentService
from services.provisioner.domain import DatabaseConnection, DatabaseRole, not_ready
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError
from services.provisioner.listening import Listening
from services.provisioner.waking import Waking, usable
from services.shared.ids import DeploymentId, TenantId


class DatabaseService:
    """The way into the deployments' databases."""

    def __init__(
        self,
        deployments: DeploymentService,
        waking: Waking,
        listening: Listening,
        driver: DatabaseDriver,
        database_name: str,
    ) -> None:
        self._deployments = deployments
        self._waking = waking
        self._listening = listening
        self._driver = driver
        self._database_name = database_name

    async def connection(
        self, tenant: TenantId, deployment_id: DeploymentId, role: DatabaseRole, *, in_mesh: bool
    ) -> DatabaseConnection:
        """Returns how to reach the deployment's database.

        Within the mesh that is the server itself, awake. To everybody else it is the port that is
        listened on for it, which stays the same as long as the deployment exists, and wakes the
        server when it is used.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it has no database, is suspended, or could not be made.
            UnavailableError: it is not ready.
        """
        deployment = usable(await self._deployments.get(tenant, deployment_id))
        try:
            if in_mesh:
                address = await self._waking.woken(deployment)
            else:
                address = await self._listening.open(deployment)
        except DriverError as error:
            raise not_ready() from error
        login = self._driver.login(deployment_id, role, deployment.generation)
        return DatabaseConnection(
            address=address,
            database=self._database_name,
            user=login.user,
            password=login.password,
        )

    async def wake(self, tenant: TenantId, deployment_id: DeploymentId) -> None:
        """Returns when the deployment's database accepts connections.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it has no database, is suspended, or could not be made.
            UnavailableError: it is not ready, or its database does not start in time.
        """
        await self._waking.woken(await self._deployments.get(tenant, deployment_id))
