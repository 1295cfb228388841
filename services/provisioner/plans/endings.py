"""The end of each kind of resource."""

from collections.abc import Mapping
from typing import Any

from services.provisioner import deletion_store
from services.provisioner.deletion_ports import (
    TenantCounters,
    TenantKeys,
    TenantLoans,
    TenantRoutes,
)
from services.provisioner.domain import ResourceKind
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError
from services.provisioner.listening import Listening
from services.provisioner.ports import Registry, Routes
from services.provisioner.work import Work
from services.shared.postgres import Database


class KeysEnding:
    """A deployment's keys: every one is revoked, and none is issued again."""

    kind = ResourceKind.KEYS

    def __init__(self, registry: Registry, keys: TenantKeys) -> None:
        self._registry = registry
        self._keys = keys

    async def close(self, work: Work) -> bool:
        """Ends every key of the deployment."""
        await self._registry.retire(work.bearer, work.deployment.deployment_id)
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """The same: a key that is ended is gone."""
        await self.close(work)
        return {"checked": "auth knows no such deployment"}

    async def left(self, work: Work) -> str:
        """Asks auth."""
        known = await self._keys.knows(work.bearer, work.deployment.deployment_id)
        return "auth still knows the deployment" if known else ""


class RouteEnding:
    """A deployment's host: it is unknown."""

    kind = ResourceKind.ROUTE

    def __init__(self, routes: Routes, hosts: TenantRoutes) -> None:
        self._routes = routes
        self._hosts = hosts

    async def close(self, work: Work) -> bool:
        """Makes the host unknown."""
        await self._routes.delete(work.bearer, work.deployment.deployment_id)
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """The same: a host that is unknown is gone."""
        await self.close(work)
        return {"checked": "the front door knows no such host"}

    async def left(self, work: Work) -> str:
        """Asks app_proxy."""
        known = await self._hosts.knows(work.bearer, work.deployment.host)
        return "the front door still knows the host" if known else ""


class LoansEnding:
    """What is lent to a deployment: nothing is.

    Its keys are dead by then, so that nothing is vended along a binding, and whoever credentials
    keeps waiting is cut off all the same.
    """

    kind = ResourceKind.LOANS

    def __init__(self, loans: TenantLoans) -> None:
        self._loans = loans

    async def close(self, work: Work) -> bool:  # noqa: ARG002 the same for each
        """Does nothing: without a key of the deployment nothing is vended."""
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Ends every binding."""
        ended = await self._loans.release(work.bearer, work.deployment.deployment_id)
        return {"bindings": ended, "checked": "credentials finds no binding to end"}

    async def left(self, work: Work) -> str:
        """Asks credentials to end what there is: there has to be nothing."""
        found = await self._loans.release(work.bearer, work.deployment.deployment_id)
        return f"{found} bindings were left" if found else ""


class CountersEnding:
    """A deployment's counters: they are erased."""

    kind = ResourceKind.COUNTERS

    def __init__(self, counters: TenantCounters) -> None:
        self._counters = counters

    async def close(self, work: Work) -> bool:  # noqa: ARG002 the same for each
        """Does nothing: without a key of the deployment nothing is counted."""
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Erases every counter."""
        await self._counters.release(work.bearer, work.deployment.deployment_id)
        return {"checked": "ratelimit has answered that every counter is erased"}

    async def left(self, work: Work) -> str:
        """Asks for it again: what somebody counted meanwhile goes, too."""
        await self._counters.release(work.bearer, work.deployment.deployment_id)
        return ""


class DatabaseEnding:
    """A deployment's database: no process and no file of it is left."""

    kind = ResourceKind.DATABASE

    def __init__(self, driver: DatabaseDriver, listening: Listening) -> None:
        self._driver = driver
        self._listening = listening

    async def close(self, work: Work) -> bool:
        """Ends the server, and every session with it; nothing wakes it in this state."""
        await self._driver.sleep(work.deployment.deployment_id)
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Ends the server, removes its files, and listens for it no more."""
        await self._driver.destroy(work.deployment.deployment_id)
        await self._listening.close(work.deployment.deployment_id)
        return {"checked": "no server runs, and no file is left"}

    async def left(self, work: Work) -> str:
        """Looks for a process and for files."""
        deployment = work.deployment.deployment_id
        if await self._driver.exists(deployment) is not None:
            return "its server runs"
        if await self._driver.kept(deployment) or deployment in await self._driver.found():
            return "files of it are left, or a process of its guard"
        return ""


class BucketEnding:
    """A deployment's bucket: neither it nor who opens it is left."""

    kind = ResourceKind.BUCKET

    def __init__(self, driver: BucketDriver | None) -> None:
        self._driver = driver

    async def close(self, work: Work) -> bool:
        """Ends the credentials."""
        await self._storage.close(work.deployment.deployment_id)
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Removes every object with all its versions."""
        objects = await self._storage.destroy(work.deployment.deployment_id)
        return {"objects": objects, "checked": "no bucket and no identity is left"}

    async def left(self, work: Work) -> str:
        """Looks for a bucket, and for an identity."""
        found = work.deployment.deployment_id in await self._storage.found()
        return "a bucket or an identity of it is left" if found else ""

    @property
    def _storage(self) -> BucketDriver:
        if self._driver is None:
            raise DriverError("the object storage that it is in is not set up any more")
        return self._driver


class SecretsEnding:
    """A deployment's secrets and its first administrator: their rows are gone."""

    kind = ResourceKind.SECRETS

    def __init__(self, database: Database) -> None:
        self._database = database

    async def close(self, work: Work) -> bool:  # noqa: ARG002 the same for each
        """Does nothing: the deployment's own key alone opens them, and is dead."""
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Deletes the rows."""
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            erased = await deletion_store.erase_secrets(connection, work.deployment.deployment_id)
        return {**erased, "checked": "no row is left"}

    async def left(self, work: Work) -> str:
        """Looks for rows."""
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            left = await deletion_store.count_secrets(connection, work.deployment.deployment_id)
        return f"{left} rows are left" if left else ""
