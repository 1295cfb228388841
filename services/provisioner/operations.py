"""Operations, from being written down to whoever is to do them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from services.provisioner import operation_store
from services.provisioner.domain import Deployment, Operation, OperationKind, Step
from services.provisioner.master_secret import MasterSecret
from services.provisioner.operation_store import SealedKey
from services.provisioner.ports import Bearer, Queue
from services.shared.errors import FailedPreconditionError, Reason
from services.shared.ids import DeploymentId, OperationId, new_operation_id
from services.shared.postgres import Connection


class Operations:
    """Writes operations down, with the key that they act with and their place in the queue."""

    def __init__(self, secret: MasterSecret, queue: Queue) -> None:
        self._secret = secret
        self._queue = queue

    async def begin(
        self,
        connection: Connection,
        deployment: Deployment,
        kind: OperationKind,
        step: Step,
        job: Bearer,
        *,
        request_id: str | None = None,
        parameters: Mapping[str, Any] = MappingProxyType({}),
    ) -> Operation:
        """Returns a new operation, which is begun when the transaction commits.

        Call it last in a transaction that holds the deployment's row: what follows runs as the
        service's role.
        """
        operation_id = new_operation_id()
        operation = await operation_store.insert(
            connection,
            deployment,
            operation_id,
            kind,
            step,
            self.sealed(operation_id, job),
            request_id=request_id,
            parameters=parameters,
        )
        await self.enqueue(connection, deployment.deployment_id)
        return operation

    async def enqueue(self, connection: Connection, deployment_id: DeploymentId) -> None:
        """Lets somebody look at the deployment when the transaction commits; see `begin`."""
        await self._queue.enqueue(connection, deployment_id)

    def sealed(self, operation_id: OperationId, job: Bearer) -> SealedKey:
        """Returns the key as it is kept: it opens for this operation alone."""
        return SealedKey(self._secret.seal(job.key, bound_to=operation_id), job.renew_time)


async def check_idle(
    connection: Connection, deployment_id: DeploymentId, *, waiting: bool = False
) -> None:
    """Returns when nothing is being done with the deployment, whose row is locked.

    A rotation that merely waits for the passwords of before to end counts only if asked for.

    Raises:
        FailedPreconditionError: something is; it says which operation.
    """
    running = await operation_store.running(connection, deployment_id, waiting=waiting)
    if running is not None:
        raise operation_running(running)


def operation_running(operation: Operation) -> FailedPreconditionError:
    """Returns the error for a deployment that is being worked on."""
    return FailedPreconditionError(
        "another operation on the deployment is running",
        Reason.OPERATION_RUNNING,
        metadata={"operation_id": operation.operation_id},
    )
