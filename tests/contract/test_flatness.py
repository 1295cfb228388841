"""What a soak calls flat: noise and passing peaks are, leaks are not."""

import random

import pytest

from bench.flatness import flatness

PART = 0.05


def noisy(values: list[float], spread: float = 1.0) -> list[float]:
    chance = random.Random(7)  # noqa: S311 noise
    return [value + chance.uniform(-spread, spread) for value in values]


def test_a_leak_is_found_in_noise() -> None:
    grown = flatness(noisy([100 + 8 * at / 600 for at in range(600)]))
    assert grown.growth == pytest.approx(0.08, abs=0.01)
    assert not grown.within(PART)


def test_noise_and_what_passes_are_flat() -> None:
    peaks = [300.0 if at % 50 == 0 else 100.0 for at in range(600)]
    assert flatness(noisy(peaks)).within(PART)
    assert flatness(noisy([100.0] * 600)).within(PART)


def test_what_shrinks_is_flat_and_what_stays_high_is_not() -> None:
    assert flatness([100 - at / 60 for at in range(600)]).growth < 0
    high = flatness([100.0] * 400 + [120.0] * 200)
    assert high.peak == pytest.approx(0.2)
    assert not high.within(PART)


def test_a_few_more_may_be_where_there_are_few() -> None:
    pool = flatness([20.0] * 300 + [26.0] * 20 + [20.0] * 300)
    assert not pool.within(PART)
    assert pool.within(PART, grown=2, above=8)
    leak = flatness([20 + at / 60 for at in range(600)])
    assert not leak.within(PART, grown=2, above=100)


@pytest.mark.parametrize("values", [[], [1.0], [0.0, 0.0]])
def test_no_series_no_answer(values: list[float]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 either of two reasons
        flatness(values)
