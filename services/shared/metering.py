"""The SDK's histograms, asked once for each set of labels where its values go.

The SDK copies, checks, sorts and hashes the labels of each value that it is given, which takes five
times as long as counting it. Here that is done for the first value of each set of labels; those
that follow go where the first one went. They go there together, when somebody looks or when many
have come: in the middle of a call counting is slow, since its code and its figures are then in no
cache of the processor's. What readers see is the SDK's own.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from services.shared.recording import Durations, Labels

# Durations of one set of labels that wait to be counted: counting them takes a quarter of a
# millisecond.
_MOST_WAITING: Final = 256
# What the SDK counts the values of one set of labels in, one for each reader.
_Places = dict[frozenset[tuple[str, str]], list[Any]]


class Meters(MeterProvider):
    """What makes instruments, and finds the places of their values."""

    def __init__(self, readers: Sequence[MetricReader], resource: Resource | None = None) -> None:
        self._remembering = _Remembering()
        super().__init__(
            readers,
            resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
            views=[View(instrument_type=Histogram, aggregation=self._remembering)],
        )
        self._quick: list[_Quick] = []
        # The SDK asks what is observed before it looks at what was recorded.
        meter = self.get_meter(__name__)
        meter.create_observable_gauge("bulkhead.telemetry.waiting", [self._counted])

    def quick(self, histogram: metrics.Histogram) -> Durations:
        """Returns what records into a histogram of this provider at little cost."""
        quick = _Quick(histogram, self._remembering.places[histogram])
        self._quick.append(quick)
        return quick

    def _counted(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Observes nothing; when it returns, nothing waits to be counted."""
        for quick in self._quick:
            quick.count()
        return ()


class _Remembering(ExplicitBucketHistogramAggregation):
    """Remembers what it makes to count values in, by histogram and labels."""

    def __init__(self) -> None:
        super().__init__()
        self.places: defaultdict[Any, _Places] = defaultdict(dict)

    def _create_aggregation(
        self, instrument: Any, attributes: Any, reservoir_factory: Any, start_time_unix_nano: int
    ) -> Any:
        made = super()._create_aggregation(
            instrument, attributes, reservoir_factory, start_time_unix_nano
        )
        # Without labels it is made to be looked at, not to count in.
        if attributes:
            labels = frozenset(attributes.items())
            self.places[instrument].setdefault(labels, []).append(made)
        return made


@dataclass(slots=True)
class _Measured:
    """What is read of a measurement where it is counted."""

    value: float


class _Quick:
    """Records into one histogram."""

    def __init__(self, histogram: metrics.Histogram, places: _Places) -> None:
        self._histogram = histogram
        self._places = places
        self._durations: dict[frozenset[tuple[str, str]], _Duration] = {}

    def of(self, labels: Labels) -> "_Duration":
        """Returns what counts durations with these labels."""
        key = frozenset(labels.items())
        return self._durations.setdefault(key, _Duration(self._histogram, labels, self._places))

    def count(self) -> None:
        """Counts what waits."""
        for duration in list(self._durations.values()):
            duration.count()


class _Duration:
    """Records durations with one set of labels."""

    def __init__(self, histogram: metrics.Histogram, labels: Labels, places: _Places) -> None:
        self._histogram = histogram
        self._labels = labels
        self._key = frozenset(labels.items())
        self._places = places
        self._waiting: deque[float] = deque()
        # The first value makes the places, one after the other.
        self._counting = Lock()

    def record(self, seconds: float) -> None:
        """Lets a duration wait to be counted."""
        waiting = self._waiting
        waiting.append(seconds)
        if len(waiting) >= _MOST_WAITING:
            self.count()

    def count(self) -> None:
        """Counts what waits: in the thread of who looks, while others are recorded."""
        with self._counting:
            for _ in range(len(self._waiting)):
                self._count(self._waiting.popleft())

    def _count(self, seconds: float) -> None:
        places = self._places.get(self._key)
        if places is None:
            self._histogram.record(seconds, self._labels)
            return
        measured = _Measured(seconds)
        for place in places:
            place.aggregate(measured, should_sample_exemplar=False)
