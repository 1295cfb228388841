"""Which limit applies to a descriptor, against a model that says it the slow way."""

import string
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ratelimit.descriptors import Descriptor, Entry, Level, Limit, Rule, applied
from services.ratelimit.windows import Mode, Unit

KEYS, VALUES = ("a", "b"), ("", "x", "xy", "xyz", "y", "*", "x*")
limits = st.one_of(st.none(), st.builds(Limit, st.integers(0, 9), st.sampled_from(Unit)))
patterns = st.one_of(st.none(), st.sampled_from(("x", "xy", "y", "*", "x*", "xy*")))


def rule_lists(below: st.SearchStrategy[list[Rule]]) -> st.SearchStrategy[list[Rule]]:
    rules = st.builds(
        lambda key, value, limit, rest: Rule(key, value, limit, below=Level(rest)),
        st.sampled_from(KEYS),
        patterns,
        limits,
        below,
    )
    return st.lists(rules, max_size=5, unique_by=lambda rule: (rule.key, rule.value))


trees = rule_lists(rule_lists(rule_lists(st.just([]))))
entries = st.lists(st.builds(Entry, st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=4)


def rules_of(level: Level) -> list[Rule]:
    return list(level._rules.values())  # noqa: SLF001 the model reads what it was made of


def slow_limit(rules: list[Rule], path: list[Entry]) -> Limit | None:
    """Says the words of the format one after the other, without any index."""
    entry, *rest = path
    mine = [rule for rule in rules if rule.key == entry.key]
    exact = [rule for rule in mine if rule.value == entry.value and rule.value is not None]
    stars = [
        rule
        for rule in mine
        if rule.value is not None
        and rule.value[-1] == "*"
        and entry.value[: len(rule.value) - 1] == rule.value[:-1]
    ]
    bare = [rule for rule in mine if rule.value is None]
    for candidates in (exact, stars, bare):
        if candidates:
            best = candidates[0]
            return best.limit if not rest else slow_limit(rules_of(best.below), rest)
    return None


@given(trees, entries.filter(bool))
def test_the_most_specific_rule_of_each_level_is_followed(
    rules: list[Rule], path: list[Entry]
) -> None:
    (found,) = applied(Level(rules), [Descriptor(tuple(path), 1)])
    assert (found.limit if found else None) == slow_limit(rules, path)


texts = st.text(string.ascii_lowercase + ":0123456789", max_size=4)
paths = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@given(paths, paths)
def test_two_descriptors_never_share_a_counter(
    one: list[tuple[str, str]], two: list[tuple[str, str]]
) -> None:
    limit = Limit(1, Unit.DAY)
    found = applied(
        Level(()),
        [Descriptor(tuple(Entry(*entry) for entry in path), 1, limit) for path in (one, two)],
    )
    counters = {each.counter for each in found if each is not None}
    assert len(counters) == (1 if one == two else 2)


def test_units_and_their_multiples_are_counted_apart() -> None:
    path = (Entry("a", "x"),)
    overrides = [Limit(1, Unit.DAY), Limit(1, Unit.HOUR), Limit(1, Unit.DAY, 2)]
    found = applied(Level(()), [Descriptor(path, 1, limit) for limit in overrides])
    assert len({each.counter for each in found if each}) == 3
    # A raised limit goes on counting where the one before stood.
    raised, before = applied(
        Level(()), [Descriptor(path, 1, Limit(number, Unit.DAY)) for number in (5, 1)]
    )
    assert raised is not None
    assert before is not None
    assert raised.counter == before.counter


def test_the_first_of_several_stars_decides_as_in_the_go_service() -> None:
    wide, narrow = Limit(1, Unit.DAY), Limit(2, Unit.DAY)
    level = Level([Rule("a", "x*", wide), Rule("a", "xy*", narrow)])
    (found,) = applied(level, [Descriptor((Entry("a", "xyz"),), 1)])
    assert found is not None
    assert found.limit == wide


def test_there_is_no_way_back_from_a_more_specific_rule() -> None:
    general = Rule("a", None, below=Level([Rule("b", None, Limit(1, Unit.DAY))]))
    level = Level([general, Rule("a", "x", below=Level([Rule("b", "only", Limit(2, Unit.DAY))]))])
    path = (Entry("a", "x"), Entry("b", "other"))
    assert applied(level, [Descriptor(path, 1)]) == [None]


def test_a_shared_star_is_one_counter_and_another_is_one_each() -> None:
    limit = Limit(1, Unit.DAY)
    for shared, counters in ((True, 1), (False, 2)):
        level = Level([Rule("a", "x*", limit, share_threshold=shared)])
        found = applied(level, [Descriptor((Entry("a", value),), 1) for value in ("x1", "x2")])
        assert len({each.counter for each in found if each}) == counters


def test_a_limit_that_is_replaced_does_not_apply() -> None:
    level = Level(
        [
            Rule("a", None, Limit(1, Unit.DAY, name="general")),
            Rule("b", None, Limit(2, Unit.DAY, name="special", replaces=frozenset({"general"}))),
        ]
    )
    general, special = Descriptor((Entry("a", "x"),), 1), Descriptor((Entry("b", "x"),), 1)
    replaced, replacing = applied(level, [general, special])
    assert replaced is None
    assert replacing is not None
    assert [each is not None for each in applied(level, [general, general])] == [True, True]


def test_a_limit_in_the_request_stands_in_for_the_files() -> None:
    level = Level([Rule("a", None, Limit(None), Mode.SHADOW)])
    own = Limit(3, Unit.MINUTE)
    (found,) = applied(level, [Descriptor((Entry("a", "x"),), 1, own)])
    assert found is not None
    assert (found.limit, found.mode) == (own, Mode.ENFORCED)


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (Rule("a", None, Limit(1)), "a.b"),
        (Rule("a", "secret", Limit(1)), "a_secret.b"),
        (Rule("a", "sec*", Limit(1)), "a_sec*.b"),
        (Rule("a", None, Limit(1), value_to_metric=True), "a_secret.b"),
        (Rule("a", "sec*", Limit(1), value_to_metric=True, share_threshold=True), "a_sec*.b"),
    ],
)
def test_metrics_name_a_rule_by_its_file(rule: Rule, label: str) -> None:
    leaf = Rule("b", None, Limit(1, Unit.DAY))
    level = Level([replace(rule, limit=None, below=Level([leaf]))])
    path = (Entry("a", "secret"), Entry("b", "personal"))
    (found,) = applied(level, [Descriptor(path, 1)])
    assert found is not None
    assert found.label == label


def test_detailed_metrics_name_every_value() -> None:
    leaf = Rule("b", None, Limit(1, Unit.DAY), detailed_metric=True)
    level = Level([Rule("a", None, below=Level([leaf]))])
    (found,) = applied(level, [Descriptor((Entry("a", "x"), Entry("b", "y")), 1)])
    assert found is not None
    assert found.label == "a_x.b_y"
