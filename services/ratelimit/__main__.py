import sys

from services.ratelimit.server import compose
from services.ratelimit.settings import Settings
from services.shared.runtime import main

if __name__ == "__main__":
    main("ratelimit", Settings, compose, sys.argv[1:])
