"""Starts the provisioner: `python -m services.provisioner`."""

import sys

import services.shared.quiet_collector  # noqa: F401 before all that takes long to import
from services.provisioner.server import compose
from services.provisioner.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("provisioner", Settings, compose, sys.argv[1:])
