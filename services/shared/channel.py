"""Channels to other services: mTLS, balanced, retried, with a deadline and the caller's key."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from services.shared.interceptors.client import client_interceptors
from services.shared.recording import Recording
from services.shared.settings import ServiceSettings
from services.shared.tls import channel_credentials, identity_of

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
    settings: ServiceSettings, service: str, target: str, *, once: Sequence[str] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to `service` at `target`; it connects when it is first used.

    The other end must present the certificate of `service`. UNAVAILABLE is retried, so every
    method reached over it has to be safe to repeat, but those that `once` names
    (`package.Service/Method`): they are called once.
    """
    options = [
        # Names the expected service whatever address it is reached by.
        ("grpc.ssl_target_name_override", service),
        ("grpc.service_config", _service_config(once)),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(
        target,
        channel_credentials(identity_of(settings)),
        options=options,
        interceptors=client_interceptors(service, Recording.of(settings)),
    ) as channel:
        yield channel


def _service_config(once: Sequence[str]) -> str:
    names = [method.partition("/") for method in once]
    own = [{"service": service, "method": method} for service, _, method in names]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            # The entry that names a method goes before the one that names all.
            "methodConfig": [*([{"name": own}] if own else []), _RETRIED],
        }
    )
