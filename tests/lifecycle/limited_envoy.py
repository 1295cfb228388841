"""A small real Envoy that asks ratelimit before it forwards, and what it forwards to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from deploy.envoy.clusters import clusters, endpoint
from deploy.envoy.secrets import secret_files
from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local.envoy import envoy_binary, ready
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import until

START_SECONDS = 30.0
_TYPE = "type.googleapis.com/envoy.extensions.filters"
_FILTER = "envoy.filters.http.ratelimit"
BODY = b"thirty bytes of an answer, all"

# One descriptor each; those whose header is missing are left out.
DESCRIPTORS = [
    {"actions": [{"request_headers": {"header_name": name, "descriptor_key": name}}]}
    for name in ("user", "trial", "service")
]
# Asked before the request and told after it, as for what is known only then.
TOKENS = [
    {
        "actions": [{"request_headers": {"header_name": "tokens", "descriptor_key": "tokens"}}],
        **told,
    }
    for told in (
        {"hits_addend": {"number": 0}},
        {"hits_addend": {"format": "%BYTES_SENT%"}, "apply_on_stream_done": True},
    )
]


@dataclass(frozen=True)
class Limited:
    """Where the Envoy listens."""

    url: str

    async def get(self, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
            return await client.get("/", headers=headers)


@asynccontextmanager
async def limited_envoy(
    home: Path, files: Paths, ratelimit_port: int, domain: str
) -> AsyncIterator[Limited]:
    """Runs the Envoy with the front door's certificate."""
    listen, admin = (Address(LOOPBACK, port) for port in free_ports(2))
    config = home / "limited.json"
    async with _upstream() as upstream:
        identity = Identity(files.certificate, files.key, files.authority, folder=home)
        for name, secret in secret_files(identity).items():
            (home / name).write_text(secret)
        text = _bootstrap(identity, listen, admin, ratelimit_port, upstream, domain)
        config.write_text(json.dumps(text))
        command = (str(envoy_binary()), "-c", str(config), "--concurrency", "1")
        with (home / "limited.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, "--disable-hot-restart", "--log-level", "warning", stdout=log, stderr=log
            )
        try:
            await until(partial(ready, admin), START_SECONDS)
            yield Limited(f"http://{listen}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


@asynccontextmanager
async def _upstream() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % len(BODY) + BODY)
            await writer.drain()

    server = await asyncio.start_server(serve, LOOPBACK, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _bootstrap(
    identity: Identity,
    listen: Address,
    admin: Address,
    ratelimit_port: int,
    upstream: int,
    domain: str,
) -> dict[str, Any]:
    ratelimit = Address(LOOPBACK, ratelimit_port)
    settings = EdgeSettings(
        listen=listen,
        admin=admin,
        identity=identity,
        services={"ratelimit": ratelimit},
        app_proxy_http=ratelimit,
    )
    (service,) = (each for each in clusters(settings) if each["name"] == "ratelimit")
    target = {"endpoint": {"address": endpoint(Address(LOOPBACK, upstream))}}
    assignment = {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [target]}]}
    return {
        "node": {"id": "limited", "cluster": "bulkhead"},
        "admin": {"address": endpoint(admin)},
        "static_resources": {
            "listeners": [_listener(listen, domain, [*DESCRIPTORS, *TOKENS])],
            "clusters": [service, {"name": "upstream", "load_assignment": assignment}],
        },
    }


def _listener(listen: Address, domain: str, limits: Sequence[Any]) -> dict[str, Any]:
    # Here and not at the route, where Envoy has no ear for the number of hits.
    own = {"@type": f"{_TYPE}.http.ratelimit.v3.RateLimitPerRoute", "rate_limits": limits}
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": "upstream"},
        "typed_per_filter_config": {_FILTER: own},
    }
    host = {"name": "all", "domains": ["*"], "routes": [route]}
    manager = f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager"
    connections = {
        "@type": manager,
        "stat_prefix": "limited",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [
            {"name": _FILTER, "typed_config": _limit(domain)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.http.router.v3.Router"},
            },
        ],
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}
    return {"address": endpoint(listen), "filter_chains": [{"filters": [chain]}]}


def _limit(domain: str) -> dict[str, Any]:
    return {
        "@type": f"{_TYPE}.http.ratelimit.v3.RateLimit",
        "domain": domain,
        "timeout": "2s",
        # Nobody passes when it cannot be asked.
        "failure_mode_deny": True,
        "status_on_error": {"code": 503},
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limit_service": {
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": "ratelimit"}},
        },
    }
