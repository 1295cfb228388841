"""Starts a service in which OpenTelemetry's interface does nothing: `python -m bench.bare auth`.

Only for `bench/tracing.py`, to have something to hold the shipped service against. What services
ask of the interface goes through its modules' functions; those are replaced before any service is
imported, by ones that cost as little as a function can.
"""

import sys
from runpy import run_module
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context

_EMPTY = Context()


def _current_span(context: Context | None = None) -> trace.Span:  # noqa: ARG001 as its like
    return trace.INVALID_SPAN


def _current() -> Context:
    return _EMPTY


def _attach(context: Context) -> Any:  # noqa: ARG001 as its like
    return None


def _detach(token: Any) -> None:
    """Returns at once."""


def _replace() -> None:
    trace.get_current_span = _current_span
    otel_context.get_current = _current
    otel_context.attach = _attach
    otel_context.detach = _detach
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    metrics.set_meter_provider(metrics.NoOpMeterProvider())


if __name__ == "__main__":
    _replace()
    service = sys.argv.pop(1)
    run_module(f"services.{service}", run_name="__main__", alter_sys=True)
