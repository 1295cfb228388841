"""The walls of a deployment's namespace: who reaches what in it, and how much it may take."""

from collections.abc import Sequence
from ipaddress import IPv4Network, ip_network
from typing import Any

from services.provisioner.drivers.cnpg_api import LIMITS, POLICY, QUOTA, Object
from services.provisioner.drivers.cnpg_guard import OF_GUARD
from services.provisioner.drivers.cnpg_objects import (
    DEPLOYMENT_LABEL,
    NAME,
    OF_CLUSTER,
    PORT,
    Shape,
    made,
    namespace_name,
    quantity,
)
from services.shared.ids import DeploymentId

_STATUS_PORT = 8000
_LINK_LOCAL = IPv4Network("169.254.0.0/16")
_OF_NAMESPACE = "kubernetes.io/metadata.name"
# The job that makes the first instance carries no label of the Cluster's in every version; all pods
# of the namespace may do what they may.
_ALL: dict[str, Any] = {}


def walls(shape: Shape, deployment: DeploymentId, size_bytes: int) -> list[Object]:
    """Returns what is there before anything runs: nothing is let in or out but what it needs."""
    return [
        _policy(shape, deployment, "default-deny", _ALL, ingress=[], egress=[]),
        _policy(shape, deployment, "own", _ALL, ingress=_from_own(shape), egress=_to_own(shape)),
        _quota(shape, deployment, size_bytes),
        _limits(shape, deployment),
    ]


def door(shape: Shape, deployment: DeploymentId) -> Object:
    """Returns what lets the mesh in: once the passwords are the deployment's own."""
    proxy = _pods_of_mesh(shape, "app-proxy")
    return _policy(shape, deployment, "mesh", OF_CLUSTER, ingress=[_rule("from", [proxy], PORT)])


def way_in(shape: Shape, source: DeploymentId, target: DeploymentId) -> Object:
    """Returns what lets the target's database copy the source's."""
    peer = {"namespaceSelector": {"matchLabels": {DEPLOYMENT_LABEL: target}}}
    ingress = [_rule("from", [peer], PORT)]
    return _policy(shape, source, way_in_name(target), OF_CLUSTER, ingress=ingress)


def way_out(shape: Shape, source: DeploymentId, target: DeploymentId) -> Object:
    """Returns what lets the target's pods reach the source's."""
    peer = {"namespaceSelector": {"matchLabels": {DEPLOYMENT_LABEL: source}}}
    return _policy(shape, target, "source", _ALL, egress=[_rule("to", [peer], PORT)])


def way_in_name(target: DeploymentId) -> str:
    """Returns the name of `way_in`'s policy."""
    return f"copy-{namespace_name(target)}"


def _from_own(shape: Shape) -> list[Object]:
    operator = {"namespaceSelector": {"matchLabels": {_OF_NAMESPACE: shape.operator}}}
    own = [{"podSelector": {"matchLabels": labels}} for labels in (OF_CLUSTER, OF_GUARD)]
    return [
        _rule("from", [_pods_of_mesh(shape, "provisioner"), *own], PORT),
        _rule("from", [operator, own[0]], PORT, _STATUS_PORT),
    ]


def _to_own(shape: Shape) -> list[Object]:
    """Names, its own pods, and the API, by which an instance learns what it is to be."""
    names = {"namespaceSelector": {"matchLabels": {_OF_NAMESPACE: "kube-system"}}}
    resolving = {
        "to": [names],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }
    api = {"ipBlock": {"cidr": shape.api_cidr, **_but_metadata(shape.api_cidr)}}
    own = {"podSelector": {"matchLabels": OF_CLUSTER}}
    return [resolving, _rule("to", [own], PORT, _STATUS_PORT), _rule("to", [api], 443, 6443)]


def _but_metadata(cidr: str) -> Object:
    """Leaves out link-local addresses, where clouds tell machines who they are."""
    allowed = ip_network(cidr)
    inside = isinstance(allowed, IPv4Network) and _LINK_LOCAL.subnet_of(allowed)
    return {"except": [str(_LINK_LOCAL)]} if inside else {}


def _pods_of_mesh(shape: Shape, name: str) -> Object:
    return {
        "namespaceSelector": {"matchLabels": {_OF_NAMESPACE: shape.mesh}},
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/part-of": "bulkhead",
            }
        },
    }


def _rule(direction: str, peers: Sequence[Object], *ports: int) -> Object:
    return {direction: list(peers), "ports": [{"protocol": "TCP", "port": one} for one in ports]}


def _policy(
    shape: Shape,
    deployment: DeploymentId,
    name: str,
    pods: Any,
    ingress: list[Object] | None = None,
    egress: list[Object] | None = None,
) -> Object:
    both = {"Ingress": ingress, "Egress": egress}
    spec: Object = {
        "podSelector": {"matchLabels": pods} if pods else {},
        "policyTypes": [direction for direction, rules in both.items() if rules is not None],
    }
    spec |= {direction.lower(): rules for direction, rules in both.items() if rules}
    return made(shape, deployment, POLICY, name, {"spec": spec})


def _quota(shape: Shape, deployment: DeploymentId, size_bytes: int) -> Object:
    """A volume an instance, and one that takes another's place; a job beside each."""
    instances = shape.instances
    hard = {
        "pods": str(2 * instances + 2),
        "persistentvolumeclaims": str(instances + 1),
        "requests.storage": quantity(size_bytes * (instances + 1)),
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    return made(shape, deployment, QUOTA, NAME, {"spec": {"hard": hard}})


def _limits(shape: Shape, deployment: DeploymentId) -> Object:
    most = {"cpu": shape.cpu, "memory": shape.memory}
    container = {"type": "Container", "default": most, "defaultRequest": most, "max": most}
    return made(shape, deployment, LIMITS, NAME, {"spec": {"limits": [container]}})
