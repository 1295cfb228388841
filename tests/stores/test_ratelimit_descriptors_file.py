"""Files of limits: read as the Go service's users wrote them, or refused by file and place."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ratelimit.descriptors import Descriptor, Entry, Limit, applied
from services.ratelimit.descriptors_file import parsed, read_texts
from services.ratelimit.descriptors_watch import DescriptorFiles, watched
from services.ratelimit.windows import Mode, Unit
from services.shared.settings import UnusableFileError

# From the documentation of envoyproxy/ratelimit, as its users have it.
GO = """
domain: messaging
descriptors:
  # Only allow 5 marketing messages a day
  - key: message_type
    value: marketing
    descriptors:
      - key: to_number
        rate_limit:
          unit: day
          requests_per_unit: 5

  # Only allow 100 messages a day to any unique phone number
  - key: to_number
    rate_limit:
      unit: DAY
      requests_per_unit: 100
      name: any_number
    shadow_mode: true
    detailed_metric: true
"""
PLAIN = "domain: {0}\ndescriptors: [{{key: a, rate_limit: {{unit: day, requests_per_unit: {1}}}}}]"


def limit_of(files: DescriptorFiles, domain: str = "shop") -> int | None:
    (found,) = applied(files.domains[domain], [Descriptor((Entry("a", "x"),), 1)])
    return found.limit.requests if found else None


def test_a_file_of_the_go_service_is_read(tmp_path: Path) -> None:
    file = tmp_path / "messaging.yaml"
    file.write_text(GO)
    level = parsed(read_texts(file))["messaging"]
    number = Entry("to_number", "2061234567")
    marketing = Descriptor((Entry("message_type", "marketing"), number), 1)
    first, second = applied(level, [marketing, Descriptor((number,), 1)])
    assert first is not None
    assert second is not None
    assert (first.limit, first.mode) == (Limit(5, Unit.DAY), Mode.ENFORCED)
    assert (second.limit, second.mode) == (Limit(100, Unit.DAY, name="any_number"), Mode.SHADOW)
    assert second.label == "to_number_2061234567"


def test_the_example_of_the_documentation_is_read() -> None:
    document = Path(__file__).parent.parent.parent / "docs" / "ratelimit.md"
    example = document.read_text().partition("```yaml\n")[2].partition("```")[0]
    level = parsed({document: example.encode()})["shop"]
    user = Entry("user", "ada")
    both = [Descriptor((user,), 1), Descriptor((Entry("plan", "free"), user), 1)]
    limits = [found.limit for found in applied(level, both) if found]
    assert limits == [Limit(1_000, Unit.MONTH), Limit(10, Unit.HOUR)]


def test_values_are_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    rules = "".join(
        f"  - {{key: a, value: {value}, rate_limit: {{unlimited: true}}}}\n"
        for value in ("1.10", "yes", "404", "2026-11-22", "0x1F", "'quoted'")
    )
    file.write_text(f"domain: d\ndescriptors:\n{rules}")
    level = parsed(read_texts(file))["d"]
    for value in ("1.10", "yes", "404", "2026-11-22", "0x1F", "quoted"):
        assert applied(level, [Descriptor((Entry("a", value),), 1)]) != [None], value
    assert applied(level, [Descriptor((Entry("a", "1.1"),), 1)]) == [None]


def test_anchors_and_merges_are_followed(tmp_path: Path) -> None:
    file = tmp_path / "anchors.yaml"
    file.write_text(
        "domain: d\ndescriptors:\n"
        "  - &one {key: a, value: x, rate_limit: {unit: day, requests_per_unit: 1}}\n"
        "  - {<<: *one, value: y}\n"
    )
    level = parsed(read_texts(file))["d"]
    found = applied(level, [Descriptor((Entry("a", value),), 1) for value in "xyz"])
    assert [each.limit.requests if each else None for each in found] == [1, 1, None]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Input should be a valid dictionary"),
        ("- a", "Input should be a valid dictionary"),
        ("domain: [", "line 1, column 10: expected"),
        ("domain: a\ndomain: b", "line 2, column 1: domain is there twice"),
        ("domain: a\n---\ndomain: b", "line 2, column 1: but found another document"),
        ("descriptors: []", "domain: Field required"),
        ("domain: ''", "domain: String should have at least 1 character"),
        ("domain: d\ndescriptor: []", "descriptor: no such field"),
        ("domain: d\ndescriptors: [{value: x}]", "descriptors[0].key: Field required"),
        ("domain: d\ndescriptors: [{key: a}, {key: a}]", "descriptors: key a is there twice"),
        (
            "domain: d\ndescriptors: [{key: a, value: x}, {key: a, value: x}]",
            "descriptors: key a with value x is there twice",
        ),
        (
            "domain: d\ndescriptors: [{key: a, descriptors: [{key: b, rate_limit: {unit: day}}]}]",
            "descriptors[0].descriptors[0].rate_limit: needs unit and requests_per_unit",
        ),
        (
            "domain: d\ndescriptors: [{key: a, rate_limit: {unit: eon, requests_per_unit: -1}}]",
            "descriptors[0].rate_limit.unit: Input should be 'second', 'minute'",
        ),
        (
            "domain: d\ndescriptors: [{key: a, rate_limit: {unit: day, requests_per_unit: 1e9}}]",
            "descriptors[0].rate_limit.requests_per_unit: Input should be a valid integer",
        ),
        (
            "domain: d\ndescriptors: [{key: a, rate_limit: {unlimited: true, unit: day}}]",
            "descriptors[0].rate_limit: unlimited stands without",
        ),
        (
            """domain: d
descriptors: [{key: a, rate_limit: {unlimited: true, name: n, replaces: [{name: n}]}}]""",
            "descriptors[0].rate_limit: replaces itself",
        ),
        (
            "domain: d\ndescriptors: [{key: a, value: x, share_threshold: true}]",
            "descriptors[0]: share_threshold is for a value that ends with *",
        ),
        (
            "domain: d\ndescriptors: [{key: a, shadow_mode: true, count_refused: true}]",
            "descriptors[0]: shadow_mode counts what is refused",
        ),
        ("domain: d\ndescriptors: &a [{key: k, descriptors: *a}]", "cyclic reference"),
        ("{[a]: b}", "unhashable key"),
        ("domain: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 5_000, "RecursionError"),
        (f"domain: d\n# {'x' * (1 << 20)}", "more than 1048576 bytes"),
        ("domain: \x00", "unacceptable character"),
        ("domain: !!int x", "could not determine a constructor"),
    ],
)
def test_a_bad_file_is_refused_by_its_name_and_the_place_in_it(
    tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UnusableFileError) as refused:
        parsed(read_texts(file))
    assert str(refused.value).startswith(f"{file}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


words = st.sampled_from(
    [
        *("domain: ", "descriptors: ", "- key: ", "  value: ", "  rate_limit: ", "unit: day", "\n"),
        *("{", "}", "[", "]", ", ", "&a ", "*a", "<<: ", "!!int ", "!!binary ", "!x ", "? ", ": "),
        *(
            "'",
            '"',
            "|",
            ">",
            "~",
            "#",
            "%",
            "---\n",
            "\t",
            "\x85",
            "\ud800",
            "0",
            "-1",
            "\\x",
            "é",
        ),
    ]
)
texts = st.one_of(st.lists(words, max_size=25).map("".join), st.text(max_size=60))


@settings(max_examples=1_000, deadline=None)
@given(texts.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=60))
def test_whatever_a_file_holds_it_is_limits_or_a_reason(text: bytes) -> None:
    assert re.fullmatch(r"limits|any\.yaml: .+", _said(text))


def _said(text: bytes) -> str:
    try:
        parsed({Path("any.yaml"): text})
    except UnusableFileError as refused:
        return str(refused)
    return "limits"


def test_a_folder_is_all_of_its_yaml_files(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(PLAIN.format("one", 1))
    (tmp_path / "two.yaml").write_text(PLAIN.format("two", 2))
    (tmp_path / ".hidden.yaml").write_text("junk")
    (tmp_path / "notes.txt").write_text("junk")
    assert parsed(read_texts(tmp_path)).keys() == {"one", "two"}
    (tmp_path / "three.yaml").write_text(PLAIN.format("two", 3))
    with pytest.raises(UnusableFileError, match=r"two\.yaml: domain: two is another file's"):
        parsed(read_texts(tmp_path))


def test_a_place_without_limits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableFileError, match=r"holds no \*\.yaml"):
        DescriptorFiles.read(tmp_path)
    with pytest.raises(UnusableFileError, match="No such file"):
        DescriptorFiles.read(tmp_path / "none.yaml")


async def test_what_changes_is_taken_over_and_what_is_bad_is_not(tmp_path: Path) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(PLAIN.format("shop", 1))
    files = DescriptorFiles.read(file)
    file.write_text(PLAIN.format("shop", 2))
    await files.refresh()
    assert limit_of(files) == 2
    for bad in ("domain: [", "domain: shop\nlimits: []"):
        file.write_text(bad)
        await files.refresh()
        assert limit_of(files) == 2
    file.unlink()
    await files.refresh()
    assert limit_of(files) == 2
    file.write_text(PLAIN.format("shop", 3))
    await files.refresh()
    assert limit_of(files) == 3


async def test_a_bad_file_is_told_once_not_at_every_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "shop.yaml"
    file.write_text(PLAIN.format("shop", 1))
    files = DescriptorFiles.read(file)
    file.write_text("domain: shop\nlimits: []")
    for _ in range(3):
        await files.refresh()
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count(f"{file}: limits: no such field") == 1


async def test_a_swapped_link_is_seen_as_a_mounted_configmap_swaps_it(tmp_path: Path) -> None:
    def version(name: str, number: int) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "shop.yaml").write_text(PLAIN.format("shop", number))
        # Made long ago, and at the same time: only the content tells.
        os.utime(tmp_path / name / "shop.yaml", (1, 1))
        (tmp_path / "..new").symlink_to(name)
        (tmp_path / "..new").replace(tmp_path / "..data")

    version("..2026_1", 1)
    (tmp_path / "shop.yaml").symlink_to("..data/shop.yaml")
    async with watched(tmp_path, 0.01) as files:
        assert files is not None
        assert limit_of(files) == 1
        version("..2026_2", 2)
        await until(lambda: limit_of(files) == 2)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_without_a_place_there_is_nothing_to_watch() -> None:
    async with watched(None, 0.01) as files:
        assert files is None
