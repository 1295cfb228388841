import sys

import services.shared.quiet_collector  # noqa: F401 before all that takes long to import
from services.ratelimit.server import compose
from services.ratelimit.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("ratelimit", Settings, compose, sys.argv[1:])
