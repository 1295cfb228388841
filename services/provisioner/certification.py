"""What can be learned of a deletion by who has its token."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.provisioner import certificate_store, deletion_store, tombstone_store
from services.provisioner.certificate_store import DeploymentCertificate
from services.provisioner.certificate_tokens import digest
from services.provisioner.certificates import CertificateKeys
from services.provisioner.deletion_store import Left
from services.provisioner.domain import OperationState
from services.provisioner.tombstone_store import Tombstone
from services.shared.errors import NotFoundError
from services.shared.postgres import Connection, Database

_MOST_LEFT = 100


@dataclass(frozen=True, slots=True)
class DeletionStatus:
    """How far a deletion is."""

    state: OperationState
    # None until everything is verified to be gone.
    certificate: str | None
    left: Sequence[Left]


class Certification:
    """Answers whoever has a token, whose keys are dead; and anybody who asks for public keys."""

    def __init__(self, database: Database, keys: CertificateKeys) -> None:
        self._database = database
        self._keys = keys

    async def status(self, token: str) -> DeletionStatus:
        """Returns how far the deletion is that the token opens.

        It is looked up by its digest, so that the time it takes tells nothing of any other.

        Raises:
            NotFoundError: it opens none.
        """
        async with self._database.service() as connection:
            deployment = await certificate_store.find(connection, digest(token))
            if deployment is not None:
                return await _of_deployment(connection, deployment)
            tombstone = await tombstone_store.of_token(connection, digest(token))
            if tombstone is not None:
                return await _of_tenant(connection, tombstone)
        raise NotFoundError("deletion")

    def key_set(self) -> str:
        """Returns the public keys, also those of before, as a JSON Web Key Set."""
        return self._keys.key_set()


async def _of_deployment(connection: Connection, found: DeploymentCertificate) -> DeletionStatus:
    if found.certificate is not None:
        return DeletionStatus(OperationState.SUCCEEDED, found.certificate, ())
    left = await deletion_store.left_of_deployment(connection, found.operation_id)
    failed = any(each.state is OperationState.FAILED for each in left)
    return DeletionStatus(OperationState.FAILED if failed else OperationState.RUNNING, None, left)


async def _of_tenant(connection: Connection, found: Tombstone) -> DeletionStatus:
    if found.certificate is not None:
        return DeletionStatus(OperationState.SUCCEEDED, found.certificate, ())
    own = Left(None, None, found.state, found.step, found.retries, found.message)
    children = await deletion_store.left_of_tenant(connection, found.tenant_id, _MOST_LEFT - 1)
    return DeletionStatus(OperationState.RUNNING, None, (own, *children))
