"""Deployments' Clusters: made, woken, put to sleep, removed, by what the API says of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from services.provisioner.domain import deployment_id
from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers.cnpg_api import (
    CLAIM,
    CLUSTER,
    NAMESPACE,
    POD,
    VOLUME,
    ConflictError,
    KubernetesApi,
    Object,
)
from services.provisioner.drivers.cnpg_guard import guard
from services.provisioner.drivers.cnpg_objects import NAME, Shape, namespace_name
from services.provisioner.drivers.cnpg_walls import door, walls
from services.provisioner.drivers.cnpg_watch import NotInTimeError, until
from services.shared.ids import DeploymentId

_POLL_SECONDS = 0.1
_CONFLICTS = 10


class NotOursError(Exception):
    """The namespace of that name is somebody else's, or just going."""


class Clusters:
    """Looks after the Clusters of one installation. All methods raise ApiError.

    Args:
        api: the cluster's.
        shape: how Clusters are made here.
        patience: seconds for what the cluster does after it was told; NotInTimeError beyond them.
    """

    def __init__(self, api: KubernetesApi, shape: Shape, patience: float) -> None:
        self.api = api
        self.shape = shape
        self._patience = patience

    async def read(self, deployment: DeploymentId) -> Object | None:
        """Returns the deployment's Cluster; None if there is none that is ours."""
        found = await self.api.get(CLUSTER, NAME, namespace_name(deployment))
        return found if found is not None and self._is_ours(found) else None

    async def make(
        self,
        deployment: DeploymentId,
        quota_bytes: int,
        secrets: Sequence[Object],
        origin: Mapping[str, Any],
        *,
        open_to_tenants: bool,
        at_least_bytes: int = 0,
    ) -> None:
        """Makes the Cluster as it should be, behind its walls; its volumes never shrink.

        Args:
            deployment: whose it is.
            quota_bytes: what the database may hold.
            secrets: what has to be there before it.
            origin: what it begins with, if it is not there.
            open_to_tenants: see `cnpg_objects.cluster`.
            at_least_bytes: of its volumes, whatever the quota.

        Raises:
            NotOursError: there is a namespace of that name already.
        """
        await self.own_namespace(deployment)
        size = max(at_least_bytes, objects.size(quota_bytes))

        async def attempt() -> None:
            found = await self.read(deployment)
            largest = size if found is None else max(size, objects.size_of(found))
            begun = origin if found is None else objects.origin_of(found)
            before = [*walls(self.shape, deployment, largest), *secrets]
            await asyncio.gather(*(self.api.apply(one) for one in before))
            wanted = objects.cluster(
                self.shape, deployment, largest, begun, open_to_tenants=open_to_tenants
            )
            if found is not None:
                wanted["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
            await self.api.apply(wanted)

        await _unless_changed(attempt)

    async def wake(self, deployment: DeploymentId) -> None:
        """Returns when the Cluster takes connections; from now on it is awake for everybody.

        Raises:
            NotInTimeError: it does not.
        """
        found = await self.read(deployment)
        if found is None or _sleeps(found) or objects.is_copied(found):
            copying = _copying(found)
            await self.annotate(deployment, {objects.HIBERNATION: "off", **copying})
        await self.ready(deployment)

    async def ready(self, deployment: DeploymentId) -> None:
        """Returns when the Cluster takes connections.

        Raises:
            NotInTimeError: it does not.
        """
        where = (CLUSTER, NAME, namespace_name(deployment))
        await until(self.api, *where, objects.is_ready, self._patience)

    async def hibernate(self, deployment: DeploymentId) -> None:
        """Returns when no instance of the Cluster is left; its volumes stay.

        Raises:
            NotInTimeError: one is.
        """
        await self.annotate(deployment, {objects.HIBERNATION: "on"})
        await self.asleep(deployment)

    async def asleep(self, deployment: DeploymentId) -> None:
        """Returns when no instance of a Cluster is left that was told to sleep.

        Raises:
            NotInTimeError: one is.
        """
        where = namespace_name(deployment)
        await self.api.apply(guard(self.shape, deployment, awake=False))
        await until(self.api, CLUSTER, NAME, where, _is_hibernated, self._patience)

        async def gone() -> bool:
            return not await self.api.list(POD, where, objects.OF_CLUSTER)

        # What CloudNativePG says may be what it said the last time.
        await self._until(gone, "pods")

    async def open(self, deployment: DeploymentId) -> None:
        """Lets the guard work, and the mesh in."""
        wanted = guard(self.shape, deployment, awake=True), door(self.shape, deployment)
        await asyncio.gather(*(self.api.apply(one) for one in wanted))

    async def annotate(
        self,
        deployment: DeploymentId,
        notes: Mapping[str, str | None],
        version: str | None = None,
    ) -> None:
        """Writes notes on the Cluster, and removes those that are None.

        Raises:
            ConflictError: it is not `version` any more, which must be the present one if given.
        """
        meta: Object = {"annotations": dict(notes)}
        if version is not None:
            meta["resourceVersion"] = version
        await self.api.merge(CLUSTER, NAME, {"metadata": meta}, namespace_name(deployment))

    async def grow(self, deployment: DeploymentId, quota_bytes: int) -> None:
        """Makes the volumes large enough for a quota; they never shrink."""
        size = objects.size(quota_bytes)

        async def attempt() -> None:
            found = await self.read(deployment)
            if found is None or objects.size_of(found) >= size:
                return
            for one in walls(self.shape, deployment, size):
                if one["kind"] == "ResourceQuota":
                    await self.api.apply(one)
            meta = {"resourceVersion": found["metadata"]["resourceVersion"]}
            change = {"metadata": meta, "spec": {"storage": {"size": objects.quantity(size)}}}
            await self.api.merge(CLUSTER, NAME, change, namespace_name(deployment))

        await _unless_changed(attempt)

    async def has_volumes(self, deployment: DeploymentId) -> bool:
        """Whether a volume with the database's data is there."""
        claims = await self.api.list(CLAIM, namespace_name(deployment), objects.OF_CLUSTER)
        return any(not claim["metadata"].get("deletionTimestamp") for claim in claims)

    async def namespace(self, deployment: DeploymentId) -> Object | None:
        """Returns the deployment's namespace; None if there is none that is ours."""
        found = await self.api.get(NAMESPACE, namespace_name(deployment))
        return found if found is not None and self._is_ours(found) else None

    async def remove(self, deployment: DeploymentId) -> None:
        """Returns when nothing of the namespace is left, nor of the volumes that were used in it.

        First the Cluster, then its volumes, and the namespace last: whoever comes after one that
        was given up finds there what to look for.

        Raises:
            NotInTimeError: something is left.
        """
        where = namespace_name(deployment)
        if await self.namespace(deployment) is None:
            return
        volumes = await self._written_volumes(deployment)
        await self.api.delete(CLUSTER, NAME, where)
        await until(self.api, CLUSTER, NAME, where, _is_gone, self._patience)

        async def emptied() -> bool:
            return not await self.api.list(CLAIM, where, objects.OF_CLUSTER)

        async def wiped() -> bool:
            left = await asyncio.gather(*(self.api.get(VOLUME, volume) for volume in volumes))
            return not any(left)

        await self._until(emptied, "persistentvolumeclaims")
        await self._until(wiped, "persistentvolumes")
        await self.api.delete(NAMESPACE, where)

        async def unnamed() -> bool:
            return await self.api.get(NAMESPACE, where) is None

        await self._until(unnamed, "namespaces")

    async def found(self) -> list[DeploymentId]:
        """Returns every deployment that has a namespace here, whole or not, also one that goes."""
        spaces = await self.api.list(NAMESPACE, labels=objects.of_installation(self.shape))
        named = (space["metadata"]["labels"].get(objects.DEPLOYMENT_LABEL) for space in spaces)
        return [DeploymentId(name) for name in named if name and deployment_id(name) is not None]

    def _is_ours(self, found: Object) -> bool:
        labels = found["metadata"].get("labels") or {}
        return labels.get(objects.INSTALLATION_LABEL) == self.shape.installation

    async def own_namespace(self, deployment: DeploymentId) -> None:
        """Makes the deployment's namespace.

        Raises:
            NotOursError: there is one of that name already.
        """
        found = await self.api.get(NAMESPACE, namespace_name(deployment))
        if found is not None and found["metadata"].get("deletionTimestamp"):
            raise NotOursError("what was there before is still going")
        if found is not None and not self._is_ours(found):
            raise NotOursError("there is another namespace of that name")
        await self.api.apply(objects.namespace(self.shape, deployment))

    async def _written_volumes(self, deployment: DeploymentId) -> Sequence[str]:
        """Returns the volumes to wait for, after they are written on the namespace."""
        where = namespace_name(deployment)
        claims = await self.api.list(CLAIM, where, objects.OF_CLUSTER)
        space = await self.namespace(deployment)
        written = objects.annotations(space).get(objects.VOLUMES, "") if space else ""
        bound = {claim["spec"].get("volumeName") for claim in claims}
        volumes = sorted(one for one in {*written.split(","), *bound} if one)
        notes = {"metadata": {"annotations": {objects.VOLUMES: ",".join(volumes)}}}
        await self.api.merge(NAMESPACE, where, notes)
        return volumes

    async def _until(self, done: Callable[[], Awaitable[bool]], what: str) -> None:
        end = monotonic() + self._patience
        while not await done():
            if monotonic() > end:
                raise NotInTimeError(what)
            await asyncio.sleep(_POLL_SECONDS)


async def _unless_changed(attempt: Callable[[], Awaitable[None]]) -> None:
    """Tries again as long as someone else was quicker."""
    for _ in range(_CONFLICTS - 1):
        try:
            return await attempt()
        except ConflictError:
            await asyncio.sleep(_POLL_SECONDS)
    return await attempt()


def _sleeps(found: Object) -> bool:
    return objects.annotations(found).get(objects.HIBERNATION) == "on"


def _copying(found: Object | None) -> dict[str, None]:
    notes = objects.annotations(found) if found is not None else {}
    return {name: None for name in notes if name.startswith(objects.COPYING)}


def _is_hibernated(found: Object | None) -> bool:
    return found is None or (_sleeps(found) and objects.condition(found, objects.HIBERNATION))


def _is_gone(found: Object | None) -> bool:
    return found is None
