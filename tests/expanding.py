"""Finds what a migration takes away from earlier releases, by a simple reading of its SQL."""

import re
from collections.abc import Iterator

_SKIPPED = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_QUOTED = re.compile(r"(\$\w*\$).*?\1", re.DOTALL)
_MADE = re.compile(r"^CREATE (?:UNLOGGED )?TABLE (?:IF NOT EXISTS )?(\S+)")
_ALTERED = re.compile(r"^ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(\S+) (.*)$")
# What is built on a table, and which.
_ON = re.compile(r"^CREATE (UNIQUE INDEX|TRIGGER|CONSTRAINT TRIGGER|RULE) .*? (?:ON|TO) ([^\s(]+)")
_NEVER = (
    r"\bDROP\b",
    r"\bRENAME\b",
    r"\bSET NOT NULL\b",
    r"^ALTER TABLE .*\b(?:SET DATA )?TYPE\b",
    r"^CREATE OR REPLACE\b",
    r"\bREVOKE\b",
    r"^TRUNCATE\b",
    r"^DELETE\b",
)
_FORBIDS = (
    r"^ADD (?:CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b",
    r"^(?:ENABLE|FORCE) ROW LEVEL SECURITY\b",
)


def takes_away(sql: str) -> list[str]:
    """Returns the parts of statements that can break a release which does not know the migration.

    Tables that the migration itself makes are its own: nobody before it uses them.
    """
    statements = [*_statements(sql)]
    own = {made[1] for each in statements if (made := _MADE.match(each))}
    return [part for statement in statements for part in _breaking(statement, own)]


def _statements(sql: str) -> Iterator[str]:
    """Yields each statement on one line, in upper case; of functions without their bodies."""
    plain = _QUOTED.sub(_body, _SKIPPED.sub(_text, sql))
    for statement in plain.split(";"):
        words = " ".join(statement.split()).upper()
        if words:
            yield words


def _text(skipped: "re.Match[str]") -> str:
    # What is executed out of a text says so in the text.
    return skipped[0].strip("'") if skipped[0].startswith("'") else " "


def _body(quoted: "re.Match[str]") -> str:
    before = quoted.string[: quoted.start()].rpartition(";")[2].split()
    # A block is run here and now; a function later, by whoever knows it.
    return quoted[0] if before and before[0].upper() == "DO" else "''"


def _breaking(statement: str, own: set[str]) -> Iterator[str]:
    if any(re.search(pattern, statement) for pattern in _NEVER):
        yield statement
        return
    built = _ON.match(statement)
    if built and built[2] not in own:
        yield statement
    altered = _ALTERED.match(statement)
    if altered and altered[1] not in own:
        yield from filter(_forbids, _parts(altered[2]))


def _forbids(part: str) -> bool:
    if any(re.search(pattern, part) for pattern in _FORBIDS):
        return True
    column = re.match(r"ADD (?:COLUMN )?", part)
    filled = re.search(r"\bDEFAULT\b|\bGENERATED\b", part)
    return bool(column) and "NOT NULL" in part and not filled


def _parts(actions: str) -> Iterator[str]:
    """Yields what stands between commas, but for those within brackets."""
    depth, part = 0, ""
    for character in actions:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += character
    yield part.strip()
