"""The ways into a Cluster's Postgres: the superuser's, the guard's, and what tenants come by."""

import asyncio
import base64
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic

import asyncpg

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers import cnpg_server
from services.provisioner.drivers.cnpg_api import SECRET, KubernetesApi, Object
from services.provisioner.drivers.cnpg_objects import Shape, namespace_name
from services.provisioner.drivers.local_database import GUARD, MAINTENANCE, SUPERUSER
from services.provisioner.drivers.server_command import ServerError
from services.provisioner.drivers.superuser import Prepared, Superuser
from services.provisioner.drivers.verifiers import verifier_of, verifiers
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId
from services.shared.server_trust import trusting

# After CloudNativePG has said that it is ready; its Service may learn it a moment later.
_REACH_SECONDS = 20.0
_POLL_SECONDS = 0.1
# CloudNativePG replaces its authorities from time to time.
_TRUST_SECONDS = 60.0
_CONNECT_SECONDS = 5.0
_NOT_YET = (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.InterfaceError)
# Also from a server that has not taken its new rules yet, or the superuser's new password.
_NOT_LET_IN = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError)

# Where the Cluster in a namespace takes connections.
Where = Callable[[str], DatabaseAddress]


def in_cluster(namespace: str) -> DatabaseAddress:
    """Returns the address of a Cluster's primary, as every pod of the cluster knows it."""
    return DatabaseAddress(f"{objects.HOST}.{namespace}.svc", objects.PORT)


@dataclass(frozen=True, slots=True)
class _Trust:
    """What one server's certificate is signed by, and when that is to be read again."""

    authority: str
    context: ssl.SSLContext
    until: float


class Logins:
    """Comes into the servers, and says by what others do."""

    def __init__(
        self, api: KubernetesApi, shape: Shape, secret: MasterSecret, where: Where = in_cluster
    ) -> None:
        self.secret = secret
        self._api = api
        self._shape = shape
        self._where = where
        # What each server's certificate is signed by.
        self._authorities: dict[DeploymentId, _Trust] = {}

    async def address(self, deployment: DeploymentId) -> DatabaseAddress:
        """Returns where the deployment's server is, and by whose certificates it proves that.

        Raises:
            ServerError: it has none yet.
        """
        trust = await self._trust(deployment)
        return replace(self._at(deployment), authority=trust.authority if trust else "")

    def secrets(self, deployment: DeploymentId) -> list[Object]:
        """Returns the Secrets that the Cluster needs.

        Of the superuser's password it learns the verifier alone, as Postgres takes it too.
        """
        own = verifier_of(self.secret, deployment, SUPERUSER)
        guarding = self.secret.password(deployment, GUARD)
        return [
            objects.secret(self._shape, deployment, objects.SUPERUSER_SECRET, SUPERUSER, own),
            objects.secret(self._shape, deployment, GUARD, GUARD, guarding),
        ]

    def forget(self, deployment: DeploymentId) -> None:
        """Forgets whom the deployment's server is signed by."""
        self._authorities.pop(deployment, None)

    async def superuser(self, deployment: DeploymentId, *passwords: str) -> Superuser:
        """Returns the superuser of the deployment's server, with further passwords to try."""
        own = self.secret.password(deployment, SUPERUSER)
        trust = await self._trust(deployment)
        tls = trust.context if trust else None
        return Superuser(self._at(deployment), own, *passwords, tls=tls)

    async def reachable(self, deployment: DeploymentId, *passwords: str) -> Superuser:
        """Returns the superuser once it was let in.

        Raises:
            ServerError: it is not in time.
        """
        superuser = await self.superuser(deployment, *passwords)
        end = monotonic() + _REACH_SECONDS
        while True:
            try:
                async with superuser.connected(MAINTENANCE):
                    return superuser
            except ssl.SSLError:
                # Its certificates may be new ones.
                self.forget(deployment)
                raise
            except (*_NOT_YET, *_NOT_LET_IN) as error:
                if monotonic() > end:
                    raise ServerError("the superuser is not let in") from error
            await asyncio.sleep(_POLL_SECONDS)

    async def prepare(
        self, deployment: DeploymentId, before: Prepared | None, wanted: Prepared
    ) -> None:
        """Tells the server what it was not told yet; returns when it heeds it."""
        superuser = await self.reachable(deployment)
        if before == wanted:
            return
        if before is None:
            await cnpg_server.install(superuser)
        open_now = wanted.open_generations
        if before is None or not before.whole or before.open_generations != open_now:
            await superuser.set_verifiers(verifiers(self.secret, deployment, open_now))
        if before is None or not before.whole or before.quota_bytes != wanted.quota_bytes:
            await superuser.set_quota(wanted.quota_bytes)
        if before is None:
            await self._guard_let_in(deployment)

    async def _guard_let_in(self, deployment: DeploymentId) -> None:
        """Returns when the rules by which tenants come in are in force."""
        address, trust = self._at(deployment), await self._trust(deployment)
        end = monotonic() + _REACH_SECONDS
        while True:
            try:
                session = await asyncpg.connect(
                    host=address.host,
                    port=address.port,
                    user=GUARD,
                    database=MAINTENANCE,
                    password=self.secret.password(deployment, GUARD),
                    ssl=trust.context if trust else False,
                    timeout=_CONNECT_SECONDS,
                )
            except _NOT_LET_IN as error:
                if monotonic() > end:
                    raise ServerError("the guard is not let in") from error
                await asyncio.sleep(_POLL_SECONDS)
            else:
                session.terminate()
                return

    def _at(self, deployment: DeploymentId) -> DatabaseAddress:
        return self._where(namespace_name(deployment))

    async def _trust(self, deployment: DeploymentId) -> _Trust | None:
        if not self._shape.encrypted:
            return None
        trust = self._authorities.get(deployment)
        if trust is None or trust.until < monotonic():
            where = namespace_name(deployment)
            found = await self._api.get(SECRET, objects.AUTHORITY_SECRET, where)
            if found is None:
                raise ServerError("the server has no certificate yet")
            pem = base64.b64decode(found["data"]["ca.crt"]).decode("ascii")
            trust = _Trust(pem, trusting(pem), monotonic() + _TRUST_SECONDS)
            self._authorities[deployment] = trust
        return trust
