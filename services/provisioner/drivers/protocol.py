"""What a kind of database has to do to be one, each of it safe to repeat."""

from collections.abc import Sequence
from typing import Protocol

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.shared.ids import DeploymentId


class DriverError(Exception):
    """The database is not as it should be, and trying again may help. Names no secret."""


class DatabaseDriver(Protocol):
    """Makes databases, one per deployment, and takes them away."""

    async def ensure(
        self, deployment: DeploymentId, generation: int, wanted_port: int | None
    ) -> DatabaseAddress:
        """Returns where the deployment's database is, made and started as far as it was not.

        Idempotent from every state that an earlier try can have left. The port is the wanted one
        when that is free.

        Raises:
            DriverError: it is not ready; a later try may succeed.
        """
        ...

    async def exists(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database is when it is whole and running; changes nothing."""
        ...

    async def sleep(self, deployment: DeploymentId) -> None:
        """Ends the database's server; its data stay. Does nothing if there is none.

        Raises:
            DriverError: it does not end; a later try may succeed.
        """
        ...

    async def kept(self, deployment: DeploymentId) -> bool:
        """Returns whether the database's data are here, its server running or not."""
        ...

    async def destroy(self, deployment: DeploymentId) -> None:
        """Ends the database and removes its data; does nothing if there is none.

        Raises:
            DriverError: something of it is left; a later try may succeed.
        """
        ...

    def password(self, deployment: DeploymentId, role: DatabaseRole, generation: int) -> str:
        """Returns the password of a role of the deployment's database."""
        ...

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment of which anything is left here, wanted or not."""
        ...
