"""What every chapter has at hand, and who appears in it."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from deploy.local.stack import Addresses
from deploy.local.story.command_line import CommandLine
from deploy.local.story.stage import Stage
from deploy.local.story.visitor import Visitor, visiting
from deploy.local.traces import Traces


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and the key that administers it."""

    name: str
    tenant_id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A tenant's deployment and the key of the agent that works with it."""

    tenant: Tenant
    deployment_id: str
    host: str
    key_id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Scene:
    """A running stack, seen from outside."""

    stage: Stage
    addresses: Addresses
    bulkhead: CommandLine
    traces: Traces
    # Answers to requests that the door let in, by host.
    served: Counter[str] = field(default_factory=Counter)

    @property
    def port(self) -> int:
        """Where the front door listens."""
        return int(self.addresses.edge.rpartition(":")[2])

    @asynccontextmanager
    async def visit(self, host: str, key: str = "") -> AsyncIterator[Visitor]:
        """Yields a visitor of `host`; what the door lets in is counted."""
        async with visiting(host, self.port, key, self.served) as visitor:
            yield visitor
