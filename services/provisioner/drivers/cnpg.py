"""The `cnpg` database driver: a CloudNativePG Cluster per deployment, in a namespace of its own."""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers import verifiers
from services.provisioner.drivers.cnpg_api import ApiError, Object
from services.provisioner.drivers.cnpg_clusters import Clusters, NotOursError
from services.provisioner.drivers.cnpg_copies import CnpgCopies, NoSourceError
from services.provisioner.drivers.cnpg_login import Logins
from services.provisioner.drivers.cnpg_watch import NotInTimeError
from services.provisioner.drivers.protocol import (
    DriverError,
    Login,
    Measured,
    UnsupportedError,
    WantedDatabase,
)
from services.provisioner.drivers.server_command import ServerError
from services.provisioner.drivers.superuser import Prepared, told
from services.shared.ids import BackupId, DeploymentId

_FAILURES = (
    ApiError,
    NotInTimeError,
    NotOursError,
    NoSourceError,
    ServerError,
    OSError,
    ssl.SSLError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)
_NO_BACKUPS = "databases of this kind are not backed up here; branch them, or use the cluster's own"


class CnpgDriver:
    """Keeps the Clusters of one installation; see `protocol.DatabaseDriver` for its promises."""

    def __init__(self, clusters: Clusters, logins: Logins) -> None:
        self._clusters = clusters
        self._logins = logins
        self._copies = CnpgCopies(clusters, logins)

    @property
    def backs_up(self) -> bool:
        """Backups are not supported: nothing fills a Cluster from a file; see the protocol."""
        return False

    async def ensure(self, wanted: WantedDatabase) -> DatabaseAddress:
        """Returns where the database is; see the protocol."""
        deployment = wanted.deployment_id
        with _driver_errors("the database server is not ready"):
            await self._make(wanted)
            await self._clusters.wake(deployment)
            found = await self._clusters.read(deployment)
            fully = Prepared(wanted.open_generations, wanted.quota_bytes)
            await self._logins.prepare(deployment, _told(found), fully)
            await self._clusters.open(deployment)
            await self._clusters.annotate(deployment, {objects.PREPARED: fully.text})
            return await self._logins.address(deployment)

    async def exists(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database is when nothing is missing; see the protocol."""
        with _driver_errors("the cluster does not say whether the database is there"):
            running = await self._running(deployment)
            return await self._logins.address(deployment) if running is not None else None

    async def sleep(self, deployment: DeploymentId) -> None:
        """Hibernates the Cluster; see the protocol."""
        with _driver_errors("the database server does not stop"):
            found = await self._clusters.read(deployment)
            # One that runs for copies alone sleeps when they are made.
            if found is not None and not objects.is_copied(found):
                await self._clusters.hibernate(deployment)

    async def kept(self, deployment: DeploymentId) -> bool:
        """Whether the data are here; see the protocol."""
        with _driver_errors("the cluster does not say whether the data are there"):
            found = await self._clusters.read(deployment)
            if found is None or _told(found) is None or found["metadata"].get("deletionTimestamp"):
                return False
            return await self._clusters.has_volumes(deployment)

    async def destroy(self, deployment: DeploymentId) -> None:
        """Removes the namespace and what was in it; see the protocol."""
        with _driver_errors("the database is not gone"):
            await self._copies.release(deployment)
            await self._clusters.remove(deployment)
            self._logins.forget(deployment)

    def login(self, deployment: DeploymentId, role: DatabaseRole, generation: int) -> Login:
        """Returns who acts as `role`; nothing stores the password (P-02)."""
        return verifiers.login(self._logins.secret, deployment, role, generation)

    async def open_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Lets a generation's passwords open the database; see the protocol."""

        def opened(before: Prepared) -> Prepared:
            if generation in before.open_generations:
                return before
            kept = tuple(one for one in before.open_generations if one == generation - 1)
            return replace(before, open_generations=(*kept, generation))

        await self._tell(deployment, opened)

    async def close_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Ends a generation's passwords and sessions; see the protocol."""

        def closed(before: Prepared) -> Prepared:
            left = tuple(one for one in before.open_generations if one != generation)
            return replace(before, open_generations=left)

        await self._tell(deployment, closed)

    async def set_quota(self, deployment: DeploymentId, quota_bytes: int) -> None:
        """Lets the database hold so much from now on, and grows its volume; see the protocol."""
        await self._tell(deployment, lambda before: replace(before, quota_bytes=quota_bytes))

    async def measure(self, deployment: DeploymentId) -> Measured | None:
        """Returns how the database is; see the protocol."""
        with _driver_errors("the database server does not say how it is"):
            running = await self._running(deployment)
            before = _told(running)
            if before is None:
                return None
            superuser = await self._logins.superuser(deployment)
            return await superuser.measure(before.quota_bytes)

    async def branch(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the target's database a copy of the source's; see the protocol."""
        with _driver_errors("the copy cannot be made"):
            await self._copies.branch(source, target)

    async def back_up(self, deployment: DeploymentId, file: Path, backup: BackupId) -> int:  # noqa: ARG002 the protocol's
        """Raises UnsupportedError; see `backs_up`."""
        raise UnsupportedError(_NO_BACKUPS)

    async def restore(
        self,
        file: Path,  # noqa: ARG002 the protocol's
        target: DeploymentId,  # noqa: ARG002
        source: DeploymentId,  # noqa: ARG002
        backup: BackupId,  # noqa: ARG002
    ) -> None:
        """Raises UnsupportedError; see `backs_up`."""
        raise UnsupportedError(_NO_BACKUPS)

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment that has a namespace of ours."""
        with _driver_errors("the cluster does not say what there is"):
            return await self._clusters.found()

    async def keep_spare(self) -> None:
        """Does nothing; see the protocol."""

    async def _make(self, wanted: WantedDatabase) -> None:
        deployment = wanted.deployment_id
        found = await self._clusters.read(deployment)
        if found is not None and objects.is_foreign_copy(found):
            raise ServerError("the copy is not whole")
        await self._clusters.make(
            deployment,
            wanted.quota_bytes,
            self._logins.secrets(deployment),
            objects.empty(),
            open_to_tenants=True,
        )

    async def _running(self, deployment: DeploymentId) -> Object | None:
        """Returns the Cluster when it is whole, and awake for everybody."""
        found = await self._clusters.read(deployment)
        if found is None or not objects.is_ready(found) or objects.is_copied(found):
            return None
        return found if _told(found) is not None else None

    async def _tell(self, deployment: DeploymentId, change: Callable[[Prepared], Prepared]) -> None:
        """Tells a server that runs something else than before."""
        with _driver_errors("the database server did not take it"):
            before = _told(await self._running(deployment))
            if before is None:
                return
            wanted = change(before)
            await self._clusters.grow(deployment, wanted.quota_bytes)
            await self._logins.prepare(deployment, replace(before, whole=False), wanted)
            await self._clusters.annotate(deployment, {objects.PREPARED: wanted.text})


def _told(found: Object | None) -> Prepared | None:
    return told(objects.annotations(found).get(objects.PREPARED, "")) if found else None


@contextlib.contextmanager
def _driver_errors(message: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise DriverError(message) from error
