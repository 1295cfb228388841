"""What is told about the keys that a process remembers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from opentelemetry import metrics

from services.shared.recording import Labels, observing

_HIT: Final[Labels] = {"result": "hit"}
_MISS: Final[Labels] = {"result": "miss"}


@dataclass(frozen=True, slots=True)
class CacheFigures:
    """Figures of one cache of keys."""

    # Questions answered from memory, and those that were not, since the process began.
    hits: int
    misses: int
    # Keys that are remembered.
    entries: int
    # Keys forgotten before their time, since they were revoked or could have been.
    invalidated: int
    # Since the stream of revocations was last heard.
    silence_seconds: float
    # Whether what is remembered may be used: auth leases this process trust in it.
    is_leased: bool


def observe_keys(meter: metrics.Meter, read: Callable[[], CacheFigures]) -> None:
    """Makes known what `read` returns."""
    meter.create_observable_counter(
        "bulkhead.key_cache.lookups",
        observing(lambda: [(read().hits, _HIT), (read().misses, _MISS)]),
        "{lookup}",
        "Keys looked for in memory, by result.",
    )
    meter.create_observable_up_down_counter(
        "bulkhead.key_cache.entries",
        observing(lambda: [(read().entries, {})]),
        "{key}",
        "Keys that are remembered, those of nobody too.",
    )
    meter.create_observable_counter(
        "bulkhead.key_cache.invalidated",
        observing(lambda: [(read().invalidated, {})]),
        "{key}",
        "Keys forgotten before their time.",
    )
    meter.create_observable_gauge(
        "bulkhead.key_cache.stream_silence",
        observing(lambda: [(read().silence_seconds, {})]),
        "s",
        "Since the stream of revocations was last heard.",
    )
    meter.create_observable_gauge(
        "bulkhead.key_cache.leased",
        observing(lambda: [(int(read().is_leased), {})]),
        "1",
        "1 while what is remembered may be used, else 0.",
    )
