"""Starts auth: `python -m services.auth`."""

import sys

import services.shared.quiet_collector  # noqa: F401 before all that takes long to import
from services.auth.server import compose
from services.auth.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("auth", Settings, compose, sys.argv[1:])
