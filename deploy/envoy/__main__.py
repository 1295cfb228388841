"""Prints the front door's configuration for a cluster: `python -m deploy.envoy FILE…`.

Each file holds what all services are told (`NAME=value` lines), as the manifests' mesh.env; a later
one goes before an earlier.
"""

import sys
from pathlib import Path

from deploy.envoy.config import rendered
from deploy.envoy.kubernetes import MeshFileError, edge_settings, mesh_variables

_WRONG_USE = 2


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 when it is printed, 2 when the files are of no use."""
    if not arguments:
        sys.stderr.write("usage: python -m deploy.envoy FILE…\n")
        return _WRONG_USE
    try:
        settings = edge_settings(mesh_variables([Path(argument) for argument in arguments]))
    except MeshFileError as error:
        sys.stderr.write(f"{error}\n")
        return _WRONG_USE
    sys.stdout.write(rendered(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
