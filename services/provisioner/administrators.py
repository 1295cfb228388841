"""The first administrator of a deployment's own program (P-10): made once, shown once.

The password is kept sealed until it is shown, and its hash for the program that checks it.
"""

import asyncio
import base64
import os
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from services.provisioner import secret_store as store
from services.provisioner.domain import Deployment
from services.provisioner.secret_rules import Administrator, unreadable
from services.provisioner.secrets import cipher_of, declare, held
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import FailedPreconditionError, Reason
from services.shared.ids import DeploymentId, TenantId, random_text
from services.shared.postgres import Connection, Database

_USER: Final = "admin"
# 16 MB and some 50 ms: the password has 130 random bits, so that the hash need not be slow.
_LOG_N, _R, _P = 14, 8, 1
_SALT_BYTES, _HASH_BYTES = 16, 32


@dataclass(frozen=True, slots=True)
class Shown:
    """The first administrator, as the tenant sees it once."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A first administrator that is yet to be kept."""

    known: Administrator
    sealed: bytes = field(repr=False)

    async def keep(self, connection: Connection, deployment: Deployment) -> None:
        """Keeps it with the deployment, in the same transaction."""
        await store.insert_administrator(connection, deployment, self.known, self.sealed)
        await declare(connection, deployment)


class Administrators:
    """Makes first administrators, and shows each once."""

    def __init__(self, database: Database, data_keys: DataKeys) -> None:
        self._database = database
        self._data_keys = data_keys

    async def prepare(self, tenant: TenantId, deployment_id: DeploymentId) -> Prepared:
        """Returns a new one for a deployment that is yet to be written down.

        Raises:
            FailedPreconditionError: the tenant's data key cannot be unwrapped.
            UnavailableError: the database, or who holds the key-encryption keys, is away.
        """
        cipher = await cipher_of(self._data_keys, tenant)
        password = random_text()
        hashed = await asyncio.to_thread(password_hash, password)
        sealed = cipher.seal(store.password_place(deployment_id), password)
        return Prepared(Administrator(_USER, hashed), sealed)

    async def reveal(self, tenant: TenantId, deployment_id: DeploymentId) -> Shown:
        """Returns the first administrator with the password, which is erased with that.

        Of many who ask, one is answered. One that cannot be decrypted stays as it is.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it has none, it was shown before, it cannot be decrypted, or
                the deployment is being deleted.
            UnavailableError: the database, or who holds the key-encryption keys, is away.
        """
        cipher = await cipher_of(self._data_keys, tenant)
        async with self._database.tenant(tenant) as connection:
            _check_declared(await held(connection, deployment_id))
            taken = await store.take_password(connection, deployment_id)
            if taken is None:
                raise FailedPreconditionError(
                    "the first administrator's password was shown before", Reason.SHOWN_BEFORE
                )
            user, sealed = taken
            return Shown(user, _opened(cipher, deployment_id, sealed))


def password_hash(password: str) -> str:
    """Returns the password's scrypt hash (RFC 7914) in the PHC string format."""
    salt = os.urandom(_SALT_BYTES)
    digest = Scrypt(salt, _HASH_BYTES, 2**_LOG_N, _R, _P).derive(password.encode())
    return f"$scrypt$ln={_LOG_N},r={_R},p={_P}${_base64(salt)}${_base64(digest)}"


def _opened(cipher: TenantCipher, deployment_id: DeploymentId, sealed: bytes) -> str:
    try:
        return cipher.open(store.password_place(deployment_id), sealed)
    except UnreadableError as error:
        raise unreadable() from error


def _check_declared(deployment: Deployment) -> None:
    if not deployment.bootstrap_admin:
        raise FailedPreconditionError(
            "the deployment has no first administrator: declare one when it is created",
            Reason.RESOURCE_NOT_DECLARED,
        )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).rstrip(b"=").decode()
