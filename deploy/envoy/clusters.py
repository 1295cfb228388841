"""Where the front door forwards to: each service by mutual TLS, known by its SPIFFE URI.

Where a service can have several replicas each is asked all the time whether it takes calls: one
that is about to end says no before it closes anything, and gets nothing new from then on.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from deploy.envoy.secrets import AUTHORITY, IDENTITY, watched
from deploy.envoy.settings import Address, EdgeSettings, Identity

APP_PROXY_HTTP = "app_proxy_http"
OTLP = "otlp"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MOST_CONNECTIONS = 4_096
_MOST_REQUESTS = 16_384
_MOST_RETRIES = 256
_BUFFER_BYTES = 1 << 20
# Shorter than app_proxy's own patience with an idle connection (30 s), so that no request meets a
# connection which the other side is just closing.
_IDLE_HTTP1 = "20s"
# app_proxy says there whether it takes requests; from outside no host of that name is served.
HEALTH_HOST, HEALTH_PATH = "app_proxy", "/health"
# The gRPC health service's name for "this process takes calls", whatever is away around it.
_TAKES_CALLS = "liveness"
# A replica that ends has to wait for longer than this before it closes (`drain_seconds`).
_HEALTH_SECONDS = 0.25
_HEALTH_PATIENCE_SECONDS = 2


def clusters(settings: EdgeSettings) -> list[dict[str, Any]]:
    """Returns a cluster per service, one for deployments' requests, and the trace receiver's."""
    identity, further = settings.identity, settings.further
    services = [
        _secured(service, [address, *further.get(service, ())], service, identity, _grpc())
        for service, address in sorted(settings.services.items())
    ]
    https = [settings.app_proxy_http, *further.get(APP_PROXY_HTTP, ())]
    http = _secured(APP_PROXY_HTTP, https, "app_proxy", identity, _http1())
    traces = [_cluster(OTLP, [settings.otlp], _grpc())] if settings.otlp else []
    return [*services, http, *traces]


def endpoint(address: Address) -> dict[str, Any]:
    """Returns Envoy's words for an address."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _secured(
    name: str,
    addresses: Sequence[Address],
    service: str,
    identity: Identity,
    options: dict[str, Any],
) -> dict[str, Any]:
    http2 = "http2_protocol_options" in options["explicit_http_config"]
    alpn = "h2" if http2 else "http/1.1"
    several = len(addresses) > 1 or not _is_ip(addresses[0].host)
    checks = {"health_checks": [_health(http2=http2)]} if several else {}
    return (
        _cluster(name, addresses, options)
        | checks
        | {
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": _TLS,
                    "sni": service,
                    "common_tls_context": _tls_context(identity, service, alpn),
                },
            }
        }
    )


def _tls_context(identity: Identity, service: str, alpn: str) -> dict[str, Any]:
    uri = f"spiffe://{identity.trust_domain}/bulkhead/{service}"
    return {
        "alpn_protocols": [alpn],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            # Clients stop at 1.2 unless told otherwise.
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificate_sds_secret_configs": [watched(identity, IDENTITY)],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": uri}}]
            },
            "validation_context_sds_secret_config": watched(identity, AUTHORITY),
        },
    }


def _health(*, http2: bool) -> dict[str, Any]:
    interval = f"{_HEALTH_SECONDS}s"
    http = {"host": HEALTH_HOST, "path": HEALTH_PATH}
    check = (
        {"grpc_health_check": {"service_name": _TAKES_CALLS}}
        if http2
        else {"http_health_check": http}
    )
    return {
        "timeout": f"{_HEALTH_PATIENCE_SECONDS}s",
        "interval": interval,
        "no_traffic_interval": interval,
        "unhealthy_threshold": 1,
        "healthy_threshold": 1,
        **check,
    }


def _cluster(name: str, addresses: Sequence[Address], options: dict[str, Any]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": endpoint(address)}} for address in addresses]
    return {
        "name": name,
        "type": "STATIC" if all(_is_ip(each.host) for each in addresses) else "STRICT_DNS",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": endpoints}],
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {"@type": f"type.googleapis.com/{_HTTP_OPTIONS}"} | options
        },
        "circuit_breakers": {"thresholds": [_thresholds()]},
        "outlier_detection": _outliers(),
    }


def _thresholds() -> dict[str, Any]:
    return {
        "priority": "DEFAULT",
        "max_connections": _MOST_CONNECTIONS,
        "max_pending_requests": _MOST_REQUESTS,
        "max_requests": _MOST_REQUESTS,
        "max_retries": _MOST_RETRIES,
    }


def _outliers() -> dict[str, Any]:
    """Leaves out, for a moment, a replica that cannot be reached; what it answers is its own."""
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 5,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "1s",
        "max_ejection_time": "5s",
        "max_ejection_percent": 50,
    }


def _grpc() -> dict[str, Any]:
    return {"explicit_http_config": {"http2_protocol_options": {}}}


def _http1() -> dict[str, Any]:
    return {
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": _IDLE_HTTP1},
    }


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
