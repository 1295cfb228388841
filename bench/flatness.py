"""Whether a series of measurements stays where it is: a robust slope, and the highest of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

# So many medians of neighbours stand for the whole: a passing peak moves none of them.
_WINDOWS = 30


@dataclass(frozen=True, slots=True)
class Flatness:
    """How a series went, as parts of its median."""

    median: float
    # What it gained from the first measurement to the last: Theil and Sen's slope times the length.
    growth: float
    # How far the highest of the windows lies above the median.
    peak: float

    def within(self, part: float, grown: float = 0.0, above: float = 0.0) -> bool:
        """Whether growth and peak are at most `part` of the median.

        Or else at most `grown`, and `above`, in the unit of the series.
        """
        return self.growth <= max(part, grown / self.median) and self.peak <= max(
            part, above / self.median
        )


def flatness(values: Sequence[float]) -> Flatness:
    """Returns how flat the series is, whose measurements were taken at equal distances.

    Raises:
        ValueError: fewer than two measurements, or a median of 0.
    """
    if len(values) < 2:  # noqa: PLR2004 a line needs two points
        raise ValueError("a line needs two measurements")
    middle = statistics.median(values)
    if not middle:
        raise ValueError("nothing is a part of 0")
    windows = _windows(values)
    return Flatness(
        median=middle,
        growth=_slope(windows) * (len(windows) - 1) / middle,
        peak=max(windows) / middle - 1,
    )


def _windows(values: Sequence[float]) -> list[float]:
    """Returns the medians of at most 30 windows of one length; what is left over begins none."""
    length = max(1, len(values) // _WINDOWS)
    return [
        statistics.median(values[at : at + length])
        for at in range(0, len(values) - length + 1, length)
    ]


def _slope(values: Sequence[float]) -> float:
    """Returns the median of the slopes of all pairs (Theil 1950, Sen 1968), in values a step."""
    pairs = combinations(enumerate(values), 2)
    return statistics.median(
        (later - earlier) / (end - begin) for (begin, earlier), (end, later) in pairs
    )
