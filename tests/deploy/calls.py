"""Who calls whom on the mesh: read from the contracts and from the services, never from a list."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from bulkhead.common.v1 import access_pb2
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.descriptor import MethodDescriptor

import services
from deploy.envoy.contracts import EDGE, contracts, open_methods
from tests.deploy.rendered import SERVICES, Rendered

# Caller, called and the called one's port, by the names of workloads.
Call = tuple[str, str, int]

GRPC, HTTP = 7100, 7103
_TARGET = re.compile(r"\bsettings\.(\w+)_target\b")
_ROOT = Path(services.__file__).parent


def workload(service: str) -> str:
    """Returns what runs a service, or the front door."""
    return "envoy" if service == EDGE else service.replace("_", "-")


def contracted() -> set[Call]:
    """Returns the calls that the contracts allow to named peers, and through the front door."""
    named = {
        (workload(peer), workload(service), GRPC)
        for service, method in _methods()
        for peer in _access(method).peers
    }
    opened = {("envoy", workload(each.service), GRPC) for each in open_methods(contracts())}
    return named | opened


def configured() -> set[Call]:
    """Returns the calls that the services open channels for."""
    return {
        (own, workload(target), GRPC)
        for own in SERVICES
        for file in (_ROOT / own.replace("-", "_")).rglob("*.py")
        for target in _TARGET.findall(file.read_text())
    }


def admitted(caller: str, called: str) -> bool:
    """Whether some method of `called` lets `caller` in, by name or with anybody's key."""
    accesses = [_access(method) for service, method in _methods() if workload(service) == called]
    return any(
        (access.keys and not access.peers) or caller in map(workload, access.peers)
        for access in accesses
    )


def forwarded(there: Rendered) -> set[Call]:
    """Returns the calls for which the front door, as it is configured, has a cluster."""
    configuration = json.loads(there.one("ConfigMap", "envoy")["data"]["envoy.json"])
    addresses = [
        endpoint["endpoint"]["address"]["socket_address"]
        for cluster in configuration["static_resources"]["clusters"]
        for locality in cluster["load_assignment"]["endpoints"]
        for endpoint in locality["lb_endpoints"]
    ]
    within = [each for each in addresses if each["address"].endswith(".bulkhead.svc")]
    return {("envoy", each["address"].split(".")[0], each["port_value"]) for each in within}


def _methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for service, file in contracts().items():
        for contract in file.services_by_name.values():
            for method in contract.methods:
                yield service, method


def _access(method: MethodDescriptor) -> Access:
    access: Access = method.GetOptions().Extensions[access_pb2.access]
    return access
