"""Which methods the front door lets through: read from the contracts, never from a list."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bulkhead.app_proxy.v1 import routing_service_pb2
from bulkhead.auth.v1 import auth_service_pb2
from bulkhead.common.v1 import access_pb2
from bulkhead.common.v1.access_pb2 import Access
from bulkhead.credentials.v1 import credentials_service_pb2
from bulkhead.provisioner.v1 import provisioner_service_pb2
from bulkhead.ratelimit.v1 import ratelimit_service_pb2
from google.protobuf.descriptor import FileDescriptor

# The front door, as a peer of services.
EDGE = "edge"


@dataclass(frozen=True, slots=True)
class OpenMethod:
    """A method that may be called from outside."""

    # The service process that serves it.
    service: str
    # Full name of the method's service, as `bulkhead.auth.v1.AuthService`.
    contract: str
    name: str
    streaming: bool

    @property
    def path(self) -> str:
        """The method's path in gRPC over HTTP/2."""
        return f"/{self.contract}/{self.name}"


def contracts() -> Mapping[str, FileDescriptor]:
    """Returns the contract that each service process serves."""
    return {
        "app_proxy": routing_service_pb2.DESCRIPTOR,
        "auth": auth_service_pb2.DESCRIPTOR,
        "credentials": credentials_service_pb2.DESCRIPTOR,
        "provisioner": provisioner_service_pb2.DESCRIPTOR,
        "ratelimit": ratelimit_service_pb2.DESCRIPTOR,
    }


def open_methods(files: Mapping[str, FileDescriptor]) -> Iterator[OpenMethod]:
    """Yields the methods of `files` (by service process) that may be called from outside.

    Any holder of a key may, where the method takes a key and declares no peers, and anybody where
    it takes none and declares the front door itself as its peer. A method that declares other
    peers is meant for those, and one that declares nothing for nobody.
    """
    for service, file in files.items():
        for contract in file.services_by_name.values():
            for method in contract.methods:
                options = method.GetOptions()
                access = options.Extensions[access_pb2.access]
                if _is_open(access):
                    yield OpenMethod(
                        service, contract.full_name, method.name, method.server_streaming
                    )


def _is_open(access: Access) -> bool:
    if access.keyless:
        return EDGE in access.peers
    return bool(access.keys) and not access.peers
