"""Which request goes where: the API by exact method, deployments by host, nothing else."""

from collections.abc import Iterable
from typing import Any

from deploy.envoy.clusters import APP_PROXY_HTTP
from deploy.envoy.contracts import OpenMethod
from deploy.envoy.replies import UNKNOWN
from deploy.envoy.settings import EdgeSettings

BUFFER = "envoy.filters.http.buffer"
RATE = "envoy.filters.http.local_ratelimit"
CHECK = "envoy.filters.http.ext_authz"
_PER_ROUTE = {
    BUFFER: "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    CHECK: "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
}
_RATE = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
# Where providers lead people back to, on the API's hosts alone.
CALLBACK_PATH = "/oauth/callback"
_CALLBACK_BYTES = 16 * 1024
_CALLBACK_SECONDS = 60
# For each address, and for all together.
_CALLBACKS_EACH, _CALLBACKS_EACH_SECONDS = 30, 30
_CALLBACKS_A_SECOND = 200
_LIMIT_HEADERS = ("ratelimit", "ratelimit-policy")
_UNARY_SECONDS = 60
_STREAM_SECONDS = 3_600
_IDLE_SECONDS = 900
_OTHERS = "envoy.retry_host_predicates.previous_hosts"
# A request that never left is safe to send again, whatever it does: to another replica, if there is
# one. The pauses outlast the restart of a killed service.
RETRY: dict[str, Any] = {
    "retry_on": "connect-failure,refused-stream,reset-before-request",
    "num_retries": 4,
    "retry_back_off": {"base_interval": "0.05s", "max_interval": "0.5s"},
    "retry_host_predicate": [
        {
            "name": _OTHERS,
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                ".PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": 3,
}


def route_configuration(settings: EdgeSettings, methods: Iterable[OpenMethod]) -> dict[str, Any]:
    """Returns the routes of the front door; `host:port` counts as `host`."""
    return {
        "name": "edge",
        "ignore_port_in_host_matching": True,
        "virtual_hosts": [
            _api(settings.api_hosts, methods),
            _deployments(settings.domain),
            _elsewhere(),
        ],
    }


def _api(hosts: Iterable[str], methods: Iterable[OpenMethod]) -> dict[str, Any]:
    """The API: services ask for the key themselves."""
    return {
        "name": "api",
        "domains": list(hosts),
        "routes": [*(_method(each) for each in methods), _callback(), _nothing()],
        "typed_per_filter_config": _without(CHECK, BUFFER),
    }


def _method(method: OpenMethod) -> dict[str, Any]:
    most = f"{_STREAM_SECONDS if method.streaming else _UNARY_SECONDS}s"
    return {
        "match": {"path": method.path, "grpc": {}},
        "route": {
            "cluster": method.service,
            # The deadline of the call, as far as we go along with it, stands in for a timeout.
            "timeout": "0s",
            "idle_timeout": most,
            "max_stream_duration": {"max_stream_duration": most, "grpc_timeout_header_max": most},
            "retry_policy": RETRY,
        },
        "decorator": {"operation": method.path[1:], "propagate": False},
    }


def _callback() -> dict[str, Any]:
    """The page at which an authorization ends: no key is asked for, its state stands for one.

    State and code come in the query and in the form, so no span is made of it.
    """
    none = {"numerator": 0}
    return {
        "match": {"path": CALLBACK_PATH},
        "route": {
            "cluster": APP_PROXY_HTTP,
            "timeout": f"{_CALLBACK_SECONDS}s",
            "retry_policy": RETRY,
            "rate_limits": [{"actions": [{"remote_address": {}}]}],
        },
        "tracing": {
            "client_sampling": none,
            "random_sampling": none,
            "overall_sampling": none,
        },
        "typed_per_filter_config": {
            CHECK: {"@type": _PER_ROUTE[CHECK], "disabled": True},
            BUFFER: {
                "@type": _PER_ROUTE[BUFFER],
                "buffer": {"max_request_bytes": _CALLBACK_BYTES},
            },
            RATE: _rate(),
        },
        "decorator": {"operation": "oauth callback", "propagate": False},
    }


def _rate() -> dict[str, Any]:
    """A bound for each address; each Envoy counts by itself."""
    always = {"default_value": {"numerator": 100}}
    each = {
        "entries": [{"key": "remote_address"}],
        "token_bucket": _bucket(_CALLBACKS_EACH, _CALLBACKS_EACH, _CALLBACKS_EACH_SECONDS),
    }
    return {
        "@type": _RATE,
        "stat_prefix": "oauth_callback",
        "filter_enabled": always,
        "filter_enforced": always,
        "descriptors": [each],
        "token_bucket": _bucket(_CALLBACKS_A_SECOND, _CALLBACKS_A_SECOND, 1),
    }


def _bucket(most: int, fill: int, seconds: int) -> dict[str, Any]:
    return {"max_tokens": most, "tokens_per_fill": fill, "fill_interval": f"{seconds}s"}


def _deployments(domain: str) -> dict[str, Any]:
    """Each deployment's own host: checked by app_proxy, then served by it."""
    return {
        "name": "deployments",
        "domains": [f"*.{domain}"],
        # The door's alone: a deployment's own would name limits that nobody keeps.
        "response_headers_to_remove": list(_LIMIT_HEADERS),
        "routes": [
            {
                "match": {"prefix": "/"},
                "route": {
                    "cluster": APP_PROXY_HTTP,
                    # A stream of events may last; one that is silent for long is given up.
                    "timeout": "0s",
                    "idle_timeout": f"{_IDLE_SECONDS}s",
                    "retry_policy": RETRY,
                },
                "decorator": {"operation": "deployment", "propagate": False},
            }
        ],
    }


def _elsewhere() -> dict[str, Any]:
    return {
        "name": "elsewhere",
        "domains": ["*"],
        "routes": [_nothing()],
        "typed_per_filter_config": _without(CHECK, BUFFER),
    }


def _nothing() -> dict[str, Any]:
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": UNKNOWN.status},
        "decorator": {"operation": "nothing", "propagate": False},
    }


def _without(*filters: str) -> dict[str, Any]:
    return {name: {"@type": _PER_ROUTE[name], "disabled": True} for name in filters}
