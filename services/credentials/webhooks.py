"""Where tenants are told of connections that broke: set, read, ended."""

import base64
import secrets
from ipaddress import ip_address
from urllib.parse import urlsplit

from services.credentials import webhook_store as store
from services.credentials.providers.outbound import is_public
from services.credentials.webhook_store import Webhook
from services.shared.crypto import Place
from services.shared.data_keys import DataKeys
from services.shared.errors import InvalidFieldError
from services.shared.ids import TenantId
from services.shared.postgres import Database

MOST_URL_LENGTH = 2_000
# As Standard Webhooks has it: 24 to 64 bytes.
_SECRET_BYTES = 32
_SECRET_PREFIX = "whsec_"  # noqa: S105 what every one of them begins with


class Webhooks:
    """One webhook a tenant."""

    def __init__(
        self, database: Database, data_keys: DataKeys, *, allow_private_targets: bool
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._allow_private = allow_private_targets

    async def set(self, tenant: TenantId, url: str) -> str:
        """Returns the new secret with which reports to `url` are signed from now on.

        Raises:
            InvalidFieldError: the URL cannot be called.
        """
        read_url(url, allow_private=self._allow_private)
        secret = new_secret()
        cipher = await self._data_keys.cipher(tenant)
        async with self._database.tenant(tenant) as connection:
            sealed = cipher.seal(secret_place(tenant), secret)
            await store.put_webhook(connection, tenant, url, sealed)
        return secret

    async def get(self, tenant: TenantId) -> Webhook | None:
        """Returns the tenant's webhook."""
        async with self._database.tenant(tenant) as connection:
            return await store.get_webhook(connection, tenant)

    async def delete(self, tenant: TenantId) -> None:
        """Ends the tenant's webhook, with what was not delivered yet."""
        async with self._database.tenant(tenant) as connection:
            await store.delete_webhook(connection, tenant)


def new_secret() -> str:
    """Returns `whsec_` and 256 random bits in base 64."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signing_key(secret: str) -> bytes:
    """Returns the bytes of which `secret` is the text."""
    return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)


def secret_place(tenant: TenantId) -> Place:
    """Returns where the secret of the tenant's webhook is kept."""
    return Place("webhooks", tenant, "sealed_secret")


def read_url(url: str, *, allow_private: bool) -> None:
    """Returns when `url` is one that may be called, as far as its text tells.

    What its name stands for is looked at when it is called.

    Raises:
        InvalidFieldError: it is not.
    """
    if len(url) > MOST_URL_LENGTH:
        raise InvalidFieldError("url", f"must have at most {MOST_URL_LENGTH:,} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidFieldError("url", "must have printable ASCII characters only, and no space")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidFieldError("url", "is no URL") from error
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise InvalidFieldError("url", "must begin with https://")
    if not host or port == 0:
        raise InvalidFieldError("url", "must name a host")
    if "@" in parts.netloc or parts.fragment:
        raise InvalidFieldError("url", "must hold neither a user's name nor a fragment")
    if not allow_private and _is_private(host):
        raise InvalidFieldError("url", "must be at a public address")


def _is_private(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return not is_public(host)
