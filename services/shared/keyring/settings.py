"""Where a service's key-encryption keys are."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.shared.settings import LOCAL_STATE, Environment


class KeyringSettings(Environment):
    """Read from `BULKHEAD_KEYRING*`."""

    # Who holds the keys: a file of this machine, a folder mounted from a secret, or the transit
    # engine of OpenBao (or Vault).
    keyring: Literal["file", "mounted", "transit"] = "file"

    # 0600; made, with a first key in it, when it is missing.
    keyring_file: Path = LOCAL_STATE / "secrets/keyring"

    # A file per key, named by its id, and `current`, which names one of them.
    keyring_folder: Path = Path("/etc/bulkhead/keyring")

    # https, or http on loopback.
    keyring_transit_url: str = "http://127.0.0.1:8200"
    keyring_transit_mount: str = "transit"
    # The name of the key there: aes256-gcm96; made when it is missing and the token may.
    keyring_transit_key: str = Field(default="bulkhead", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    # 0600; read anew when it changes, so that whoever renews the token writes it there.
    keyring_transit_token_file: Path = LOCAL_STATE / "secrets/transit.token"
    # Who vouches for its certificate; unset: whom the system trusts.
    keyring_transit_ca_file: Path | None = None
    keyring_transit_timeout_seconds: float = Field(default=5.0, gt=0, le=60)
