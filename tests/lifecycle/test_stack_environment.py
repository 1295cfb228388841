"""What the embedded stack prepares for its processes: their settings, and room in their logs."""

import importlib
import os
from pathlib import Path

import pytest

from deploy.local.environment import PREFIX, service_environment
from deploy.local.files import write_private
from deploy.local.foreground import parse_overrides
from deploy.local.layout import SERVICES, Layout
from deploy.local.pki import certificates
from deploy.local.probes import EDGE
from deploy.local.programs import Options, Programs, port_names
from services.shared.settings import ServiceSettings

# Made for one stack alone; a service that has none keeps the key that it knows.
CHOSEN = "bootstrap_operator_key_file"
PORTS = {name: 20_000 + at for at, name in enumerate(port_names(Options()))}


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
    certificate = certificates(layout.pki, [service])[service]
    told = service_environment(service, layout, PORTS, certificate, domain="localhost", otlp="")
    files = {name.removeprefix(PREFIX).lower(): Path(value) for name, value in told.items()}
    return {name: file for name, file in files.items() if name.endswith("_file") and name != CHOSEN}


@pytest.mark.parametrize(("size", "kept"), [(8 << 20, False), ((8 << 20) + 1, True)])
def test_a_large_access_log_is_put_aside_at_the_start(
    layout: Layout, size: int, kept: bool
) -> None:
    log = layout.log("access")
    write_private(log, b"x" * size)
    Programs(layout, PORTS, Options(), certificates(layout.pki, (*SERVICES, EDGE))).edge()
    assert log.stat().st_size == (0 if kept else size)
    assert log.with_name("access.log.1").exists() == kept
    assert log.stat().st_mode & 0o077 == 0


def test_a_relative_path_begins_where_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"PROVIDERS_FOLDER": "mine", "OAUTH_CLIENTS_FILE": "/etc/clients", "LISTEN": "a"}
    parsed = parse_overrides([f"credentials.{name}={value}" for name, value in settings.items()])
    assert parsed == {"credentials": settings | {"PROVIDERS_FOLDER": str(tmp_path / "mine")}}
    several = parse_overrides(["auth.PREVIOUS_PEPPER_FILES=/old, older"])
    assert several["auth"]["PREVIOUS_PEPPER_FILES"] == f"/old,{tmp_path / 'older'}"
