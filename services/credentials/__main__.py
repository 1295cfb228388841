"""Starts credentials: `python -m services.credentials`."""

import sys

import services.shared.quiet_collector  # noqa: F401 before all that takes long to import
from services.credentials.server import compose
from services.credentials.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("credentials", Settings, compose, sys.argv[1:])
