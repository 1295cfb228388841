"""What each pod of both overlays may do, how it is watched, moved and ended."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from services.provisioner.drivers.cnpg_objects import namespace_name
from services.shared.ids import DeploymentId
from tests.deploy.rendered import (
    MESH,
    OVERLAYS,
    SERVICES,
    SETTINGS,
    Manifest,
    Rendered,
    Workload,
    matches,
)

WORKLOADS = (*MESH, "valkey")
MESH_NAMESPACE = "bulkhead"
# One server, which may be away for a while: the services do without it.
ALONE = {"valkey"}
# Who speaks to the cluster's API.
WITH_TOKEN = {"provisioner"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# What the `restricted` pod security standard lets a pod mount.
VOLUMES = {"configMap", "secret", "projected", "emptyDir", "persistentVolumeClaim", "downwardAPI"}
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|PEPPER|PRIVATE")
QUANTITY = re.compile(r"\d+(m|Mi|Gi)?")
ZONE, NODE = "topology.kubernetes.io/zone", "kubernetes.io/hostname"

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)
each_workload = pytest.mark.parametrize("name", WORKLOADS)


@pytest.fixture
def there(overlay: str, overlays: Mapping[str, Rendered]) -> Rendered:
    return overlays[overlay]


@pytest.fixture
def workload(there: Rendered, name: str) -> Workload:
    return there.workloads[name]


@everywhere
def test_every_workload_is_looked_at(there: Rendered) -> None:
    assert set(there.workloads) == set(WORKLOADS)
    # All the pods there are, but for those of Postgres: the operator makes these, `restricted`.
    (namespace,) = there.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@everywhere
@each_workload
def test_a_pod_runs_as_nobody_and_may_become_nobody(workload: Workload) -> None:
    pod, own = workload.pod["securityContext"], workload.container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == 65532
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["runAsNonRoot"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["privileged"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert own["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"runAsUser", "runAsGroup", "procMount"} & set(own)


@everywhere
@each_workload
def test_a_pod_shares_nothing_with_its_node(workload: Workload) -> None:
    assert not [name for name in workload.pod if name.startswith("host")]
    assert not workload.pod.get("shareProcessNamespace")
    assert not [each for each in workload.container["ports"] if "hostPort" in each]
    assert {kind for each in workload.pod["volumes"] for kind in set(each) - {"name"}} <= VOLUMES


@everywhere
@each_workload
def test_a_pods_files_are_read_only_but_for_what_is_its_own(workload: Workload) -> None:
    assert workload.container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {each["name"]: each for each in workload.pod["volumes"]}
    for mount in workload.container["volumeMounts"]:
        volume = volumes.get(mount["name"], {})
        if {"secret", "configMap", "projected"} & set(volume):
            assert mount["readOnly"] is True
        if "emptyDir" in volume:
            assert volume["emptyDir"]["sizeLimit"]
    mounted = [each["name"] for each in workload.container["volumeMounts"]]
    claimed = workload.manifest["spec"].get("volumeClaimTemplates", [])
    assert set(mounted) == {*volumes, *(each["metadata"]["name"] for each in claimed)}


@everywhere
@each_workload
def test_a_secret_is_readable_by_its_pod_alone(workload: Workload) -> None:
    for source in _secret_volumes(workload.pod):
        assert source["defaultMode"] == 0o440
    assert workload.pod["securityContext"]["fsGroup"] == 65532


@everywhere
@each_workload
def test_no_secret_is_in_the_environment(there: Rendered, name: str, workload: Workload) -> None:
    sources = [set(each) for each in workload.container.get("envFrom", [])]
    assert all(each == {"configMapRef"} for each in sources)
    assert all(set(each) == {"name", "value"} for each in workload.container.get("env", []))
    for variable in there.variables(name):
        assert not SECRET_NAME.search(variable) or variable.endswith(("_FILE", "_FOLDER"))


@everywhere
@each_workload
def test_a_pod_says_what_it_needs_and_has_a_limit(workload: Workload) -> None:
    requests, limits = (workload.container["resources"][each] for each in ("requests", "limits"))
    assert set(requests) == {"cpu", "memory"}
    assert "memory" in limits
    assert all(QUANTITY.fullmatch(each) for each in {*requests.values(), *limits.values()})


@everywhere
@each_workload
def test_a_pod_is_probed_for_three_things_at_ports_that_it_has(workload: Workload) -> None:
    probes = [workload.container[each] for each in PROBES]
    for probe in probes:
        assert probe["timeoutSeconds"] >= 2
        assert _probed(probe) in {None, *workload.ports, *workload.ports.values()}
    startup, ready, alive = (_patience(each) for each in probes)
    # It may start for longer than it may be silent, and be unready before it is given up.
    assert startup > alive > ready


@everywhere
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_probed_where_no_certificate_is_asked_for(workload: Workload) -> None:
    health = workload.ports["health"]
    checks = [workload.container[each]["grpc"] for each in PROBES]
    assert [each["port"] for each in checks] == [health] * 3
    # Alive is not ready: what is away around it is no reason to start it anew.
    assert [each.get("service") for each in checks] == [None, None, "liveness"]


@everywhere
@each_workload
def test_a_workload_is_its_own_account_and_only_one_has_a_token(
    there: Rendered, name: str, workload: Workload
) -> None:
    account = workload.pod["serviceAccountName"]
    assert [each.pod["serviceAccountName"] for each in there.workloads.values()].count(account) == 1
    assert there.one("ServiceAccount", account)["automountServiceAccountToken"] is False
    assert workload.pod["automountServiceAccountToken"] is False
    sources = [
        source
        for volume in workload.pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
    ]
    assert any("serviceAccountToken" in each for each in sources) == (name in WITH_TOKEN)


@everywhere
def test_only_who_has_a_token_has_rights(there: Rendered) -> None:
    accounts = {there.workloads[name].pod["serviceAccountName"] for name in WITH_TOKEN}
    bindings = list(there.of("ClusterRoleBinding", "RoleBinding"))
    assert {each["name"] for binding in bindings for each in binding["subjects"]} == accounts
    rules = [rule for role in there.of("ClusterRole", "Role") for rule in role["rules"]]
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


@everywhere
@each_workload
def test_pods_of_one_workload_are_spread(overlay: str, workload: Workload) -> None:
    constraints = workload.pod["topologySpreadConstraints"]
    assert all(matches(each["labelSelector"], workload.labels) for each in constraints)
    zones = overlay == "production" and workload.name not in ALONE
    assert {each["topologyKey"] for each in constraints} == {NODE, *([ZONE] if zones else [])}


@everywhere
@each_workload
def test_one_budget_covers_a_workload_and_lets_a_node_be_drained(
    there: Rendered, workload: Workload
) -> None:
    (budget,) = (
        each["spec"]
        for each in there.of("PodDisruptionBudget")
        if matches(each["spec"]["selector"], workload.labels)
    )
    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@each_workload
def test_production_loses_no_workload_with_one_node(
    name: str, overlays: Mapping[str, Rendered]
) -> None:
    production = overlays["production"]
    assert name in ALONE or _fewest(production, name) >= 2
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in _autoscalers(production)}
    # Two who say how many there are would take turns.
    spec = production.workloads[name].manifest["spec"]
    assert (name in scaled) == ("replicas" not in spec)


def test_production_keeps_each_database_three_times(overlays: Mapping[str, Rendered]) -> None:
    clusters = {
        each["metadata"]["name"]: each["spec"] for each in overlays["production"].of("Cluster")
    }
    assert set(clusters) == {f"{name}-postgres" for name in SERVICES}
    for name, spec in clusters.items():
        assert spec["instances"] == 3
        assert spec["postgresql"]["synchronous"]["dataDurability"] == "required"
        assert spec["enablePDB"] is True
        (constraint,) = spec["topologySpreadConstraints"]
        assert matches(constraint["labelSelector"], {"cnpg.io/cluster": name})
        backups = [each["spec"]["cluster"]["name"] for each in _backups(overlays["production"])]
        assert backups.count(name) == 1


def test_each_database_is_backed_up_where_no_other_may_look(
    overlays: Mapping[str, Rendered],
) -> None:
    production = overlays["production"]
    clusters = {each["metadata"]["name"]: each for each in production.of("Cluster")}
    paths, secrets = set(), set()
    for name, cluster in clusters.items():
        (plugin,) = cluster["spec"]["plugins"]
        assert plugin["isWALArchiver"]
        store = production.one("ObjectStore", plugin["parameters"]["barmanObjectName"])
        keys = store["spec"]["configuration"]["s3Credentials"].values()
        assert {each["name"] for each in keys} == {f"{name}-backups"}
        paths.add(store["spec"]["configuration"]["destinationPath"])
        secrets |= {each["name"] for each in keys}
    assert len(paths) == len(secrets) == len(clusters) == len([*production.of("ObjectStore")])
    # No path lies below another, which whoever may use the upper one could read.
    assert not [(one, other) for one in paths for other in paths if other.startswith(f"{one}/")]


@everywhere
def test_a_database_has_room_for_all_who_may_connect(there: Rendered) -> None:
    most = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["maxReplicas"]
        for each in _autoscalers(there)
    }
    for cluster in there.of("Cluster"):
        name = cluster["metadata"]["name"].removesuffix("-postgres")
        replicas = most.get(name, there.workloads[name].manifest["spec"].get("replicas", 1))
        # While a new version takes the place of the old one there is one more.
        room = int(cluster["spec"]["postgresql"]["parameters"]["max_connections"])
        assert (replicas + 1) * _connections(name) <= room - 20


@everywhere
@each_workload
def test_an_image_is_a_version(workload: Workload) -> None:
    _, _, tag = workload.container["image"].rpartition(":")
    assert re.fullmatch(r"([a-z]+-v)?\d+\.\d+\.\d+(-[a-z0-9]+)*", tag)


@everywhere
def test_the_images_of_databases_are_versions(there: Rendered) -> None:
    tags = {each["spec"]["imageName"].rpartition(":")[2] for each in there.of("Cluster")}
    assert all(re.fullmatch(r"\d+\.\d+(-[a-z]+)*", tag) for tag in tags)


@everywhere
@pytest.mark.parametrize("name", SERVICES)
def test_each_file_that_a_service_is_told_of_is_mounted(
    there: Rendered, name: str, workload: Workload
) -> None:
    told = {name.removeprefix("BULKHEAD_").lower(): value for name, value in _told(there, name)}
    paths = [
        PurePosixPath(value)
        for field, value in told.items()
        if _is_path(SETTINGS[name].model_fields[field].annotation)
    ]
    assert len(paths) >= 4
    for path in paths:
        assert _is_there(workload, path), path


@everywhere
@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_given_the_time_that_its_end_takes(
    there: Rendered, name: str, workload: Workload
) -> None:
    told = dict(_told(there, name))
    pause = workload.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain, grace = (float(told[f"BULKHEAD_{each}_SECONDS"]) for each in ("DRAIN", "GRACE"))
    assert workload.pod["terminationGracePeriodSeconds"] > pause + drain + grace
    # Those who look it up have to have noticed before it closes.
    assert drain >= 1


@everywhere
def test_the_front_door_is_given_the_time_that_its_end_takes(there: Rendered) -> None:
    door = there.workloads["envoy"]
    pause = door.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert door.pod["terminationGracePeriodSeconds"] > pause


@everywhere
@pytest.mark.parametrize("name", MESH)
def test_a_rolling_update_takes_nobody_away_before_another_serves(workload: Workload) -> None:
    strategy = workload.manifest["spec"]["strategy"]
    assert strategy["type"] == "RollingUpdate"
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def _secret_volumes(pod: Manifest) -> Iterator[Manifest]:
    for volume in pod["volumes"]:
        projected = volume.get("projected", {})
        if "secret" in volume:
            yield volume["secret"]
        if any(
            {"secret", "serviceAccountToken"} & set(each) for each in projected.get("sources", [])
        ):
            yield projected


def _probed(probe: Manifest) -> int | str | None:
    """Returns the port; None for a command inside of the pod."""
    if "exec" in probe:
        return None
    (kind,) = {"grpc", "httpGet", "tcpSocket"} & set(probe)
    port: int | str = probe[kind]["port"]
    return port


def _patience(probe: Manifest) -> int:
    seconds: int = probe["periodSeconds"] * probe["failureThreshold"]
    return seconds


def _autoscalers(there: Rendered) -> list[Manifest]:
    return list(there.of("HorizontalPodAutoscaler"))


def _backups(there: Rendered) -> list[Manifest]:
    return list(there.of("ScheduledBackup"))


def _fewest(there: Rendered, name: str) -> int:
    for each in _autoscalers(there):
        if each["spec"]["scaleTargetRef"]["name"] == name:
            fewest: int = each["spec"]["minReplicas"]
            return fewest
    replicas: int = there.workloads[name].manifest["spec"]["replicas"]
    return replicas


def _connections(name: str) -> int:
    """Returns how many connections one process may hold to its own database."""
    fields = SETTINGS[name].model_fields
    pools = ("postgres_pool_size", "refresh_pool_size", "lock_pool_size")
    listening = 2
    return listening + sum(int(fields[each].default) for each in pools if each in fields)


def _told(there: Rendered, name: str) -> Iterator[tuple[str, str]]:
    """Yields the variables that mean something to the service."""
    known = {f"BULKHEAD_{field}".upper() for field in SETTINGS[name].model_fields}
    return ((each, value) for each, value in there.variables(name).items() if each in known)


def _is_path(annotation: Any) -> bool:
    return annotation in {Path, Path | None}


def _is_there(workload: Workload, path: PurePosixPath) -> bool:
    """Whether a file is mounted, or the folder in which the service makes it."""
    volumes = {each["name"]: each for each in workload.pod["volumes"]}
    for mount in workload.container["volumeMounts"]:
        if path.is_relative_to(mount["mountPath"]):
            files = _files(volumes[mount["name"]])
            return files is None or str(path.relative_to(mount["mountPath"])) in files
    return False


def _files(volume: Manifest) -> set[str] | None:
    """Returns what is in a volume; None when it is not known before."""
    sources = list(volume.get("projected", {}).get("sources", []))
    parts = [volume, *sources] if "secret" in volume else sources
    secrets = [each["secret"] for each in parts if "secret" in each]
    if not secrets or any("items" not in each for each in secrets):
        return None
    return {item["path"] for each in secrets for item in each["items"]}


@everywhere
def test_what_the_provisioner_writes_is_bound_to_the_namespaces_of_deployments(
    there: Rendered,
) -> None:
    """Its rights hold everywhere: without this they would be those of the whole cluster."""
    (policy,) = there.of("ValidatingAdmissionPolicy")
    (binding,) = there.of("ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    assert binding["spec"]["validationActions"] == ["Deny"]
    spec = policy["spec"]
    assert spec["failurePolicy"] == "Fail"
    (rule,) = spec["matchConstraints"]["resourceRules"]
    assert (rule["apiGroups"], rule["apiVersions"], rule["resources"]) == (["*"], ["*"], ["*/*"])
    assert set(rule["operations"]) == {"CREATE", "UPDATE", "DELETE"}
    (account,) = [
        subject
        for bound in there.of("ClusterRoleBinding")
        for subject in bound["subjects"]
        if subject["name"] == "provisioner"
    ]
    name = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    assert [each["expression"] for each in spec["matchConditions"]] == [
        f'request.userInfo.username == "{name}"'
    ]
    where = namespace_name(DeploymentId("dep_" + "0" * 26))
    prefix = re.search(r'startsWith\("([^"]+)"\)', spec["validations"][0]["expression"])
    assert prefix is not None
    assert where.startswith(prefix[1])
    assert not MESH_NAMESPACE.startswith(prefix[1])
