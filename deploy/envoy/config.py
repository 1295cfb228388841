"""The front door's configuration: one source, for the embedded stack and for a cluster.

Envoy moves the bytes and decides nothing: who may pass is asked of app_proxy (ext_authz), and when
it cannot be asked, nobody passes.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.envoy.clusters import OTLP, clusters, endpoint
from deploy.envoy.contracts import OpenMethod, contracts, open_methods
from deploy.envoy.inward import inward_clusters, inward_listeners
from deploy.envoy.replies import AWAY, local_replies
from deploy.envoy.routes import BUFFER, CHECK, RATE, RETRY, route_configuration
from deploy.envoy.secrets import secret_files
from deploy.envoy.settings import Address, EdgeSettings

# What only the mesh may say; outsiders who say it are not heard.
RESERVED_PREFIXES = ("x-bulkhead-", "x-envoy-")
FORGEABLE_HEADERS = ("forwarded", "x-forwarded-host", "x-forwarded-port", "x-real-ip")
# Who sends these chooses what traces, logs and the audit log call his requests.
TRACE_HEADERS = ("traceparent", "tracestate")
NEVER_TRUSTED = ("baggage", "x-client-trace-id")
# What app_proxy needs for its decision, beside method, host and path.
CHECKED_HEADERS = ("authorization", "accept", "cookie", "origin", "x-request-id")
_TYPE = "type.googleapis.com/envoy.extensions"
_BUFFER_BYTES = 1 << 20
_MOST_HEADERS_KB = 32
_MOST_STREAMS = 1_000
# Spans are sent within half a second, and many together: five seconds, and five spans, would be the
# default.
_RUNTIME = {
    "tracing.opentelemetry.flush_interval_ms": 500,
    "tracing.opentelemetry.min_flush_spans": 100,
}
_LOG_FIELDS = {
    "time": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    # Without the query: it may hold what is nobody else's business.
    "path": "%PATH(NQ)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "received_bytes": "%BYTES_RECEIVED%",
    "sent_bytes": "%BYTES_SENT%",
    "upstream": "%UPSTREAM_CLUSTER%",
    # What is wrong with a certificate, on either side.
    "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "trace_id": "%TRACE_ID%",
}


def bootstrap(settings: EdgeSettings) -> dict[str, Any]:
    """Returns Envoy's whole configuration as its JSON is."""
    methods = sorted(open_methods(contracts()), key=lambda each: each.path)
    listeners = [_listener("edge", settings.listen, settings, methods, checked=True)]
    if settings.unchecked:
        listeners.append(
            _listener("unchecked", settings.unchecked, settings, methods, checked=False)
        )
    return {
        "node": {"id": "edge", "cluster": "bulkhead"},
        "admin": {
            "address": endpoint(settings.admin),
            "allow_paths": [
                *({"exact": path} for path in ("/ready", "/certs")),
                *({"prefix": path} for path in ("/stats", "/clusters")),
            ],
        },
        "static_resources": {
            "listeners": [*listeners, *inward_listeners(settings)],
            "clusters": [*clusters(settings), *inward_clusters(settings)],
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
    }


def write(settings: EdgeSettings, file: Path) -> Path:
    """Returns `file`, holding the configuration; it names files with secrets but holds none.

    Beside it are written the files by which its certificate is watched.
    """
    settings = replace(settings, identity=replace(settings.identity, folder=file.parent))
    for name, text in secret_files(settings.identity).items():
        (file.parent / name).write_text(text)
    file.write_text(rendered(settings))
    return file


def rendered(settings: EdgeSettings) -> str:
    """Returns the configuration as the text of a file."""
    return json.dumps(bootstrap(settings), indent=2) + "\n"


def _listener(
    name: str,
    address: Address,
    settings: EdgeSettings,
    methods: Iterable[OpenMethod],
    *,
    checked: bool,
) -> dict[str, Any]:
    connection_filter = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": _connections(name, settings, methods, checked=checked),
    }
    return {
        "name": name,
        "address": endpoint(address),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [{"filters": [connection_filter]}],
    }


def _connections(
    name: str, settings: EdgeSettings, methods: Iterable[OpenMethod], *, checked: bool
) -> dict[str, Any]:
    manager = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"
    tracing = {"tracing": _tracing(settings.sampling)} if settings.otlp else {}
    return {
        "@type": manager,
        "stat_prefix": name,
        "codec_type": "AUTO",
        **_hygiene(settings),
        "route_config": route_configuration(settings, methods),
        "http_filters": _filters(settings, checked=checked),
        "local_reply_config": local_replies(),
        "access_log": [_access_log(settings)],
        **tracing,
    }


def _hygiene(settings: EdgeSettings) -> dict[str, Any]:
    """What is done to every request before anything reads it."""
    life = settings.connection_life
    return {
        "early_header_mutation_extensions": [_strip_reserved(settings)],
        "use_remote_address": True,
        "xff_num_trusted_hops": settings.gateways,
        # Nobody is trusted for the network that he comes from, not even the loopback one; an empty
        # list would mean the private networks, so it names an address that nobody has (RFC 5737).
        "internal_address_config": {
            "unix_sockets": False,
            "cidr_ranges": [{"address_prefix": "192.0.2.1", "prefix_len": 32}],
        },
        "server_name": "bulkhead",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": _MOST_HEADERS_KB,
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "headers_with_underscores_action": "DROP_HEADER",
            **({"max_connection_duration": f"{life.total_seconds():g}s"} if life else {}),
        },
        # An answer says that the connection ends; without this one would be cut under a request.
        **({"http1_safe_max_connection_duration": True} if life else {}),
        "http2_protocol_options": {"max_concurrent_streams": _MOST_STREAMS},
    }


def _strip_reserved(settings: EdgeSettings) -> dict[str, Any]:
    prefixes = [
        {"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in RESERVED_PREFIXES
    ]
    traces = () if settings.trusts_traces else TRACE_HEADERS
    names = [{"remove": name} for name in (*FORGEABLE_HEADERS, *NEVER_TRUSTED, *traces)]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{_TYPE}.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [*prefixes, *names],
        },
    }


def _filters(settings: EdgeSettings, *, checked: bool) -> list[dict[str, Any]]:
    check = [{"name": CHECK, "typed_config": _check(settings)}] if checked else []
    buffer = {
        "@type": f"{_TYPE}.filters.http.buffer.v3.Buffer",
        "max_request_bytes": settings.max_request_bytes,
    }
    router = {
        "@type": f"{_TYPE}.filters.http.router.v3.Router",
        "suppress_envoy_headers": True,
    }
    # Without a bucket of its own it limits only the routes that have one.
    rate = {
        "@type": f"{_TYPE}.filters.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "none",
    }
    return [
        {"name": RATE, "typed_config": rate},
        *check,
        # After the check: a stranger's body is not worth the memory.
        {"name": BUFFER, "typed_config": buffer},
        {"name": "envoy.filters.http.router", "typed_config": router},
    ]


def _check(settings: EdgeSettings) -> dict[str, Any]:
    patience = f"{settings.check_timeout.total_seconds()}s"
    # Here, other than in routes, the longest pause is also the longest that one try may take.
    pauses = RETRY["retry_back_off"] | {"max_interval": patience}
    return {
        "@type": f"{_TYPE}.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": "app_proxy"},
            "timeout": patience,
            "retry_policy": RETRY | {"retry_back_off": pauses},
        },
        "failure_mode_allow": False,
        "status_on_error": {"code": AWAY.status},
        "validate_mutations": True,
        "allowed_headers": {"patterns": [{"exact": name} for name in CHECKED_HEADERS]},
    }


def _tracing(sampling: float) -> dict[str, Any]:
    """Traces that begin here are kept at a ratio; nobody outside can ask for more."""
    return {
        "client_sampling": {"value": 0},
        "random_sampling": {"value": 100 * sampling},
        # In place of Envoy's own, which has the query in it.
        "custom_tags": [
            {"tag": "http.url", "value": "%REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH(NQ)%"}
        ],
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "service_name": "edge",
                "grpc_service": {"envoy_grpc": {"cluster_name": OTLP}, "timeout": "1s"},
            },
        },
    }


def _access_log(settings: EdgeSettings) -> dict[str, Any]:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": f"{_TYPE}.access_loggers.file.v3.FileAccessLog",
            "path": str(settings.access_log),
            "log_format": {"json_format": _LOG_FIELDS},
        },
    }
