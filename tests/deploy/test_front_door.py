"""The front door's configuration for a cluster: current, accepted by Envoy, and closed within."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.envoy.config import rendered
from deploy.envoy.kubernetes import (
    CONNECTION_LIFE,
    MeshFileError,
    edge_settings,
    mesh_variables,
)
from deploy.envoy.secrets import secret_files
from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local.envoy import envoy_binary, front_door
from deploy.local.pki import Paths, certificates
from deploy.local.ports import LOOPBACK, free_ports

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
MESH = KUBERNETES / "base" / "mesh.env"
DEV = KUBERNETES / "overlays" / "dev"
OTEL = KUBERNETES / "components" / "otel"
CONFIGURATIONS = {
    "base": (KUBERNETES / "base" / "envoy" / "envoy.json", [MESH]),
    "dev": (DEV / "envoy.json", [MESH, DEV / "mesh.env"]),
    "otel": (OTEL / "envoy.json", [MESH, OTEL / "otel.env"]),
}
EACH = pytest.mark.parametrize("name", CONFIGURATIONS)
SECONDS = 60


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return certificates(tmp_path_factory.mktemp("pki"), ("edge",))["edge"]


@EACH
def test_what_the_manifests_hold_is_what_the_source_makes(name: str) -> None:
    """`make manifests` writes it anew."""
    file, variables = CONFIGURATIONS[name]
    assert file.read_text() == rendered(edge_settings(mesh_variables(variables)))


@EACH
def test_envoy_accepts_it(name: str, paths: Paths, tmp_path: Path) -> None:
    """With certificates at other places, since Envoy reads them while it looks."""
    file, variables = CONFIGURATIONS[name]
    settings = edge_settings(mesh_variables(variables))
    folder = str(settings.identity.folder)
    watched = {
        name: (CONFIGURATIONS["base"][0].parent / name).read_text()
        for name in secret_files(settings.identity)
    }
    assert watched == secret_files(settings.identity)
    here = replace(
        settings.identity,
        certificate=paths.certificate,
        key=paths.key,
        authority=paths.authority,
    )
    for secret, text in secret_files(here).items():
        assert f"{folder}/{secret}" in file.read_text()
        (tmp_path / secret).write_text(text)
    (tmp_path / "envoy.json").write_text(file.read_text().replace(folder, str(tmp_path)))
    validated = subprocess.run(
        [envoy_binary(), "--mode", "validate", "-c", tmp_path / "envoy.json"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert validated.returncode == 0, validated.stderr


@EACH
def test_it_fits_into_what_an_apply_by_the_client_writes_beside_it(name: str) -> None:
    """All annotations of an object together have 256 KiB."""
    assert len(json.dumps(CONFIGURATIONS[name][0].read_text())) < 240 * 1024


def test_it_asks_the_services_by_name_and_shows_its_administration_to_nobody() -> None:
    configuration = json.loads(CONFIGURATIONS["base"][0].read_text())
    admin = configuration["admin"]["address"]["socket_address"]
    assert admin == {"address": "127.0.0.1", "port_value": 9901}
    clusters = {one["name"]: one for one in configuration["static_resources"]["clusters"]}
    asked = {name: _endpoint(cluster) for name, cluster in clusters.items() if name != "admin"}
    assert asked == {
        "app_proxy": ("STRICT_DNS", "app-proxy.bulkhead.svc", 7100),
        "app_proxy_http": ("STRICT_DNS", "app-proxy.bulkhead.svc", 7103),
        "auth": ("STRICT_DNS", "auth.bulkhead.svc", 7100),
        "credentials": ("STRICT_DNS", "credentials.bulkhead.svc", 7100),
        "provisioner": ("STRICT_DNS", "provisioner.bulkhead.svc", 7100),
        "ratelimit": ("STRICT_DNS", "ratelimit.bulkhead.svc", 7100),
    }


def _endpoint(cluster: Mapping[str, Any]) -> tuple[str, str, int]:
    (group,) = cluster["load_assignment"]["endpoints"]
    (one,) = group["lb_endpoints"]
    address = one["endpoint"]["address"]["socket_address"]
    return cluster["type"], address["address"], address["port_value"]


@pytest.fixture
async def door(paths: Paths, tmp_path: Path) -> AsyncIterator[EdgeSettings]:
    """The cluster's front door on this machine, its services away."""
    listen, admin, health, metrics = (Address(LOOPBACK, port) for port in free_ports(4))
    settings = replace(
        edge_settings(mesh_variables([MESH])),
        listen=listen,
        admin=admin,
        health=health,
        metrics=metrics,
        identity=Identity(paths.certificate, paths.key, paths.authority),
        connection_life=timedelta(seconds=0.5),
        access_log=tmp_path / "access.log",
    )
    async with front_door(tmp_path / "envoy", settings):
        yield settings


async def test_probes_and_metrics_have_listeners_of_their_own_and_nothing_beside(
    door: EdgeSettings,
) -> None:
    assert door.health is not None
    assert door.metrics is not None
    async with httpx.AsyncClient(timeout=SECONDS) as client:
        assert (await client.get(f"http://{door.health}/ready")).text == "LIVE\n"
        assert (await client.get(f"http://{door.health}/live")).status_code == 200
        metrics = await client.get(f"http://{door.metrics}/metrics")
        assert 'envoy_cluster_upstream_cx_total{envoy_cluster_name="auth"}' in metrics.text
        for address in (door.health, door.metrics, door.listen):
            for path in ("/clusters", "/stats", "/config_dump", "/quitquitquit", "/ready/../stats"):
                assert (await client.get(f"http://{address}{path}")).status_code == 404
        for path in ("/ready", "/live", "/metrics", "/stats/prometheus"):
            assert (await client.get(f"http://{door.listen}{path}")).status_code == 404


async def test_who_is_connected_is_asked_to_connect_anew_and_no_request_is_cut(
    door: EdgeSettings,
) -> None:
    async with httpx.AsyncClient(timeout=SECONDS) as client, asyncio.timeout(SECONDS):
        asked = 0
        while asked < 3:
            answer = await client.get(f"http://{door.listen}/")
            assert answer.status_code == 404
            asked += answer.headers.get("connection") == "close"


def test_connections_are_made_anew_before_envoy_ends() -> None:
    """Envoy ends at once on SIGTERM; until then whoever is connected was asked to go elsewhere."""
    pod = _pod("envoy/deployment.yaml")
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert CONNECTION_LIFE.total_seconds() + 5 <= pause < pod["terminationGracePeriodSeconds"]
    assert '"max_connection_duration": "50s"' in CONFIGURATIONS["base"][0].read_text()


def test_the_grace_of_a_pod_has_room_for_all_that_a_service_does_when_it_ends() -> None:
    """Calls have a grace period, and requests over HTTP, which end after them, another."""
    pod, mesh = _pod("workload/deployment.yaml"), mesh_variables([MESH])
    pause = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain, grace = float(mesh["BULKHEAD_DRAIN_SECONDS"]), float(mesh["BULKHEAD_GRACE_SECONDS"])
    assert pause + drain + 2 * grace + 10 <= pod["terminationGracePeriodSeconds"]


def _pod(file: str) -> Any:
    deployment = yaml.safe_load((KUBERNETES / "base" / file).read_text())
    return deployment["spec"]["template"]["spec"]


def test_a_variable_that_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mesh.env"
    lines = MESH.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "BULKHEAD_DOMAIN" not in line))
    process = subprocess.run(
        [sys.executable, "-m", "deploy.envoy", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "BULKHEAD_DOMAIN is missing\n"


def test_a_later_file_goes_before_an_earlier_one(tmp_path: Path) -> None:
    file = tmp_path / "own.env"
    file.write_text("# Ours.\nBULKHEAD_DOMAIN=apps.own.example\n")
    assert edge_settings(mesh_variables([MESH, file])).domain == "apps.own.example"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("BULKHEAD_DOMAIN", "sets nothing"),
        ("BULKHEAD_API_HOSTS=api.example", "cannot be understood"),
        ("BULKHEAD_AUTH_TARGET=dns:///auth", "cannot be understood"),
    ],
)
def test_a_file_that_means_nothing_is_refused(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.env"
    file.write_text(f"{text}\n")
    with pytest.raises(MeshFileError, match=said):
        edge_settings(mesh_variables([MESH, file]))
