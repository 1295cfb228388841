"""The documents say what is true: whatever they name is looked up here."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
from pydantic import TypeAdapter
from pydantic_settings import BaseSettings

from cli.program import build
from services.shared.keyring.settings import KeyringSettings
from services.shared.settings import (
    PostgresSettings,
    ServiceSettings,
    TelemetrySettings,
    ValkeySettings,
)

ROOT = Path(__file__).parent.parent.parent
SERVICES = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHELL_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/kubernetes.md", "docs/operations.md")
# What the documents may point to outside of the repository: standards and conventions.
OUTSIDE = {
    # Where the README's example uses what was lent.
    "api.github.com",
    "keepachangelog.com",
    "www.standardwebhooks.com",
    "semver.org",
}
# Loopback, and names that are nobody's (RFC 2606).
LOCAL = ("localhost", "127.0.0.1", ".example")

EVERY_DOCUMENT = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


@dataclass(frozen=True, slots=True)
class Promise:
    """A row of docs/isolation.md."""

    number: str
    state: str
    enforced: tuple[str, ...]
    attacked: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not self.state.startswith("not yet")


@cache
def promises() -> tuple[Promise, ...]:
    text = (ROOT / "docs" / "isolation.md").read_text()
    return tuple(
        Promise(row[0], row[2], references(row[3]), references(row[4]))
        for row in table_rows(text)
        if re.fullmatch(r"P-\d\d", row[0])
    )


def table_rows(text: str) -> Iterator[list[str]]:
    """Yields the cells of each line that is a row of a table."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def references(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


@cache
def names_in(file: Path) -> frozenset[str]:
    """Returns what a Python file defines: functions, classes, constants, `Class.method`."""
    return frozenset(_definitions(ast.parse(file.read_text()), ""))


def _definitions(scope: Any, prefix: str) -> Iterator[str]:
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (f"{prefix}{one.id}" for one in targets if isinstance(one, ast.Name))


@cache
def marked_tests() -> dict[str, frozenset[str]]:
    """Returns the promises that each test attacks, by `file::test`."""
    marked = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        module = ast.parse(file.read_text())
        of_all = frozenset(filter(None, map(_promised, _marks_of_all(module))))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                ids = of_all.union(filter(None, map(_promised, node.decorator_list)))
                marked[f"{file.relative_to(ROOT)}::{node.name}"] = ids
    return marked


def _marks_of_all(module: ast.Module) -> list[ast.expr]:
    """Returns what `pytestmark` marks every test of a module with."""
    return [
        mark
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
        for mark in (node.value.elts if isinstance(node.value, ast.List) else [node.value])
    ]


def _promised(decorator: ast.expr) -> str | None:
    """Returns the id in `@pytest.mark.promise("P-04")`; None of any other decorator."""
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return None
    argument = decorator.args[0] if decorator.args else None
    is_promise = decorator.func.attr == "promise" and isinstance(argument, ast.Constant)
    return str(argument.value) if is_promise and isinstance(argument, ast.Constant) else None


def test_every_promise_has_one_row() -> None:
    one_each = [*range(1, 13), *range(20, 27), *range(30, 42)]
    assert [promise.number for promise in promises()] == [f"P-{number:02}" for number in one_each]


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise.number)
def test_a_promise_names_what_exists_or_says_that_it_is_not_yet_kept(promise: Promise) -> None:
    assert re.match(r"(held|partly: .+|not yet(: .+)?)$", promise.state)
    assert bool(promise.enforced) == bool(promise.attacked) == promise.kept
    for reference in promise.enforced:
        path, _, name = reference.partition("::")
        assert name, reference
        file = ROOT / path
        found = names_in(file) if file.suffix == ".py" else file.read_text()
        assert name in found, reference


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise.number)
def test_the_tests_of_a_promise_carry_its_id(promise: Promise) -> None:
    for test in promise.attacked:
        assert promise.number in marked_tests().get(test, ()), test


def test_no_test_carries_the_id_of_a_promise_that_is_not_kept() -> None:
    kept = {promise.number for promise in promises() if promise.kept}
    for test, ids in marked_tests().items():
        assert ids <= kept, test


@EVERY_DOCUMENT
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if urlsplit(target).scheme:
            continue
        path, _, heading = target.partition("#")
        file = (document.parent / path) if path else document
        assert file.exists(), target
        assert not heading or heading in headings(file), target


def prose(document: Path) -> str:
    """Returns the text of a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)


def headings(document: Path) -> set[str]:
    """Returns the anchors of a document's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@EVERY_DOCUMENT
def test_documents_point_to_known_places_and_to_no_one_machine(document: Path) -> None:
    text = document.read_text()
    # A host that begins with a sign is a variable of an example.
    urls = re.findall(r"https?://\w[^\s)>\"'`]+", text)
    hosts = {urlsplit(url).hostname or "" for url in urls}
    strange = {host for host in hosts - OUTSIDE if not host.endswith(LOCAL)}
    assert not strange
    assert not re.search(r"(?<![\w.~:/$}-])/(root|home|work|Users|tmp)\b", text)


@EVERY_DOCUMENT
def test_paths_of_the_repository_that_documents_name_exist(document: Path) -> None:
    tops = "services|deploy|cli|tests|protos|docs|bench"
    for path in re.findall(rf"`((?:{tops})/[\w./-]+)(?:::[^`]+)?`", prose(document)):
        assert (ROOT / path).exists(), path


def shell_lines(program: str) -> list[str]:
    """Returns the calls of `program` in the documents' shell blocks, without their comments."""
    lines = []
    for name in SHELL_DOCUMENTS:
        text = (ROOT / name).read_text()
        blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
        found = [line.strip() for block in blocks for line in block.splitlines()]
        lines += [line for line in found if re.match(rf"(\S*/)?{program} ", line)]
    return sorted(set(lines))


def test_there_are_calls_to_look_at() -> None:
    assert len(shell_lines("bulkhead")) >= 10
    assert "make demo" in {" ".join(line.split()[:2]) for line in shell_lines("make")}


@pytest.mark.parametrize("line", shell_lines("bulkhead"))
def test_the_command_line_takes_what_the_documents_say(line: str) -> None:
    # What follows is for the shell.
    words = list(takewhile(lambda word: word != ">", shlex.split(line, comments=True)[1:]))
    command: Any = typer.main.get_command(build())
    while groups := getattr(command, "commands", None):
        assert words[0] in groups, line
        command, words = groups[words[0]], words[1:]
    # Parsed and not run: an option or argument that the command does not take is refused.
    command.make_context("bulkhead", [word for word in words if word != "…"])


@pytest.mark.parametrize("line", shell_lines("make"))
def test_make_has_the_targets_that_the_documents_name(line: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert shlex.split(line, comments=True)[1] in targets


def test_the_examples_in_python_are_python_and_import_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            if isinstance(node, ast.Import):
                assert all(importlib.import_module(alias.name) for alias in node.names)


def settings_types() -> dict[str, type[BaseSettings]]:
    own = {name: importlib.import_module(f"services.{name}.settings").Settings for name in SERVICES}
    return {
        "Every service": ServiceSettings,
        "Telemetry": TelemetrySettings,
        "Postgres": PostgresSettings,
        "Valkey": ValkeySettings,
        "Keyring": KeyringSettings,
        **own,
    }


@pytest.mark.parametrize("title", settings_types())
def test_every_setting_is_documented_with_its_default(title: str) -> None:
    """Nothing is missing, nothing is left over."""
    settings = settings_types()[title]
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition(f"\n### {title}\n")[2].partition("\n#")[0]
    rows = [row for row in table_rows(section) if row[0].startswith("`BULKHEAD_")]
    documented = {row[0].strip("`"): row[1].strip("`") for row in rows}
    own = settings.__annotations__
    assert documented == {
        f"BULKHEAD_{name.upper()}": shown_default(settings, name)
        for name in own
        if name in settings.model_fields
    }
    assert all(row[2] for row in rows)


def shown_default(settings: type[BaseSettings], name: str) -> str:
    field = settings.model_fields[name]
    kind: TypeAdapter[Any] = TypeAdapter(field.annotation or type(None))
    value = kind.dump_python(field.default, mode="json")
    return "" if value in (None, []) else str(value)
