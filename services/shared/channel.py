"""Channels to other services: mTLS, balanced, retried, with a deadline and the caller's key."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from services.shared.background import background
from services.shared.handshakes import Refusals
from services.shared.health import LIVENESS
from services.shared.identity import WatchedIdentity, open_identity
from services.shared.interceptors.client import client_interceptors
from services.shared.recording import Recording
from services.shared.renewed_channel import RenewedChannel
from services.shared.settings import ServiceSettings
from services.shared.tls import Identity, channel_credentials, peer_options

_RETRIED = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}


@asynccontextmanager
async def open_channel(
    settings: ServiceSettings,
    service: str,
    target: str,
    *,
    identity: WatchedIdentity | None = None,
    once: Sequence[str] = (),
) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to `service` at `target`; it connects when it is first used.

    The other end must present the certificate of `service`. It is shown `identity`, renewed
    whenever that is; None: one that is watched for this channel alone. UNAVAILABLE is retried, so
    every method reached over it has to be safe to repeat, but those that `once` names
    (`package.Service/Method`): they are called once.

    Raises:
        UnusableFileError: a certificate, key or authority cannot be used.
    """
    async with _watched(settings, identity) as presented:
        options = _options(service, once)
        # One for all that follow each other: what they count goes on.
        interceptors = client_interceptors(service, Recording.of(settings))

        def connect(shown: Identity) -> grpc.aio.Channel:
            return grpc.aio.secure_channel(
                target,
                channel_credentials(shown),
                options=options,
                interceptors=interceptors,
            )

        async with RenewedChannel(presented, connect, service) as channel:
            refusals = Refusals(presented, service, target)
            async with background(channel.follow(), refusals.watch(channel)):
                yield channel


@asynccontextmanager
async def _watched(
    settings: ServiceSettings, identity: WatchedIdentity | None
) -> AsyncIterator[WatchedIdentity]:
    if identity is not None:
        yield identity
        return
    async with open_identity(settings) as own:
        yield own


def _options(service: str, once: Sequence[str]) -> list[tuple[str, Any]]:
    return [
        *peer_options(service),
        ("grpc.service_config", _service_config(once)),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


def _service_config(once: Sequence[str]) -> str:
    names = [method.partition("/") for method in once]
    own = [{"service": service, "method": method} for service, _, method in names]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            # Who is about to end says so before it closes anything, and gets no call from then on.
            "healthCheckConfig": {"serviceName": LIVENESS},
            # The entry that names a method goes before the one that names all.
            "methodConfig": [*([{"name": own}] if own else []), _RETRIED],
        }
    )
