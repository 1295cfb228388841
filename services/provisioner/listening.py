"""The public port of each database: written down once, and listened on from then on (P-12)."""

import structlog

from services.provisioner import resource_store, store
from services.provisioner.domain import DatabaseAddress, Deployment, not_ready
from services.provisioner.drivers.protocol import DatabaseListeners
from services.shared.ids import DeploymentId
from services.shared.postgres import Database

_TRIES = 8


class Listening:
    """Keeps a port open for every database, whether its server runs or not.

    Of several replicas on one machine, whoever is first at a port serves it; the others are there
    when it ends.
    """

    def __init__(self, database: Database, listeners: DatabaseListeners) -> None:
        self._database = database
        self._listeners = listeners

    async def open(self, deployment: Deployment) -> DatabaseAddress:
        """Returns where everybody but the mesh reaches the database, for as long as it exists.

        Raises:
            UnavailableError: no port could be found; a later try may succeed.
            DriverError: no port is free.
        """
        port = deployment.listener_port
        if port is None:
            port = await self._chosen(deployment.deployment_id)
        elif await self._listeners.open(deployment.deployment_id, port) is None:
            structlog.get_logger().info(
                "another listens", deployment_id=deployment.deployment_id, port=port
            )
        return DatabaseAddress(self._listeners.host, port)

    async def close(self, deployment_id: DeploymentId) -> None:
        """Ends it, for a database that is no more."""
        await self._listeners.close(deployment_id)

    async def match(self) -> None:
        """Listens for every database that is written down, and for no other.

        Raises:
            UnavailableError: the rows cannot be read.
            DriverError: no port is free.
        """
        before = self._listeners.opened
        async with self._database.service() as connection:
            wanted = await resource_store.databases_to_listen_for(connection)
        for deployment in wanted:
            if deployment.deployment_id not in before:
                await self.open(deployment)
        # Those that were opened since the rows were read are not among them.
        for gone in before - {deployment.deployment_id for deployment in wanted}:
            await self.close(gone)

    async def _chosen(self, deployment_id: DeploymentId) -> int:
        """Returns a port that was free, and is the deployment's own from now on."""
        for _ in range(_TRIES):
            port = await self._listeners.open(deployment_id, None)
            if port is not None:
                async with self._database.service() as connection:
                    kept = await store.keep_listener_port(connection, deployment_id, port)
                if kept == port:
                    return port
                # It is kept for another database, or this one has got one meanwhile.
                await self._listeners.close(deployment_id)
                if kept is not None:
                    await self._listeners.open(deployment_id, kept)
                    return kept
        raise not_ready()
