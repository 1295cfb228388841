"""What opens a certificate: shown to who deletes, kept as its SHA-256."""

import hashlib
import hmac

from services.provisioner.master_secret import MasterSecret
from services.shared.ids import OperationId


class CertificateTokens:
    """Derives the token of each deletion, so that a repeated call can tell the same one."""

    def __init__(self, secret: MasterSecret) -> None:
        self._secret = secret

    def of(self, operation_id: OperationId) -> str:
        """Returns the operation's token: 256 bits in 43 characters."""
        return self._secret.password("certificate", operation_id)


def digest(token: str) -> bytes:
    """Returns what is kept of a token; nobody can guess what it is of."""
    return hashlib.sha256(token.encode()).digest()


def is_of(token: str, kept: bytes) -> bool:
    """Returns whether `kept` is the token's digest; in the same time whatever it is."""
    return hmac.compare_digest(digest(token), kept)
