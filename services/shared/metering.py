"""The SDK's histograms, asked once for each set of labels where its values go.

The SDK copies, checks, sorts and hashes the labels of each value that it is given, which takes five
times as long as counting it. Here that is done for the first value of each set of labels; those
that follow go where the first one went. What readers see is the SDK's own.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from services.shared.recording import Durations, Labels

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

    def quick(self, histogram: metrics.Histogram) -> Durations:
        """Returns what records into a histogram of this provider at little cost."""
        return _Quick(histogram, self._remembering.places[histogram])


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

    def record(self, amount: float, attributes: Labels) -> None:
        """Counts a duration."""
        places = self._places.get(frozenset(attributes.items()))
        if places is None:
            self._histogram.record(amount, attributes)
            return
        measured = _Measured(amount)
        for place in places:
            place.aggregate(measured, should_sample_exemplar=False)
