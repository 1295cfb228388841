"""That what is recorded the quick way is what the SDK's own way says, to every reader."""

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import metrics
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.shared.metering import Meters
from services.shared.recording import Durations, Recording

BUCKETS = (0.1, 1.0)
OK = {"rpc.method": "Ask", "rpc.response.status_code": "OK"}
# As many, in another order: no other set of labels.
OK_TURNED = dict(reversed(OK.items()))
FAILED = {"rpc.method": "Ask", "rpc.response.status_code": "INTERNAL", "error.type": "INTERNAL"}
VALUES = [(0.05, OK), (0.1, OK_TURNED), (0.5, FAILED), (7.0, OK), (0.05, OK_TURNED), (0.2, FAILED)]
Bound = Callable[[Recording, metrics.Histogram], Durations]


def quickly(recording: Recording, histogram: metrics.Histogram) -> Durations:
    return recording.durations(histogram)


def slowly(_recording: Recording, histogram: metrics.Histogram) -> Durations:
    return histogram


def recorded(bound: Bound, *readers: InMemoryMetricReader) -> Durations:
    """Returns what records to the readers."""
    recording = Recording(meters=Meters(readers))
    meter = recording.meter()
    assert meter is not None
    histogram = meter.create_histogram("call", "s", explicit_bucket_boundaries_advisory=BUCKETS)
    return bound(recording, histogram)


def seen(reader: InMemoryMetricReader) -> Mapping[str, tuple[Any, ...]]:
    """Returns what is counted for each status."""
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points: list[Any] = list(metric.data.data_points)
    found = {
        point.attributes["rpc.response.status_code"]: (
            *(dict(point.attributes), point.count, point.sum, point.min, point.max),
            *(point.bucket_counts, point.explicit_bounds, point.exemplars),
        )
        for point in points
    }
    assert len(found) == len(points)
    return found


def test_each_reader_sees_what_the_sdk_would_say() -> None:
    first, second, plain = (InMemoryMetricReader() for _ in range(3))
    quick, slow = recorded(quickly, first, second), recorded(slowly, plain)
    # Whoever has read goes on from there.
    for counted in (2, 4):
        for seconds, labels in VALUES:
            quick.record(seconds, labels)
            slow.record(seconds, labels)
        expected = seen(plain)
        assert expected["OK"][1] == 2 * counted
        assert expected["INTERNAL"][1] == counted
        assert seen(first) == expected
        if counted > 2:
            assert seen(second) == expected


def test_histograms_of_one_name_are_apart_where_their_parts_are() -> None:
    reader = InMemoryMetricReader()
    recording = Recording(meters=Meters([reader]))
    for part in ("auth", "ratelimit"):
        meter = recording.meter(part)
        assert meter is not None
        histogram = meter.create_histogram("call", "s")
        for _ in range(3):
            recording.durations(histogram).record(0.1, OK)
    data = reader.get_metrics_data()
    assert data is not None
    scopes = data.resource_metrics[0].scope_metrics
    assert {scope.scope.name for scope in scopes} == {"bulkhead.auth", "bulkhead.ratelimit"}
    points: list[Any] = [
        point for scope in scopes for metric in scope.metrics for point in metric.data.data_points
    ]
    assert [point.count for point in points] == [3, 3]
