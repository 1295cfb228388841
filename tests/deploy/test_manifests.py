"""The manifests as a whole: they build, an API server takes them, and what they name is there."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from deploy.envoy.config import rendered
from deploy.envoy.kubernetes import edge_settings, mesh_variables
from deploy.local.pki import spiffe_uri
from tests.deploy.rendered import (
    COMPONENTS,
    KUBERNETES,
    MESH,
    OVERLAYS,
    SERVICES,
    SETTINGS,
    WITH_VALKEY,
    Manifest,
    Rendered,
)
from tests.deploy.validation import custom_validators, newest_minors, refused

# Who each workload is on the mesh.
IDENTITIES = {"envoy": "edge", "app-proxy": "app_proxy"}


def identity(workload: str) -> str:
    return IDENTITIES.get(workload, workload)


@pytest.fixture(scope="session")
def everything(
    overlays: Mapping[str, Rendered], components: Mapping[str, Rendered]
) -> list[Manifest]:
    """Each object of the overlays, and of what they leave out, once."""
    builds = [*overlays.values(), components["external-secrets"]]
    objects = {json.dumps(each, sort_keys=True): each for some in builds for each in some.objects}
    return list(objects.values())


@pytest.mark.parametrize("name", COMPONENTS)
def test_each_component_builds_on_the_base_alone(
    name: str, base: Rendered, components: Mapping[str, Rendered]
) -> None:
    assert components[name].objects != base.objects


def test_every_component_there_is_is_looked_at() -> None:
    folders = {each.name for each in (KUBERNETES / "components").iterdir()}
    assert folders == set(COMPONENTS)
    assert {each.name for each in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)


@pytest.mark.parametrize("minor", newest_minors())
def test_every_object_is_accepted_by_each_of_the_newest_releases(
    minor: str, everything: list[Manifest]
) -> None:
    custom = custom_validators()
    own = [each for each in everything if _kind(each) not in custom]
    assert not list(refused(own, minor))


def test_custom_resources_have_the_fields_that_are_documented(everything: list[Manifest]) -> None:
    validators = custom_validators()
    seen = [each for each in everything if _kind(each) in validators]
    assert {_kind(each) for each in seen} == set(validators)
    errors = [error for each in seen for error in validators[_kind(each)].iter_errors(each)]
    assert not [f"{error.json_path}: {error.message}" for error in errors]


def test_an_unknown_field_anywhere_in_a_custom_resource_is_refused(
    everything: list[Manifest],
) -> None:
    validators = custom_validators()
    one_of_each = {_kind(each): each for each in everything if _kind(each) in validators}
    for kind, each in one_of_each.items():
        for spoilt in _spoilt(each["spec"]):
            assert not validators[kind].is_valid({**each, "spec": spoilt})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_there_twice(overlay: str, overlays: Mapping[str, Rendered]) -> None:
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in overlays[overlay].objects
    ]
    assert len(names) == len(set(names))


def test_no_secret_is_in_the_repository(everything: list[Manifest]) -> None:
    assert not [each["metadata"]["name"] for each in everything if each["kind"] == "Secret"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_secret_is_made_by_something_that_is_there(
    overlay: str, overlays: Mapping[str, Rendered], components: Mapping[str, Rendered]
) -> None:
    """By the certificates, by the databases, or by whoever makes the external ones."""
    there = overlays[overlay]
    made = {each["spec"]["secretName"]: {"tls.crt", "tls.key", "ca.crt"} for each in _leaves(there)}
    for cluster in there.of("Cluster"):
        made[f"{cluster['metadata']['name']}-app"] = {"password"}
        made[f"{cluster['metadata']['name']}-ca"] = {"ca.crt"}
    for each in components["external-secrets"].of("ExternalSecret"):
        keys = {item["secretKey"] for item in each["spec"].get("data", [])}
        made[each["spec"]["target"]["name"]] = keys
    for workload in there.workloads.values():
        for name, keys in _mounted_secrets(workload.pod):
            assert name in made
            assert keys <= made[name]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_workload_has_a_certificate_of_who_it_is(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    certificates = {each["metadata"]["name"]: each["spec"] for each in _leaves(overlays[overlay])}
    assert set(certificates) >= set(MESH)
    for workload in MESH:
        spec = certificates[workload]
        assert spec["uris"] == [spiffe_uri(identity(workload))]
        # What clients expect of it, whatever address they reach it by.
        assert spec["dnsNames"] == [identity(workload)]
        assert {"server auth", "client auth"} <= set(spec["usages"])
        assert spec["privateKey"]["rotationPolicy"] == "Always"
        assert (f"{workload}-tls", {"tls.crt", "tls.key", "ca.crt"}) in list(
            _mounted_secrets(overlays[overlay].workloads[workload].pod)
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_caller_is_who_the_gateway_says_where_there_is_one(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    there = overlays[overlay]
    told = there.one("ConfigMap", "mesh")["data"]
    assert int(told["BULKHEAD_GATEWAYS"]) == bool([*there.of("HTTPRoute")])
    door = json.loads(there.one("ConfigMap", "envoy")["data"]["envoy.json"])
    hops = f'"xff_num_trusted_hops": {told["BULKHEAD_GATEWAYS"]}'
    assert hops in json.dumps(door)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_services_are_told_is_understood(
    overlay: str, overlays: Mapping[str, Rendered], tmp_path: Path
) -> None:
    there = overlays[overlay]
    known = {f"BULKHEAD_{name}".upper() for kind in SETTINGS.values() for name in kind.model_fields}
    told = set(there.one("ConfigMap", "mesh")["data"])
    # Of that one the front door's configuration is made, and nothing else.
    assert told - {"BULKHEAD_GATEWAYS"} <= known
    for workload, settings in SETTINGS.items():
        own = {each["name"] for each in there.workloads[workload].container.get("env", [])}
        assert own <= {f"BULKHEAD_{name}".upper() for name in settings.model_fields}
        variables = there.variables(workload)
        file = tmp_path / f"{workload}.env"
        file.write_text("".join(f"{name}='{value}'\n" for name, value in variables.items()))
        read = settings(_env_file=file)  # type: ignore[call-arg]
        assert read.tls_cert_file == Path(variables["BULKHEAD_TLS_CERT_FILE"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_address_that_services_are_told_is_a_service_with_that_port(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    there = overlays[overlay]
    clusters = {f"{each['metadata']['name']}-rw" for each in there.of("Cluster")}
    for service in SERVICES:
        told = there.variables(service)
        for other in SERVICES:
            host, port = _address(told[f"BULKHEAD_{identity(other).upper()}_TARGET"])
            assert host == f"{other}.bulkhead.svc"
            assert (port, "grpc") in _ports(there, other)
        assert told["BULKHEAD_POSTGRES_HOST"] == f"{service}-postgres-rw.bulkhead.svc"
        assert f"{service}-postgres-rw" in clusters
    for service in WITH_VALKEY:
        told = there.variables(service)
        assert told["BULKHEAD_VALKEY_HOST"] == "valkey.bulkhead.svc"
        assert (int(told["BULKHEAD_VALKEY_PORT"]), "valkey") in _ports(there, "valkey")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_port_of_a_service_is_one_of_its_pods(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    for service in overlays[overlay].of("Service"):
        workload = overlays[overlay].workloads[service["metadata"]["name"]]
        assert service["spec"]["selector"].items() <= workload.labels.items()
        assert {each["targetPort"] for each in service["spec"]["ports"]} <= set(workload.ports)


def test_the_front_door_with_traces_is_the_front_door() -> None:
    """The generated file is current: `make manifests` writes it."""
    component = KUBERNETES / "components" / "otel"
    told = mesh_variables([KUBERNETES / "base" / "mesh.env", component / "otel.env"])
    assert (component / "envoy.json").read_text() == rendered(edge_settings(told))


def test_the_gateway_leads_every_host_to_the_front_door(components: Mapping[str, Rendered]) -> None:
    there = components["gateway-api"]
    told = there.one("ConfigMap", "mesh")["data"]
    routes = {each["metadata"]["name"]: each["spec"] for each in there.of("GRPCRoute", "HTTPRoute")}
    hosts = [host for each in routes.values() for host in each["hostnames"]]
    # A Gateway routes a host either by gRPC or by HTTP.
    assert len(hosts) == len(set(hosts))
    assert set(hosts) == {*json.loads(told["BULKHEAD_API_HOSTS"]), f"*.{told['BULKHEAD_DOMAIN']}"}
    callback = urlsplit(told["BULKHEAD_REDIRECT_URL"])
    page = routes["bulkhead-authorizations"]
    assert page["hostnames"] == [callback.hostname]
    assert page["rules"][0]["matches"][0]["path"]["value"] == callback.path
    for route in routes.values():
        for target in route["rules"][0]["backendRefs"]:
            assert (target["port"], "http") in _ports(there, target["name"])


def test_prometheus_finds_the_metrics_of_every_workload(
    components: Mapping[str, Rendered],
) -> None:
    there = components["prometheus"]
    (endpoint,) = there.one("PodMonitor", "bulkhead")["spec"]["podMetricsEndpoints"]
    told = there.one("ConfigMap", "mesh")["data"]
    for workload in MESH:
        port = there.workloads[workload].ports[endpoint["port"]]
        assert _address(told["BULKHEAD_METRICS_LISTEN"])[1] == port


def _kind(each: Manifest) -> tuple[str, str]:
    return each["apiVersion"], each["kind"]


def _spoilt(value: Any) -> Iterator[Any]:
    """Yields copies of `value`, each with one field more somewhere in it."""
    if isinstance(value, dict):
        yield {**value, "unheardOf": ["at all"]}
        for name, inner in value.items():
            for spoilt in _spoilt(inner):
                yield {**value, name: spoilt}
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            for spoilt in _spoilt(inner):
                yield [*value[:index], spoilt, *value[index + 1 :]]


def _leaves(there: Rendered) -> Iterator[Manifest]:
    return (each for each in there.of("Certificate") if not each["spec"].get("isCA"))


def _mounted_secrets(pod: Manifest) -> Iterator[tuple[str, set[str]]]:
    for volume in pod["volumes"]:
        if "secret" in volume:
            items = volume["secret"].get("items", [])
            yield volume["secret"]["secretName"], {each["key"] for each in items}
        for source in volume.get("projected", {}).get("sources", []):
            if "secret" in source:
                items = source["secret"].get("items", [])
                yield source["secret"]["name"], {each["key"] for each in items}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("dns:///").rpartition(":")
    return host, int(port)


def _ports(there: Rendered, name: str) -> set[tuple[int, str]]:
    ports = there.one("Service", name)["spec"]["ports"]
    return {(each["port"], each["targetPort"]) for each in ports}
