"""Real servers, started once; a database of its own for each service of each mesh."""

import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from deploy.local.pki import Paths, certificates
from deploy.local.ports import RANGE_VARIABLE
from deploy.local.postgres import MeshPostgres, mesh_postgres
from deploy.local.valkey import ValkeyServer
from tests.databases import Databases
from tests.leaks import (
    leaking_logs,
    pytest_runtest_makereport,  # noqa: F401 pytest finds hooks by their name
)
from tests.mesh import Mesh, running_mesh
from tests.provider_double import ProviderDouble, running_provider
from tests.providers import AT_DOOR, OWN_REDIRECT, catalogue_settings
from tests.readable_valkey import readable_valkey
from tests.s3 import Storage
from tests.scheduling import OneStackScheduling, rank
from tests.warm_commands import ADDRESS_VARIABLE, warm_commands

_SHARES, _PORTS = 4, 2_500

StartMesh = Callable[..., AbstractAsyncContextManager[Mesh]]

SERVICES = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy", "edge")


def pytest_configure(config: pytest.Config) -> None:
    """Gives each of several test processes ports of its own, and logs as plain as the services'."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES
    first = 10_000 + number * _PORTS
    os.environ[RANGE_VARIABLE] = f"{first}-{first + _PORTS - 1}"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As a shell starts what is to run behind it: commands would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # A third of the time of collecting goes into looking for cycles in what stays.
    gc.disable()
    # What structlog prints for people by default is a good part of the work of a mesh in here.
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Lets the collector of cycles look as seldom as in the services, and not at the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, *gc.get_threshold()[1:])
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneStackScheduling | None:
    """Returns what hands out tests for `--dist loadfile`."""
    return OneStackScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts first what takes long."""
    items.sort(key=lambda item: rank(item.nodeid.split("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def logs_without_secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Looks through every log that is left when all servers have ended."""
    yield
    assert leaking_logs(tmp_path_factory.getbasetemp()) == []


@pytest.fixture(scope="session")
async def commands() -> AsyncIterator[None]:
    """Lets every command of `bulkhead` that a test runs begin at once."""
    with pytest.MonkeyPatch.context() as patched:
        async with warm_commands() as warm:
            patched.setenv(ADDRESS_VARIABLE, str(warm.address))
            yield


@pytest.fixture(scope="session")
async def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
async def postgres(home: Path) -> AsyncIterator[MeshPostgres]:
    # Nothing here is to outlive the machine: no commit waits for a disk.
    async with mesh_postgres(home, settings={"fsync": "off"}) as server:
        yield server
        # Its log goes with it.
        assert leaking_logs(server.directory) == []


@pytest.fixture(scope="session")
async def databases(postgres: MeshPostgres) -> Databases:
    """Makes a migrated database for a service, from a template."""
    return Databases(postgres)


@pytest.fixture(scope="session")
async def valkey(home: Path) -> AsyncIterator[ValkeyServer]:
    async with readable_valkey(home / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
async def s3(home: Path) -> AsyncIterator[Storage]:
    """Object storage, started when a test first asks for its server."""
    storage = Storage(home / "s3")
    yield storage
    await storage.close()


@pytest.fixture(scope="session")
async def pki(home: Path) -> dict[str, Paths]:
    return certificates(home / "pki", SERVICES)


@pytest.fixture(scope="session")
async def start_mesh(
    home: Path, databases: Databases, valkey: ValkeyServer, pki: dict[str, Paths]
) -> StartMesh:
    """Starts a mesh of its own; for tests that change settings or stop services."""
    return partial(running_mesh, home, databases, valkey, pki)


@pytest.fixture(scope="session")
async def provider() -> AsyncIterator[ProviderDouble]:
    """An outside provider, which `mesh` knows as `loopback`; see `tests/providers.py`."""
    async with running_provider(redirect_urls=[AT_DOOR, OWN_REDIRECT]) as running:
        yield running


@pytest.fixture(scope="session")
async def mesh(start_mesh: StartMesh, home: Path, provider: ProviderDouble) -> AsyncIterator[Mesh]:
    """Every service, in this process, over real mTLS; shared by the tests that only call it."""
    async with start_mesh({"credentials": catalogue_settings(home, provider)}) as running:
        yield running


@pytest.fixture
async def mesh_of_two(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """A mesh whose tenants may have two deployments each."""
    async with start_mesh({"provisioner": {"deployments_per_tenant": 2}}) as running:
        yield running


@pytest.fixture(scope="session")
async def mesh_with_buckets(start_mesh: StartMesh, s3: Storage) -> AsyncIterator[Mesh]:
    """A mesh whose deployments can have buckets, on a real object storage."""
    async with start_mesh({"provisioner": await s3.settings()}) as running:
        yield running
