"""Prints the front door's configuration for a cluster: `python -m deploy.envoy [PART] FILE…`.

PART is one of the files by which its certificate is watched, `identity.json` or `authority.json`.

Each file holds what all services are told (`NAME=value` lines), as the manifests' mesh.env; a later
one goes before an earlier.
"""

import sys
from pathlib import Path

from deploy.envoy.config import rendered
from deploy.envoy.kubernetes import MeshFileError, edge_settings, mesh_variables
from deploy.envoy.secrets import AUTHORITY, IDENTITY, file_name, secret_files

_WRONG_USE = 2
_PARTS = (file_name(IDENTITY), file_name(AUTHORITY))


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when it is printed, 2 when the files are of no use."""
    part = arguments[0] if arguments and arguments[0] in _PARTS else None
    files = arguments[1:] if part else arguments
    if not files:
        sys.stderr.write("usage: python -m deploy.envoy [PART] FILE…\n")
        return _WRONG_USE
    try:
        settings = edge_settings(mesh_variables([Path(file) for file in files]))
    except MeshFileError as error:
        sys.stderr.write(f"{error}\n")
        return _WRONG_USE
    sys.stdout.write(secret_files(settings.identity)[part] if part else rendered(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
