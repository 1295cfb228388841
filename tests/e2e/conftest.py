"""One stack for the tests that only use it, and the outside world that it knows."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.envoy.routes import CALLBACK_PATH
from deploy.local.files import private_folder, write_private
from deploy.local.layout import SERVICES
from deploy.local.ports import LOOPBACK, free_ports
from tests.e2e.outside import Stack, running_stack
from tests.e2e.witness import Exports, exports
from tests.provider_double import ProviderDouble, running_provider


@pytest.fixture(scope="session", autouse=True)
def commands_begin_at_once(commands: None) -> None:
    """Lets `run` of `tests/e2e/outside.py` begin at once."""


@pytest.fixture(scope="session")
def edge_port() -> int:
    """Where the front door listens: providers lead people back to it."""
    return free_ports(1)[0]


@pytest.fixture(scope="session")
async def provider(edge_port: int) -> AsyncIterator[ProviderDouble]:
    """An outside provider, `loopback` in the stack's catalogue."""
    back = f"http://localhost:{edge_port}{CALLBACK_PATH}"
    async with running_provider(redirect_urls=[back]) as running:
        yield running


@pytest.fixture(scope="session")
async def exported() -> AsyncIterator[Exports]:
    """Every span that the stack exports."""
    async with exports() as running:
        yield running


@pytest.fixture(scope="session")
def metrics_ports() -> dict[str, int]:
    """Where each service of the stack shows its metrics."""
    return dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))


# Ended with the last test that may use it: at rest as well it takes much of a machine's time.
@pytest.fixture(scope="package")
async def stack(
    tmp_path_factory: pytest.TempPathFactory,
    edge_port: int,
    provider: ProviderDouble,
    exported: Exports,
    metrics_ports: dict[str, int],
) -> AsyncIterator[Stack]:
    home = tmp_path_factory.mktemp("e2e")
    catalogue = private_folder(home / "providers")
    write_private(catalogue / "loopback.yaml", provider.provider_yaml())
    settings = (
        # So slow a free plan that its burst is exceeded however slow the machine is.
        "ratelimit.RATE_FREE=1",
        "ratelimit.BURST_FREE=5",
        f"credentials.PROVIDERS_FOLDER={catalogue}",
        "credentials.ALLOW_PRIVATE_TARGETS=true",
        *(f"{name}.METRICS_LISTEN={LOOPBACK}:{port}" for name, port in metrics_ports.items()),
    )
    options = [part for setting in settings for part in ("--set", setting)]
    where = ("--edge-port", str(edge_port), "--otlp", exported.endpoint)
    async with running_stack(home / "state", *options, *where) as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"
