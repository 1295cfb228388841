"""Why services refuse each other's certificates: gRPC says so to the callers alone, if at all."""

import asyncio
import re
from typing import Any

import grpc
import structlog
from grpc import ChannelConnectivity, StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from services.shared.identity import WatchedIdentity
from services.shared.tls import channel_credentials, peer_options

_LOOK_SECONDS = 1.0
# Asking takes a handshake of both sides.
_AGAIN_SECONDS = 5.0
_HANDSHAKE_SECONDS = 3.0
# How BoringSSL words it: "… CERTIFICATE_VERIFY_FAILED: certificate has expired: OK".
_VERIFY_FAILED = re.compile(r"CERTIFICATE_VERIFY_FAILED:? ?([^:]*)")
_NAME_WRONG = "Hostname Verification Check failed"
# In TLS 1.3 a client is done before the server has looked at its certificate.
_CLOSED = "Socket closed"
_THEIRS_NAMES_ANOTHER = "the other side's certificate is of another service"
_OURS_REFUSED = "the other side ends the handshake: it may refuse this service's own certificate"


class Refusals:
    """Looks whether a channel is connected, and when it is not, whether certificates are why.

    What is wrong is found out by a handshake of its own, and logged once until that changes.
    """

    def __init__(self, identity: WatchedIdentity, service: str, target: str) -> None:
        self._identity = identity
        self._service = service
        self._target = target
        self._told: str | None = None

    async def watch(self, channel: grpc.aio.Channel) -> None:
        """Looks for ever."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            state = channel.get_state()
            if state is ChannelConnectivity.TRANSIENT_FAILURE:
                self._tell(handshake_problem(await self._details()))
                await asyncio.sleep(_AGAIN_SECONDS)
            elif state is ChannelConnectivity.READY:
                self._told = None

    def _tell(self, problem: str | None) -> None:
        if problem is None or problem == self._told:
            return
        self._told = problem
        structlog.get_logger().warning(
            "certificate refused",
            service=self._service,
            problem=problem,
            own_certificate_ends=self._identity.life.ends.isoformat(),
        )

    async def _details(self) -> str:
        options = [*peer_options(self._service), ("grpc.enable_retries", 0)]
        credentials = channel_credentials(self._identity.current)
        async with grpc.aio.secure_channel(self._target, credentials, options=options) as bare:
            health: Any = HealthStub(bare)
            try:
                await health.Check(HealthCheckRequest(), timeout=_HANDSHAKE_SECONDS)
            except grpc.aio.AioRpcError as error:
                return (error.details() or "") if error.code() is StatusCode.UNAVAILABLE else ""
        return ""


def handshake_problem(details: str) -> str | None:
    """Returns why certificates made a connection fail, from what gRPC says; None: they did not."""
    if failed := _VERIFY_FAILED.search(details):
        return f"the other side's certificate: {failed[1].strip() or 'not verified'}"
    if _NAME_WRONG in details:
        return _THEIRS_NAMES_ANOTHER
    return _OURS_REFUSED if _CLOSED in details else None
