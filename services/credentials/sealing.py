"""What a connection keeps secret: sealed on its way in, opened for who may have it."""

import json

from services.credentials.domain import Connection, OAuthClient
from services.credentials.grants import client_secret_place, secret_place
from services.credentials.providers.clients import OperatorClients
from services.credentials.wanted import KeptSecret
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import FailedPreconditionError, Reason
from services.shared.ids import ConnectionId, TenantId


async def cipher_of(data_keys: DataKeys, tenant: TenantId) -> TenantCipher:
    """Returns the tenant's cipher.

    Raises:
        FailedPreconditionError: its data key cannot be unwrapped.
        UnavailableError: the database, or who holds the key-encryption keys, is away.
    """
    try:
        return await data_keys.cipher(tenant)
    except UnreadableError as error:
        raise unreadable() from error


def unreadable() -> FailedPreconditionError:
    """Returns the refusal of what would need something that cannot be decrypted."""
    return FailedPreconditionError("what is kept cannot be decrypted", Reason.CONNECTION_UNREADABLE)


def sealed_secret(cipher: TenantCipher, connection: ConnectionId, kept: KeptSecret) -> bytes:
    """Returns a static token, or an API key with its user's name, for its row."""
    secret = json.dumps({"secret": kept.secret, "username": kept.username})
    return cipher.seal(secret_place(connection), secret)


def sealed_client_secret(
    cipher: TenantCipher, connection: ConnectionId, client: OAuthClient | None
) -> bytes | None:
    """Returns the secret of a tenant's own client for its row; None when there is none."""
    if client is None or not client.client_secret:
        return None
    return cipher.seal(client_secret_place(connection), client.client_secret)


def opened_client(
    cipher: TenantCipher,
    operators: OperatorClients,
    connection: Connection,
    sealed: bytes | None,
) -> OAuthClient | None:
    """Returns the client of the connection's grant; None: the operator's, who has none any more.

    Raises:
        UnreadableError: its secret cannot be decrypted.
    """
    if connection.client_id is None:
        return operators.get(connection.provider)
    place = client_secret_place(connection.connection_id)
    secret = "" if sealed is None else cipher.open(place, sealed)
    return OAuthClient(connection.client_id, secret)
