"""OpenTelemetry: OTLP where a receiver is named, Prometheus where an address is; else free."""

from collections.abc import Iterator
from contextlib import contextmanager

from services.shared.settings import TelemetrySettings


@contextmanager
def exported(service: str, settings: TelemetrySettings) -> Iterator[None]:
    """Exports this process's spans and metrics for the length of the block.

    With neither a receiver nor an address nothing is recorded, and nothing of the SDK is loaded.

    Raises:
        UnavailableError: the metrics cannot be served at their address.
    """
    if not settings.is_measured:
        yield
        return
    from services.shared.exporting import exporting  # noqa: PLC0415 off is free of it

    with exporting(service, settings):
        yield
