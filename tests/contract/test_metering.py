"""That what is recorded the quick way is what the SDK's own way says, to every reader."""

from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from services.shared.metering import Meters
from services.shared.recording import Durations, Plain, Recording

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
    return Plain(histogram)


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
            quick.of(labels).record(seconds)
            slow.of(labels).record(seconds)
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
            recording.durations(histogram).of(OK).record(0.1)
    data = reader.get_metrics_data()
    assert data is not None
    scopes = data.resource_metrics[0].scope_metrics
    assert {scope.scope.name for scope in scopes} == {"bulkhead.auth", "bulkhead.ratelimit"}
    points: list[Any] = [
        point for scope in scopes for metric in scope.metrics for point in metric.data.data_points
    ]
    assert [point.count for point in points] == [3, 3]


def test_nothing_is_lost_or_counted_twice_while_several_look() -> None:
    readers = [InMemoryMetricReader() for _ in range(2)]
    duration = recorded(quickly, *readers).of(OK)
    number = 20_000
    done = False

    def looks(reader: InMemoryMetricReader) -> None:
        while not done:
            reader.get_metrics_data()

    threads = [Thread(target=looks, args=[reader]) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(number):
            duration.record(0.5)
    finally:
        done = True
        for thread in threads:
            thread.join()
    for reader in readers:
        assert seen(reader)["OK"][1] == number
        assert seen(reader)["OK"][2] == number / 2


class Seconds(float):
    """A duration that can be seen to be gone."""

    __slots__ = ("__weakref__",)


def test_what_nobody_looks_at_does_not_pile_up() -> None:
    duration = recorded(quickly, InMemoryMetricReader()).of(OK)
    kept: WeakSet[Seconds] = WeakSet()
    for _ in range(2_000):
        seconds = Seconds(0.5)
        kept.add(seconds)
        duration.record(seconds)
    assert len(kept) < 300
