"""Every metric that the code can make is in the operations' table, with its unit, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parent.parent.parent
# Asked when somebody looks, and without a value: nobody sees it.
UNSEEN: Final = {"bulkhead.telemetry.waiting"}
# The second argument of those that are read when somebody looks is what reads them.
MAKERS: Final = {
    "create_counter": 1,
    "create_gauge": 1,
    "create_histogram": 1,
    "create_up_down_counter": 1,
    "create_observable_counter": 2,
    "create_observable_gauge": 2,
    "create_observable_up_down_counter": 2,
}


def made() -> Iterator[tuple[str, str, str]]:
    """Yields name and unit of each metric that a service makes, and where."""
    for file in sorted((ROOT / "services").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                place = MAKERS.get(node.func.attr)
                if place is not None and _text(node.args[0]) not in UNSEEN:
                    yield _text(node.args[0]), _unit(node, place), str(file.relative_to(ROOT))


def _unit(call: ast.Call, place: int) -> str:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "unit"]
    given = [*named, *call.args[place : place + 1]]
    return _text(given[0]) if given else ""


def _text(node: ast.expr) -> str:
    assert isinstance(node, ast.Constant), ast.unparse(node)
    assert isinstance(node.value, str)
    return node.value


def documented() -> list[list[str]]:
    """Returns the rows of the table of metrics."""
    text = (ROOT / "docs" / "operations.md").read_text()
    section = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_every_metric_is_in_the_table_with_its_unit() -> None:
    in_code = {(name, unit) for name, unit, _ in made()}
    in_table = [(row[0].strip("`"), row[1]) for row in documented()]
    assert sorted(in_table) == sorted(in_code)
    assert all(row[3] for row in documented())


def test_metrics_have_names_of_conventions_or_our_own() -> None:
    for name, _, file in made():
        assert re.fullmatch(r"(bulkhead|rpc|http|db)(\.[a-z_]+)+", name), (name, file)
