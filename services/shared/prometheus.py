"""Figures for whoever scrapes: Prometheus' text at a port of its own, in plaintext."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import MetricReader
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from services.shared.errors import UnavailableError

_PATH: Final = "/metrics"
# Whoever is slower is cut off: one is served at a time.
_PATIENCE_SECONDS: Final = 5.0


@contextmanager
def serving_metrics(listen: str) -> Iterator[MetricReader]:
    """Yields a reader whose figures are served at `listen` (host:port) under `/metrics`.

    Raises:
        UnavailableError: the address is taken, or is none of this machine.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    reader = PrometheusMetricReader(scope_info_enabled=False, registry=registry)
    server = _server(listen, registry)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield reader
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _server(listen: str, registry: CollectorRegistry) -> HTTPServer:
    host, _, port = listen.rpartition(":")
    name = host.strip("[]")

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in name else socket.AF_INET

    try:
        return Server((name, int(port)), partial(_Handler, registry))
    except OSError as error:
        raise UnavailableError(f"metrics_listen: {listen}: {error.strerror}") from error


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_SECONDS
    server_version, sys_version = "bulkhead", ""

    def __init__(self, registry: CollectorRegistry, *arguments: Any) -> None:
        # Before the base, which answers while it is made.
        self._registry = registry
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers the one path that there is."""
        if self.path.partition("?")[0] != _PATH:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        text = generate_latest(self._registry)
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", CONTENT_TYPE_LATEST)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 named by http.server
        """Scrapes are no news."""
