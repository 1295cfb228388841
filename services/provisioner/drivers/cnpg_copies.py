"""Copies of Clusters: a new one begins with what `pg_basebackup` reads from the other.

The copy takes connections from the superuser alone until every password that it came with is
gone. A source that sleeps is started for the copy, and sleeps on for everybody else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers import cnpg_server
from services.provisioner.drivers.cnpg_api import NAMESPACE, POLICY, ConflictError, Object
from services.provisioner.drivers.cnpg_clusters import Clusters
from services.provisioner.drivers.cnpg_login import Logins, in_cluster
from services.provisioner.drivers.cnpg_objects import namespace_name
from services.provisioner.drivers.cnpg_walls import way_in, way_in_name, way_out
from services.provisioner.drivers.cnpg_watch import NotInTimeError
from services.provisioner.drivers.local_database import SUPERUSER
from services.provisioner.drivers.superuser import told
from services.provisioner.drivers.verifiers import verifier_of
from services.shared.ids import DeploymentId


class NoSourceError(Exception):
    """There is no database to copy."""


class CnpgCopies:
    """Copies the databases of one installation. See `protocol.DatabaseDriver.branch`."""

    def __init__(self, clusters: Clusters, logins: Logins) -> None:
        self._clusters = clusters
        self._logins = logins
        # One copy at a time of each target; between replicas the deployment's lock sees to that.
        self._turns: WeakValueDictionary[DeploymentId, asyncio.Lock] = WeakValueDictionary()

    async def branch(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the target's database a copy of the source's; see the protocol.

        Raises:
            NoSourceError: there is none.
            NotInTimeError: it is not made in time; nothing of it is left.
        """
        async with self._turns.setdefault(target, asyncio.Lock()):
            found = await self._clusters.read(target)
            if found is None or objects.is_foreign_copy(found):
                await self._copy(source, target)
            await self.release(target)

    async def release(self, target: DeploymentId) -> None:
        """Leaves nothing at the source of a copy that is made, or given up."""
        space = await self._clusters.namespace(target)
        source = objects.annotations(space).get(objects.SOURCE) if space is not None else None
        if not source:
            return
        origin = DeploymentId(source)
        found = await self._clusters.read(origin)
        if found is not None:
            await self._shut_out(origin, target, found)
            await self._put_back(origin, target)
        notes = {"metadata": {"annotations": {objects.SOURCE: None}}}
        await self._clusters.api.merge(NAMESPACE, namespace_name(target), notes)

    async def _copy(self, source: DeploymentId, target: DeploymentId) -> None:
        found = await self._clusters.read(source)
        if found is None or told(objects.annotations(found).get(objects.PREPARED, "")) is None:
            raise NoSourceError("there is no database to copy")
        async with self._all_or_nothing(target):
            await self._begin(source, target)
            await self._wake_for(source, target)
            await self._let_in(source, target)
            await self._make(source, target, found)
            await self._clusters.ready(target)
            await self._disown(source, target)

    @contextlib.asynccontextmanager
    async def _all_or_nothing(self, target: DeploymentId) -> AsyncIterator[None]:
        """What cannot be made is removed: the job that copies does not begin anew by itself."""
        try:
            yield
        except NotInTimeError:
            await self.release(target)
            await self._clusters.remove(target)
            raise

    async def _begin(self, source: DeploymentId, target: DeploymentId) -> None:
        """Writes down from whom, before anything is done there."""
        await self._clusters.own_namespace(target)
        notes = {"metadata": {"annotations": {objects.SOURCE: source}}}
        await self._clusters.api.merge(NAMESPACE, namespace_name(target), notes)
        await self._clusters.api.apply(way_out(self._clusters.shape, source, target))

    async def _wake_for(self, source: DeploymentId, target: DeploymentId) -> None:
        """Starts a source that sleeps, for this copy alone."""
        while True:
            found = await self._clusters.read(source)
            if found is None:
                raise NoSourceError("there is no database to copy")
            notes = objects.annotations(found)
            asleep = notes.get(objects.HIBERNATION) == "on" or objects.is_copied(found)
            if not asleep or _mark(target) in notes:
                break
            with contextlib.suppress(ConflictError):
                version = found["metadata"]["resourceVersion"]
                marked = {objects.HIBERNATION: "off", _mark(target): "true"}
                await self._clusters.annotate(source, marked, version)
        await self._clusters.ready(source)

    async def _put_back(self, source: DeploymentId, target: DeploymentId) -> None:
        """Lets a source sleep again that was started for this copy, and that nobody woke since."""
        while True:
            found = await self._clusters.read(source)
            if found is None or _mark(target) not in objects.annotations(found):
                return
            others = [one for one in objects.annotations(found) if one.startswith(objects.COPYING)]
            notes: dict[str, str | None] = {_mark(target): None}
            if others == [_mark(target)]:
                notes[objects.HIBERNATION] = "on"
            with contextlib.suppress(ConflictError):
                await self._clusters.annotate(source, notes, found["metadata"]["resourceVersion"])
                if objects.HIBERNATION in notes:
                    await self._clusters.asleep(source)
                return

    async def _let_in(self, source: DeploymentId, target: DeploymentId) -> None:
        shape, secret = self._clusters.shape, self._logins.secret
        await self._clusters.api.apply(way_in(shape, source, target))
        superuser = await self._logins.reachable(source)
        verifier = verifier_of(secret, target, objects.COPIERS)
        await cnpg_server.admit_copier(superuser, target, verifier)

    async def _shut_out(self, source: DeploymentId, target: DeploymentId, found: Object) -> None:
        api, where = self._clusters.api, namespace_name(source)
        await api.delete(POLICY, way_in_name(target), where)
        if objects.is_ready(found):
            superuser = await self._logins.reachable(source)
            await cnpg_server.dismiss_copier(superuser, target)

    async def _make(self, source: DeploymentId, target: DeploymentId, found: Object) -> None:
        shape, secret = self._clusters.shape, self._logins.secret
        user, password = cnpg_server.copier(target), secret.password(target, objects.COPIERS)
        address = in_cluster(namespace_name(source))
        authority = (await self._logins.address(source)).authority
        copying = objects.secret(shape, target, objects.COPIER_SECRET, user, password, authority)
        before = told(objects.annotations(found).get(objects.PREPARED, ""))
        await self._clusters.make(
            target,
            before.quota_bytes if before is not None else 0,
            [*self._logins.secrets(target), copying],
            objects.copied_from(address.host, address.port, user, encrypted=shape.encrypted),
            open_to_tenants=False,
            at_least_bytes=objects.size_of(found),
        )

    async def _disown(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the copy's passwords its own; the superuser's may still be the source's."""
        found, secret = await self._clusters.read(target), self._logins.secret
        if found is None or not objects.is_foreign_copy(found):
            # Another try was quicker, and somebody may have come in since.
            return
        superuser = await self._logins.reachable(target, secret.password(source, SUPERUSER))
        await cnpg_server.disown(superuser, verifier_of(secret, target, SUPERUSER))
        await self._clusters.annotate(target, {objects.DISOWNED: "true"})


def _mark(target: DeploymentId) -> str:
    return objects.COPYING + target.removeprefix("dep_")
