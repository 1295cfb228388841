"""Where everything of one stack lies: the state folder and the files in it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.files import PRIVATE_FOLDER, private_folder, write_private
from services.provisioner.drivers import postgres_process

SERVICES = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
WITH_DATABASE = SERVICES
WITH_VALKEY = ("ratelimit", "app_proxy")
# The user whom Postgres runs as must be able to pass, but sees nothing on the way.
_TRAVERSABLE = 0o711


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack; `state` is absolute."""

    state: Path

    @classmethod
    def of(cls, state: Path) -> "Layout":
        """Returns the layout of a state folder, which need not exist."""
        return cls(state.expanduser().resolve())

    def make(self) -> None:
        """Makes the folders, closed to others."""
        passable = postgres_process.server_user() is not None
        private_folder(self.state, _TRAVERSABLE if passable else PRIVATE_FOLDER)
        for folder in (self.logs, self.secrets, self.envoy, self.valkey, self.s3):
            private_folder(folder)

    def exists(self) -> bool:
        """Whether a stack was ever started here, be it in vain."""
        return self.settings.exists() or self.lock.exists()

    def remove(self) -> None:
        """Removes every file of the stack, also those outside of the state folder."""
        if self.exists():
            shutil.rmtree(self.servers, ignore_errors=not self.servers.exists())
            shutil.rmtree(self.state)

    def log(self, name: str) -> Path:
        """Where the process `name` writes what it has to say."""
        return self.logs / f"{name}.log"

    def kept_ports(self) -> dict[str, int]:
        """Returns the ports of the last start by name."""
        if not self.settings.exists():
            return {}
        ports: dict[str, int] = json.loads(self.settings.read_text())["ports"]
        return ports

    def keep_ports(self, ports: Mapping[str, int]) -> None:
        """Writes down the ports for the next start."""
        write_private(self.settings, json.dumps({"ports": dict(ports)}, indent=2) + "\n")

    @property
    def servers(self) -> Path:
        """Where Postgres servers live, the mesh's and those of deployments.

        It lies outside of `state` when the servers' user cannot get there.
        """
        return postgres_process.reachable_home(self.state)

    @property
    def settings(self) -> Path:
        """What is kept from one start to the next."""
        return self.state / "stack.json"

    @property
    def running(self) -> Path:
        """What the supervisor tells about its processes."""
        return self.state / "running.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives."""
        return self.state / "supervisor.lock"

    @property
    def operator_key(self) -> Path:
        """The operator's key."""
        return self.state / "operator.key"

    @property
    def logs(self) -> Path:
        """The folder of logs."""
        return self.state / "logs"

    @property
    def secrets(self) -> Path:
        """Secrets of services that are not passwords of Postgres or Valkey."""
        return self.state / "secrets"

    @property
    def pki(self) -> Path:
        """The authority and the certificates."""
        return self.state / "pki"

    @property
    def envoy(self) -> Path:
        """The front door's configuration."""
        return self.state / "envoy"

    @property
    def s3(self) -> Path:
        """Object storage: its settings, its authority and its data."""
        return self.state / "s3"

    @property
    def valkey(self) -> Path:
        """Valkey's configuration and its append-only file."""
        return self.state / "valkey"
