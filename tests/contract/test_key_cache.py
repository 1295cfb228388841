"""What is remembered of keys: for how long, how many, and of whom nothing can be told from it."""

import pytest

from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.key_cache import KeyCache
from services.shared.keyformat import digest, new_key
from services.shared.principal import KeyKind, Plan, Principal


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def someone(number: int = 0) -> Principal:
    return Principal(
        key_id=KeyId(f"key_{number}"),
        kind=KeyKind.DEPLOYMENT,
        tenant_id=TenantId("ten_1"),
        deployment_id=DeploymentId("dep_1"),
        scopes=frozenset(),
        plan=Plan.FREE,
    )


def a_digest() -> bytes:
    return digest(new_key(KeyKind.DEPLOYMENT))


@pytest.mark.promise("P-04")
@pytest.mark.parametrize("seconds", [0, 1, 30, 59.9, 60.1, 3_600])
def test_a_key_of_nobody_is_remembered_exactly_as_long_as_one_of_someone(seconds: float) -> None:
    clock = Clock()
    cache = KeyCache(clock)
    elsewhere, nobodys = a_digest(), a_digest()
    cache.put(elsewhere, someone())
    cache.put(nobodys, None)
    clock.now += seconds
    found = [cache.get(each, clock.now) is not None for each in (elsewhere, nobodys)]
    assert found == [seconds <= 60] * 2


def test_any_number_of_keys_of_nobody_displaces_no_key_of_someone() -> None:
    clock = Clock()
    cache = KeyCache(clock, most=10)
    mine = a_digest()
    cache.put(mine, someone())
    unknown = [a_digest() for _ in range(100)]
    for each in unknown:
        cache.put(each, None)
    assert cache.get(mine, clock.now) is not None
    assert sum(cache.get(each, clock.now) is not None for each in unknown) == 10


def test_the_oldest_is_displaced_by_the_newest() -> None:
    clock = Clock()
    cache = KeyCache(clock, most=2)
    digests = [a_digest() for _ in range(3)]
    for number, each in enumerate(digests):
        cache.put(each, someone(number))
    found = [cache.get(each, clock.now) is not None for each in digests]
    assert found == [False, True, True]


def test_what_is_too_old_takes_no_room() -> None:
    clock = Clock()
    cache = KeyCache(clock)
    for number in range(50):
        cache.put(a_digest(), someone(number))
        cache.put(a_digest(), None)
    clock.now += 61
    # Nobody asks for them again; a busy process would otherwise remember a hundred thousand.
    cache.put(a_digest(), None)
    assert len(cache) == 1


def test_a_key_with_a_fresh_secret_is_remembered_under_that_alone_and_forgotten_as_a_whole() -> (
    None
):
    clock = Clock()
    cache = KeyCache(clock)
    before, after = a_digest(), a_digest()
    cache.put(before, someone())
    cache.put(after, someone())
    assert cache.get(before, clock.now) is None
    cache.forget(someone().key_id)
    assert cache.get(after, clock.now) is None


def test_what_was_nobodys_and_is_someones_is_remembered_once() -> None:
    clock = Clock()
    cache = KeyCache(clock)
    each = a_digest()
    cache.put(each, None)
    cache.put(each, someone())
    cache.forget(someone().key_id)
    assert cache.get(each, clock.now) is None
