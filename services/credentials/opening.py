"""Opening the credential at hand."""

import json

from services.credentials.grants import secret_place, token_place
from services.credentials.refresh.terms import Fresh
from services.credentials.refusals import busy, unreadable
from services.credentials.standings import Standing
from services.shared.crypto import TenantCipher, UnreadableError


def opened(standing: Standing, scope_key: str, cipher: TenantCipher, read_at: float) -> Fresh:
    """Returns the credential that the connection has for these scopes.

    `read_at`, in steady seconds: the moment from which on what was read may have grown old.

    Raises:
        FailedPreconditionError: it cannot be decrypted.
        UnavailableError: there is none.
    """
    kept = standing.kept
    if kept is None:
        raise busy()
    connection = standing.connection_id
    place = token_place(connection, scope_key) if standing.issued else secret_place(connection)
    try:
        text, username = cipher.open(place, kept.sealed), ""
        if not standing.issued:
            secret = json.loads(text)
            text, username = secret["secret"], secret["username"]
    except UnreadableError as error:
        raise unreadable(connection, error) from error
    return Fresh(text, kept.token_type, kept.expires_at, kept.left, kept.scopes, read_at, username)
