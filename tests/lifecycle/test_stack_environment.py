"""What the embedded stack tells its services, held against what they look for by themselves."""

import importlib
import os
from pathlib import Path

import pytest

from deploy.local.environment import PREFIX, service_environment
from deploy.local.layout import SERVICES, Layout
from deploy.local.pki import certificates
from deploy.local.programs import Options, port_names
from services.shared.settings import ServiceSettings

# Made for one stack alone; a service that has none keeps the key that it knows.
CHOSEN = "bootstrap_operator_key_file"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A stack's folder where `bulkhead up` makes it by default, with no settings around."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    layout = Layout.of(Path(".bulkhead"))
    layout.make()
    return layout


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_started_alone_finds_the_files_of_the_stack(layout: Layout, service: str) -> None:
    settings_type: type[ServiceSettings] = importlib.import_module(
        f"services.{service}.settings"
    ).Settings
    alone = settings_type()
    for name, file in files_told(layout, service).items():
        found = getattr(alone, name)
        assert found is not None, name
        assert found.resolve() == file, name


def files_told(layout: Layout, service: str) -> dict[str, Path]:
    """Returns the files that the stack names to a service, by setting."""
    ports = {name: 20_000 + at for at, name in enumerate(port_names(Options()))}
    certificate = certificates(layout.pki, [service])[service]
    told = service_environment(service, layout, ports, certificate, domain="localhost", otlp="")
    files = {name.removeprefix(PREFIX).lower(): Path(value) for name, value in told.items()}
    return {name: file for name, file in files.items() if name.endswith("_file") and name != CHOSEN}
