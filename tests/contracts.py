"""Every method of every proto, found by reflection, so that none is forgotten."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bulkhead.common.v1 import access_pb2
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one service of the mesh."""

    service: str
    descriptor: MethodDescriptor

    @property
    def path(self) -> str:
        """As it stands in a request: `/package.Service/Method`."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @property
    def access(self) -> Access:
        """Who may call it."""
        return self.descriptor.GetOptions().Extensions[access_pb2.access]

    @property
    def declares_access(self) -> bool:
        """Whether the option is there at all."""
        return self.descriptor.GetOptions().HasExtension(access_pb2.access)

    def request(self, **fields: Any) -> Any:
        """Returns a request message."""
        return GetMessageClass(self.descriptor.input_type)(**fields)

    def caller(self) -> str:
        """Returns a service that may call it."""
        return self.access.peers[0] if self.access.peers else "edge"


def every_method() -> list[Method]:
    """Returns the methods of all contracts, in the order of their names."""
    found = []
    for proto in sorted((ROOT / "protos" / "bulkhead").glob("*/v1/*_service.proto")):
        service = proto.parent.parent.name
        pb2 = importlib.import_module(f"bulkhead.{service}.v1.{proto.stem}_pb2")
        for descriptor in pb2.DESCRIPTOR.services_by_name.values():
            found += [Method(service, method) for method in descriptor.methods]
    return found


def every_field(message: Descriptor, path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Yields each field of a message and of the messages inside it, with its path."""
    for field in message.fields:
        name = f"{path}.{field.name}" if path else field.name
        yield name, field
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.file.package.startswith("bulkhead"):
            yield from every_field(field.message_type, name)
