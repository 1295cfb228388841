"""A model of how Kubernetes evaluates NetworkPolicies (networking.k8s.io/v1).

What is not selected by any policy of a direction is open in it; what is, is open to what one of
them allows. A connection needs both ends to allow it. An `ipBlock` is taken to match pods too, as
it does with some network plugins: what is refused here is refused by all of them. Connections from
a pod's own node, as of its kubelet's probes, are always allowed, and are not looked at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from ipaddress import ip_address, ip_network
from typing import Any

from tests.deploy.rendered import Manifest, matches

_INGRESS, _EGRESS = "Ingress", "Egress"


@dataclass(frozen=True)
class Endpoint:
    """A pod, or something outside of the cluster, which has an address alone."""

    name: str
    address: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pod(self) -> bool:
        return bool(self.namespace)


@dataclass(frozen=True, order=True)
class Port:
    """What is connected to."""

    number: int
    protocol: str = "TCP"


class Network:
    """The policies of a cluster."""

    def __init__(self, policies: Iterable[Manifest]) -> None:
        self._policies = [_Policy(each) for each in policies]
        self._selecting: dict[tuple[str, str, str], list[_Policy]] = {}

    def lets_out(self, source: Endpoint, target: Endpoint, port: Port) -> bool:
        """Whether what is said of `source` lets it connect."""
        return self._open(_EGRESS, source, target, port)

    def lets_in(self, source: Endpoint, target: Endpoint, port: Port) -> bool:
        """Whether what is said of `target` lets it be connected to."""
        return self._open(_INGRESS, target, source, port)

    def closes(self, direction: str, pod: Endpoint) -> bool:
        """Whether any policy selects the pod in this direction."""
        return bool(self._that_select(direction, pod))

    def _open(self, direction: str, own: Endpoint, other: Endpoint, port: Port) -> bool:
        selecting = self._that_select(direction, own)
        return not selecting or any(each.admits(direction, other, port) for each in selecting)

    def _that_select(self, direction: str, pod: Endpoint) -> "list[_Policy]":
        key = direction, pod.namespace, pod.name
        if key not in self._selecting:
            selecting = [each for each in self._policies if each.selects(direction, pod)]
            self._selecting[key] = selecting
        return self._selecting[key]


class _Policy:
    def __init__(self, manifest: Manifest) -> None:
        self._namespace: str = manifest["metadata"]["namespace"]
        self._spec: dict[str, Any] = manifest["spec"]

    @cached_property
    def _directions(self) -> set[str]:
        return set(self._spec["policyTypes"])

    def selects(self, direction: str, pod: Endpoint) -> bool:
        return (
            direction in self._directions
            and pod.namespace == self._namespace
            and matches(self._spec["podSelector"], pod.labels)
        )

    def admits(self, direction: str, other: Endpoint, port: Port) -> bool:
        peers = "from" if direction == _INGRESS else "to"
        return any(
            _has_port(rule.get("ports"), port) and self._has_peer(rule.get(peers), other)
            for rule in self._spec.get(direction.lower(), [])
        )

    def _has_peer(self, peers: list[Manifest] | None, other: Endpoint) -> bool:
        # No list, or an empty one, means everybody.
        return not peers or any(self._is_peer(each, other) for each in peers)

    def _is_peer(self, peer: Manifest, other: Endpoint) -> bool:
        if "ipBlock" in peer:
            return _in_block(peer["ipBlock"], other.address)
        if not other.is_pod:
            return False
        if "namespaceSelector" not in peer:
            near = other.namespace == self._namespace
        else:
            near = matches(peer["namespaceSelector"], other.namespace_labels)
        return near and matches(peer.get("podSelector", {}), other.labels)


def _has_port(ports: list[Manifest] | None, port: Port) -> bool:
    return not ports or any(_is_port(each, port) for each in ports)


def _is_port(wanted: Manifest, port: Port) -> bool:
    if wanted.get("protocol", "TCP") != port.protocol:
        return False
    if "port" not in wanted:
        return True
    # By number: not every network plugin knows the names of ports.
    first: int = wanted["port"]
    last: int = wanted.get("endPort", first)
    return first <= port.number <= last


def _in_block(block: Manifest, address: str) -> bool:
    excluded = block.get("except", [])
    return _is_in(address, block["cidr"]) and not any(_is_in(address, each) for each in excluded)


@cache
def _is_in(address: str, network: str) -> bool:
    return ip_address(address) in ip_network(network)
