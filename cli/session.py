"""One command's conversation with the API: a channel, a key, and an exit code."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import typer
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    CredentialsServiceStub,
    KeyringServiceStub,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    KeyringServiceStub as ProvisionerKeyringStub,
)
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from grpc.aio import ClientCallDetails, Metadata

from cli.refusal import Refusal, refusal_of
from cli.rendering import as_json
from cli.secret_input import file_text

REFUSED = 1
_PLAINTEXT, _TLS = "http://", "https://"
_HOST_AND_PORT = re.compile(r"[^\s/]+:\d{1,5}")
_AS_OTHERS: Mapping[str, str] = MappingProxyType({})
# What the commands call is safe to repeat: creates carry a request_id.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


@dataclass(frozen=True, slots=True)
class Connection:
    """What the options say about where, as whom and how to print."""

    api: str
    key_file: Path | None
    timeout: float
    json: bool


@dataclass(frozen=True, slots=True)
class Session:
    """The services behind the API, and where answers go."""

    auth: AuthServiceStub
    provisioner: ProvisionerServiceStub
    ratelimit: RatelimitServiceStub
    credentials: CredentialsServiceStub
    # Of credentials.
    keyring: KeyringServiceStub
    provisioner_keyring: ProvisionerKeyringStub
    json: bool

    def show(self, shown: Mapping[str, Any], text: str) -> None:
        """Prints the document with `--json`, the text otherwise."""
        print(as_json(shown) if self.json else text)

    def tell(self, text: str) -> None:
        """Says something to the person at the terminal; scripts read the other stream."""
        print(text, file=sys.stderr)


def run(
    connection: Connection,
    command: Callable[[Session], Awaitable[None]],
    options: Mapping[str, str] = _AS_OTHERS,
    *,
    keyless: bool = False,
) -> None:
    """Runs the command.

    Args:
        connection: where, as whom and how to print.
        command: what to do.
        options: what the command calls fields of the contract, where it differs from others.
        keyless: it presents no key, whether there is one or not.

    Raises:
        typer.BadParameter: no address, or no key (exit code 2).
        typer.Exit: 1 when the API refused, after its reason was printed.
    """
    target = _target(connection.api)
    key = None if keyless else _key(connection.key_file)
    try:
        asyncio.run(_run(connection, target, key, command))
    except Refusal as refusal:
        if connection.json:
            print(as_json(refusal.document))
        print(refusal.line(options), file=sys.stderr)
        raise typer.Exit(REFUSED) from None


async def _run(
    connection: Connection,
    target: str,
    key: str | None,
    command: Callable[[Session], Awaitable[None]],
) -> None:
    try:
        async with _opened(connection, target, key) as session:
            await command(session)
    except grpc.aio.AioRpcError as error:
        raise refusal_of(error, target) from error


@asynccontextmanager
async def _opened(connection: Connection, target: str, key: str | None) -> AsyncIterator[Session]:
    interceptors = [_UnaryCalls(key, connection.timeout), _StreamCalls(key)]
    options = [("grpc.service_config", _SERVICE_CONFIG)]
    if connection.api.startswith(_TLS):
        credentials = grpc.ssl_channel_credentials()
        channel = grpc.aio.secure_channel(
            target, credentials, options=options, interceptors=interceptors
        )
    else:
        channel = grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
    async with channel:
        yield Session(
            AuthServiceStub(channel),
            ProvisionerServiceStub(channel),
            RatelimitServiceStub(channel),
            CredentialsServiceStub(channel),
            KeyringServiceStub(channel),
            ProvisionerKeyringStub(channel),
            connection.json,
        )


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Every call carries the key, if there is one, and a deadline."""

    def __init__(self, key: str | None, timeout: float) -> None:
        self._key = key
        self._timeout = timeout

    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        timeout = client_call_details.timeout or self._timeout
        return await continuation(_with_key(client_call_details, self._key, timeout), request)


class _StreamCalls(grpc.aio.UnaryStreamClientInterceptor):
    """Every stream carries the key; its reader sets how long it may last."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    async def intercept_unary_stream(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        details = _with_key(client_call_details, self._key, client_call_details.timeout)
        return await continuation(details, request)


def _with_key(
    details: ClientCallDetails, key: str | None, timeout: float | None
) -> ClientCallDetails:
    metadata = Metadata(*(details.metadata or ()))
    if key is not None:
        metadata.add("authorization", f"Bearer {key}")
    return ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )


def _target(api: str) -> str:
    target = api.removeprefix(_PLAINTEXT).removeprefix(_TLS).rstrip("/")
    if not target:
        raise typer.BadParameter(
            "say where the API is: set BULKHEAD_API or --api to what `bulkhead up` printed"
        )
    if not api.startswith(_TLS) and _HOST_AND_PORT.fullmatch(target) is None:
        raise typer.BadParameter(
            "BULKHEAD_API or --api is not HOST:PORT, as `bulkhead up` prints it"
        )
    return target


def _key(file: Path | None) -> str:
    key = (
        file_text(file, "the key file") if file is not None else os.environ.get("BULKHEAD_KEY", "")
    )
    key = key.strip()
    if not key and file is not None:
        raise typer.BadParameter(f"the key file {file} is empty")
    if not key:
        raise typer.BadParameter("present a key: set BULKHEAD_KEY or --key-file")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise typer.BadParameter("that is not a key: it has spaces or unprintable characters")
    return key
