"""`python -m services.app_proxy` serves until it is told to stop."""

import sys

import services.shared.quiet_collector  # noqa: F401 before all that takes long to import
from services.app_proxy.server import NAME, compose
from services.app_proxy.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main(NAME, Settings, compose, sys.argv[1:])
