"""The API as a test scripts it, and the command line run against it."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from bulkhead.auth.v1.auth_service_pb2_grpc import (
    AuthServiceServicer,
    add_AuthServiceServicer_to_server,
)
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    CredentialsServiceServicer,
    KeyringServiceServicer,
    add_CredentialsServiceServicer_to_server,
    add_KeyringServiceServicer_to_server,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    KeyringServiceServicer as ProvisionerKeyringServicer,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    ProvisionerServiceServicer,
    add_ProvisionerServiceServicer_to_server,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    add_KeyringServiceServicer_to_server as add_provisioner_keyring,
)
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import (
    RatelimitServiceServicer,
    add_RatelimitServiceServicer_to_server,
)
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status

from services.shared.errors import BulkheadError
from services.shared.status import to_status
from tests.warm_commands import WarmCommands

KEY = "smcp_1t_presented"
CREATED = datetime(2026, 11, 22, 12, tzinfo=UTC)
COMMAND_SECONDS = 60.0
# The client's commands alone, as `bulkhead` registers them.
PROGRAM = "from cli.__main__ import main; main()"


@dataclass
class ScriptedApi:
    """Answers each method with what the test put there, and remembers what it was asked."""

    port: int = 0
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Any, dict[str, Any], float]] = field(default_factory=list)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request, _, _ in self.asked if name == method]

    def generic(self, service: Any) -> Any:
        """Returns a servicer of `service` whose every method is scripted."""
        names = [name for name in vars(service) if name[0].isupper()]
        streams = {"WaitOperation", "WatchRevocations"}
        return type(
            "Scripted",
            (service,),
            {name: self._stream(name) if name in streams else self._unary(name) for name in names},
        )()

    def _unary(self, name: str) -> Any:
        async def method(_self: Any, request: Message, context: Any) -> Any:
            return await self._answer(name, request, context)

        return method

    def _stream(self, name: str) -> Any:
        async def method(_self: Any, request: Message, context: Any) -> AsyncIterator[Any]:
            for answer in await self._answer(name, request, context):
                if isinstance(answer, BulkheadError):
                    await context.abort_with_status(rpc_status.to_status(to_status(answer)))
                yield answer

        return method

    async def _answer(self, name: str, request: Message, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        self.asked.append((name, request, metadata, context.time_remaining()))
        answer = self.answers[name]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BulkheadError):
            await context.abort_with_status(rpc_status.to_status(to_status(answer)))
        return answer


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@asynccontextmanager
async def scripted_api() -> AsyncIterator[ScriptedApi]:
    """Yields an API that answers what the test puts into it."""
    scripted = ScriptedApi()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add_AuthServiceServicer_to_server(scripted.generic(AuthServiceServicer), server)
    add_ProvisionerServiceServicer_to_server(scripted.generic(ProvisionerServiceServicer), server)
    add_provisioner_keyring(scripted.generic(ProvisionerKeyringServicer), server)
    add_RatelimitServiceServicer_to_server(scripted.generic(RatelimitServiceServicer), server)
    add_CredentialsServiceServicer_to_server(scripted.generic(CredentialsServiceServicer), server)
    add_KeyringServiceServicer_to_server(scripted.generic(KeyringServiceServicer), server)
    scripted.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield scripted
    await server.stop(0)


async def bulkhead(
    port: int, *arguments: str, given: str | None = None, **environment: str
) -> Outcome:
    """Runs one command with the key and the address in the environment.

    Args:
        port: where the API is.
        arguments: what was typed after `bulkhead`.
        given: what it reads from its standard input; None: nothing is there.
        environment: more variables.
    """
    presented = {"BULKHEAD_KEY": KEY, "BULKHEAD_API": f"127.0.0.1:{port}"} | environment
    ended = await WarmCommands.found().run(arguments, {**os.environ, **presented}, given)
    return Outcome(ended.code, ended.out, ended.err)


def time(at: datetime = CREATED) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
