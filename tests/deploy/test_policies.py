"""Exactly what the mesh needs is open: every call of the contracts, and nothing else."""

from collections.abc import Mapping
from ipaddress import ip_address, ip_network

import pytest

from tests.deploy.calls import GRPC, HTTP, admitted, configured, contracted, forwarded
from tests.deploy.network import Endpoint, Network, Port
from tests.deploy.rendered import (
    KUBERNETES,
    MESH,
    NAMESPACE,
    OVERLAYS,
    SERVICES,
    WITH_VALKEY,
    Manifest,
    Rendered,
    composed,
)

DOOR, HEALTH, METRICS, COLLECTOR, DNS = 8080, 7101, 7102, 4317, 53
POSTGRES, POSTGRES_STATUS, POSTGRES_METRICS, VALKEY = 5432, 8000, 9187, 6379
API = (443, 6443)
NUMBERS = {
    *(GRPC, HTTP, DOOR, HEALTH, METRICS, COLLECTOR, DNS, *API),
    *(POSTGRES, POSTGRES_STATUS, POSTGRES_METRICS, VALKEY),
    # The front door's administration, and what nobody listens at.
    *(1, 22, 80, 2379, 8443, 9901, 10250, 65535),
}
PORTS = [*(Port(each) for each in sorted(NUMBERS)), Port(DNS, "UDP"), Port(GRPC, "UDP")]
LINK_LOCAL = [ip_network("169.254.0.0/16"), ip_network("fe80::/10")]
# Who speaks to the cluster's API.
ASKING = ("provisioner", *(f"{service}-postgres" for service in SERVICES))
# Who speaks to the databases of deployments.
WITH_DEPLOYMENTS = ("app-proxy", "provisioner")
WITH_POLICIES = ("network-policies", "cnpg", "valkey", "otel", "prometheus")
PART_OF = "app.kubernetes.io/part-of"
NAME = "app.kubernetes.io/name"
CLUSTER = "cnpg.io/cluster"


def pod(
    name: str, namespace: str, address: str, labels: Mapping[str, str], **more: str
) -> Endpoint:
    namespace_labels = {"kubernetes.io/metadata.name": namespace, **more}
    return Endpoint(name, address, namespace, labels, namespace_labels)


RESOLVER = pod("resolver", "kube-system", "10.244.9.1", {"k8s-app": "kube-dns"})
NODE_RESOLVER = Endpoint("node resolver", "169.254.20.10")
PROMETHEUS = pod("prometheus", "monitoring", "10.244.9.2", {NAME: "prometheus"})
RECEIVER = pod("collector", "observability", "10.244.9.3", {NAME: "collector"})
OPERATOR = pod("operator", "cnpg-system", "10.244.9.4", {NAME: "cloudnative-pg"})
DATABASE = pod(
    "a deployment's database",
    "bulkhead-dep-1",
    "10.244.9.5",
    {CLUSTER: "database"},
    **{PART_OF: "bulkhead-deployment"},
)
PUBLIC = (Endpoint("public", "203.0.113.7"), Endpoint("public, version 6", "2001:db8::7"))
PRIVATE = (
    Endpoint("a node", "10.0.0.9"),
    Endpoint("a network beside", "192.168.7.7"),
    Endpoint("one of version 6", "fd00::7"),
    Endpoint("metadata", "169.254.169.254"),
    Endpoint("loopback", "127.0.0.1"),
)
# Some who look like somebody, at the wrong place.
STRANGERS = (
    pod("stranger", "default", "10.244.8.1", {}),
    pod("app", "bulkhead-dep-1", "10.244.8.2", {}, **{PART_OF: "bulkhead-deployment"}),
    pod("false prometheus", "default", "10.244.8.3", {NAME: "prometheus"}),
    pod("neighbour of prometheus", "monitoring", "10.244.8.4", {NAME: "grafana"}),
    pod("false operator", "default", "10.244.8.5", {NAME: "cloudnative-pg"}),
    pod("false resolver", "default", "10.244.8.6", {"k8s-app": "kube-dns"}),
    pod("false database", "default", "10.244.8.7", {CLUSTER: "auth-postgres"}),
    *(
        pod(f"false {name}", "default", "10.244.8.8", {NAME: name, PART_OF: "bulkhead"})
        for name in (*MESH, "valkey")
    ),
)
OUTSIDE = (
    *(RESOLVER, NODE_RESOLVER, PROMETHEUS, RECEIVER, OPERATOR, DATABASE),
    *(*PUBLIC, *PRIVATE, *STRANGERS),
)
# One that nothing was said of, in the namespace of the mesh.
NOBODY = pod("nobody", NAMESPACE, "10.244.1.250", {"run": "debug"})

Connection = tuple[str, str, Port]

everywhere = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The base with everything that has a policy."""
    folder = tmp_path_factory.mktemp("whole")
    return composed(folder, WITH_POLICIES)


@pytest.fixture(scope="session")
def network(whole: Rendered) -> Network:
    return Network(whole.of("NetworkPolicy"))


@pytest.fixture(scope="session")
def inside(whole: Rendered) -> Mapping[str, Endpoint]:
    """Every pod of the mesh's namespace: those of Postgres too, and one of nobody's."""
    labels = {name: each.labels for name, each in whole.workloads.items()}
    labels |= {name: {CLUSTER: name} for name in _clusters(whole)}
    named = {
        name: pod(name, NAMESPACE, f"10.244.1.{number}", labels[name])
        for number, name in enumerate(labels, 1)
    }
    return {**named, NOBODY.name: NOBODY}


def test_what_services_call_is_what_the_contracts_let_them_call() -> None:
    """The same said twice: by those who call, and by those who are called."""
    assert {each for each in contracted() if each[0] != "envoy"} <= configured()
    assert all(admitted(caller, called) for caller, called, _ in configured())


@everywhere
def test_the_front_door_forwards_to_each_service_whose_api_it_opens(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    opened = {each for each in contracted() if each[0] == "envoy"}
    http = {("envoy", "app-proxy", HTTP)}
    assert opened | http <= forwarded(overlays[overlay])


def test_each_end_admits_exactly_the_connections_that_are_needed(
    network: Network, inside: Mapping[str, Endpoint], whole: Rendered
) -> None:
    """Each end by itself, so that none relies on the other alone."""
    own = [*inside.values()]
    pairs = [(source, target) for source in (*own, *OUTSIDE) for target in (*own, *OUTSIDE)]
    asked = [(source, target, port) for source, target in pairs for port in PORTS]
    out = {_named(each) for each in asked if each[0] in own and network.lets_out(*each)}
    into = {_named(each) for each in asked if each[1] in own and network.lets_in(*each)}
    needed = _needed(whole)
    # Who asks the cluster's API may look for it at any address; pods do not let it in.
    api = {(name, each.name, Port(port)) for name in ASKING for each in own for port in API}
    # The front door lets in whoever comes, and nobody inside goes there.
    door = {(each.name, "envoy", Port(DOOR)) for each in own}
    _same(out, {each for each in needed if each[0] in inside} | api)
    _same(into, {each for each in needed if each[1] in inside} | door)


@everywhere
def test_an_overlay_has_the_policies_of_all_that_is_in_it(
    overlay: str, overlays: Mapping[str, Rendered], whole: Rendered
) -> None:
    """What was looked at above is what is applied, but for telemetry where there is none."""
    telemetry = {"collector", "prometheus", "prometheus-postgres"} if overlay == "dev" else set()
    looked_at = _specs(whole)
    assert _specs(overlays[overlay]) == {
        name: looked_at[name] for name in looked_at if name not in telemetry
    }


@everywhere
def test_every_pod_is_closed_in_both_directions(
    overlay: str, overlays: Mapping[str, Rendered]
) -> None:
    there = overlays[overlay]
    network = Network(there.of("NetworkPolicy"))
    deny = there.one("NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, workload in there.workloads.items():
        own = pod(name, NAMESPACE, "10.244.1.1", workload.labels)
        assert network.closes("Ingress", own)
        assert network.closes("Egress", own)
        # By a policy of its own too, not by the one alone that closes everything.
        assert there.one("NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"].items() <= (
            workload.labels.items()
        )
    assert network.closes("Ingress", NOBODY)
    assert network.closes("Egress", NOBODY)


def test_every_component_with_policies_is_looked_at() -> None:
    files = (KUBERNETES / "components").glob("*/*.yaml")
    with_policies = {
        each.parent.name for each in files if "kind: NetworkPolicy" in each.read_text()
    }
    assert with_policies == set(WITH_POLICIES)


def _named(connection: tuple[Endpoint, Endpoint, Port]) -> Connection:
    source, target, port = connection
    return source.name, target.name, port


def _same(found: set[Connection], wanted: set[Connection]) -> None:
    assert wanted - found == set()
    assert found - wanted == set()


def _clusters(there: Rendered) -> list[str]:
    return [each["metadata"]["name"] for each in there.of("Cluster")]


def _specs(there: Rendered) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each["spec"] for each in there.of("NetworkPolicy")}


def _needed(there: Rendered) -> set[Connection]:
    """Returns every connection that is to be open, by the names of its ends."""
    calls = contracted() | configured() | forwarded(there)
    return {
        *((caller, called, Port(number)) for caller, called, number in calls),
        *((each.name, "envoy", Port(DOOR)) for each in OUTSIDE),
        *_of_stores(),
        *_of_the_outside_world(),
        *_of_telemetry(),
        *_of_names([*MESH, "valkey", *(f"{each}-postgres" for each in SERVICES), NOBODY.name]),
    }


def _of_stores() -> set[Connection]:
    among = [Port(POSTGRES), Port(POSTGRES_STATUS)]
    clusters = {service: f"{service}-postgres" for service in SERVICES}
    return {
        *((service, cluster, Port(POSTGRES)) for service, cluster in clusters.items()),
        *((cluster, cluster, port) for cluster in clusters.values() for port in among),
        *((OPERATOR.name, cluster, port) for cluster in clusters.values() for port in among),
        *((service, "valkey", Port(VALKEY)) for service in WITH_VALKEY),
        *((service, DATABASE.name, Port(POSTGRES)) for service in WITH_DEPLOYMENTS),
    }


def _of_the_outside_world() -> set[Connection]:
    """Providers and webhooks at public addresses; the cluster's API wherever it may be."""
    anywhere = [each for each in OUTSIDE if not _is_link_local(each)]
    tcp = [port for port in PORTS if port.protocol == "TCP"]
    return {
        *(("credentials", each.name, port) for each in PUBLIC for port in tcp),
        *((own, each.name, Port(number)) for own in ASKING for each in anywhere for number in API),
    }


def _of_telemetry() -> set[Connection]:
    clusters = [f"{service}-postgres" for service in SERVICES]
    return {
        *((PROMETHEUS.name, each, Port(METRICS)) for each in MESH),
        *((PROMETHEUS.name, each, Port(POSTGRES_METRICS)) for each in clusters),
        *((each, RECEIVER.name, Port(COLLECTOR)) for each in MESH),
    }


def _of_names(names: list[str]) -> set[Connection]:
    resolvers = (RESOLVER.name, NODE_RESOLVER.name)
    both = (Port(DNS), Port(DNS, "UDP"))
    return {(name, resolver, port) for name in names for resolver in resolvers for port in both}


def _is_link_local(each: Endpoint) -> bool:
    return any(ip_address(each.address) in network for network in LINK_LOCAL)
