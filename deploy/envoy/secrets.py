"""The front door's certificates as files that Envoy watches, so that a renewed one is used at once.

Envoy reads a pair anew when something is moved into its folder, as kubelet and the embedded stack
write it. What does not fit together leaves the old pair in use until the other half is there.
Connections that are open go on; those made from then on are made with the new one.
"""

import json
from collections.abc import Mapping
from typing import Any

from deploy.envoy.settings import Identity

# The front door's own certificate and key, and whom it believes.
IDENTITY, AUTHORITY = "identity", "authority"
_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def secret_files(identity: Identity) -> Mapping[str, str]:
    """Returns the texts of the files by their names; they name other files, and hold no secret."""
    certificate = {
        "certificate_chain": {"filename": str(identity.certificate)},
        "private_key": {"filename": str(identity.key)},
        "watched_directory": {"path": str(identity.certificate.parent)},
    }
    authority = {
        "trusted_ca": {"filename": str(identity.authority)},
        "watched_directory": {"path": str(identity.authority.parent)},
    }
    return {
        file_name(IDENTITY): _text(IDENTITY, {"tls_certificate": certificate}),
        file_name(AUTHORITY): _text(AUTHORITY, {"validation_context": authority}),
    }


def file_name(secret: str) -> str:
    """Returns the name of the file of a secret."""
    return f"{secret}.json"


def watched(identity: Identity, secret: str) -> dict[str, Any]:
    """Returns Envoy's words for a secret of these files, which is to be watched."""
    return {
        "name": secret,
        "sds_config": {
            "resource_api_version": "V3",
            "path_config_source": {"path": str(identity.folder / file_name(secret))},
        },
    }


def _text(name: str, secret: dict[str, Any]) -> str:
    return json.dumps({"resources": [{"@type": _TYPE, "name": name, **secret}]}, indent=2) + "\n"
