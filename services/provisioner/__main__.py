"""Starts the provisioner: `python -m services.provisioner`."""

import sys

from services.provisioner.server import compose
from services.provisioner.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("provisioner", Settings, compose, sys.argv[1:])
