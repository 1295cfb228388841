"""What the front door shows to the cluster that it runs in: whether it serves, and its metrics.

Its administration listens on the loopback interface alone; these listeners pass on one path each.
"""

from typing import Any

from deploy.envoy.clusters import endpoint
from deploy.envoy.settings import Address, EdgeSettings

ADMIN = "admin"
READY_PATH = "/ready"
# Answered by a worker itself: it turns its loop, whatever is away around it.
LIVE_PATH = "/live"
METRICS_PATH = "/metrics"
_STATS_PATH = "/stats/prometheus"
_TYPE = "type.googleapis.com/envoy.extensions.filters"


def inward_listeners(settings: EdgeSettings) -> list[dict[str, Any]]:
    """Returns a listener for probes and one for metrics, where the settings have them."""
    listeners = []
    if settings.health:
        answered = {"match": {"path": LIVE_PATH}, "direct_response": {"status": 200}}
        routes = [_passed_on(READY_PATH), answered]
        listeners.append(_listener("health", settings.health, routes))
    if settings.metrics:
        routes = [_passed_on(METRICS_PATH, _STATS_PATH), _passed_on(_STATS_PATH)]
        listeners.append(_listener("metrics", settings.metrics, routes))
    return listeners


def inward_clusters(settings: EdgeSettings) -> list[dict[str, Any]]:
    """Returns the administration as a cluster, where one of these listeners passes on to it."""
    if not (settings.health or settings.metrics):
        return []
    address = {"endpoint": {"address": endpoint(settings.admin)}}
    return [
        {
            "name": ADMIN,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": ADMIN,
                "endpoints": [{"lb_endpoints": [address]}],
            },
        }
    ]


def _passed_on(path: str, rewritten: str | None = None) -> dict[str, Any]:
    rewrite = {"prefix_rewrite": rewritten} if rewritten else {}
    return {"match": {"path": path}, "route": {"cluster": ADMIN, "timeout": "5s", **rewrite}}


def _listener(name: str, address: Address, routes: list[dict[str, Any]]) -> dict[str, Any]:
    manager = {
        "@type": f"{_TYPE}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.http.router.v3.Router"},
            }
        ],
    }
    connections = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    return {
        "name": name,
        "address": endpoint(address),
        "filter_chains": [{"filters": [connections]}],
        # Looking must go on while what is looked at is overloaded.
        "bypass_overload_manager": True,
    }
