"""Numbered files of SQL, and which releases run on what they make of a database.

A rolling update runs two releases side by side on the schema of the newer one, so each file says in
its first line what it does to the older: `-- expand` only adds, and every release before runs on;
`-- contract: after 0007` takes away or forbids what a release that knows 0007 no longer needs.
docs/decisions/0020-expand-migrate-contract.md says why.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_MARK = re.compile(r"-- (?:expand|contract: after (\d{4}))\n")
_SESSION = re.compile(r"bulkhead schema (\d+)")
_SERVICES = Path(__file__).parent.parent
# Beside a database's own sessions, those of its owner that belong to no release.
NO_RELEASE = "bulkhead"


class MigrationError(RuntimeError):
    """The files and what was applied before do not fit together; says how."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file of SQL."""

    version: int
    name: str
    # Code that knows the migrations up to this one runs on what it leaves; 0: all code does.
    needs: int
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of what is below the first line, in hex: some were applied without that line."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration that the database has."""

    version: int
    name: str
    checksum: str
    needs: int


def migrations_of(service: str) -> Path:
    """Returns the folder with the migrations of a service."""
    return _SERVICES / service / "migrations"


def read_migrations(folder: Path) -> list[Migration]:
    """Returns the migrations in `folder`, in order.

    Raises:
        MigrationError: a file is misnamed or says nothing of the releases before it; or two have
            one number.
    """
    found = [_read(path) for path in sorted(folder.glob("*.sql"))]
    if len({migration.version for migration in found}) != len(found):
        raise MigrationError(f"{folder}: two migrations have one number")
    return found


def _read(path: Path) -> Migration:
    named = _NAME.fullmatch(path.name)
    if named is None:
        raise MigrationError(f"{path.name}: name it 0001_what_it_does.sql")
    text = path.read_text()
    mark = _MARK.match(text)
    if mark is None:
        raise MigrationError(f"{path.name}: begin it with `-- expand` or `-- contract: after 0001`")
    version, needs = int(named[1]), int(mark[1] or 0)
    if needs > version:
        raise MigrationError(f"{path.name}: it comes before what it is to come after")
    return Migration(version, path.name, needs, text[mark.end() :])


def known(migrations: Iterable[Migration]) -> int:
    """Returns the number of the newest migration; 0 for none."""
    return max((migration.version for migration in migrations), default=0)


def pending(migrations: Sequence[Migration], applied: Iterable[Applied]) -> list[Migration]:
    """Returns what is to be applied, in order.

    Raises:
        MigrationError: a migration was changed after it was applied; or a newer release has taken
            away what this one needs.
    """
    there = {each.version: each for each in applied}
    for migration in migrations:
        before = there.get(migration.version)
        if before is not None and before.checksum != migration.checksum:
            raise MigrationError(f"{migration.name} was changed after it was applied")
    _verify_release(known(migrations), there)
    return [migration for migration in migrations if migration.version not in there]


def _verify_release(own: int, there: Mapping[int, Applied]) -> None:
    for each in there.values():
        if each.needs > own:
            raise MigrationError(
                f"{each.name} of a newer release has taken away what releases before its migration"
                f" {each.needs:04} need; this one ends at {own:04}: start a newer release"
            )


def session_name(migrations: Iterable[Migration]) -> str:
    """Returns what the sessions of this release are called: it says what the release knows."""
    return f"bulkhead schema {known(migrations)}"


def oldest_release(sessions: Iterable[str]) -> int | None:
    """Returns what the oldest release knows that has a session here; None if there is none.

    Releases from before sessions had names have none, and know nothing that is needed.
    """
    numbers = []
    for name in sessions:
        match = _SESSION.fullmatch(name)
        if match is not None:
            numbers.append(int(match[1]))
        elif not name:
            numbers.append(0)
    return min(numbers, default=None)


def verify_contracts(wanted: Iterable[Migration], oldest: int | None) -> None:
    """Returns when no release that runs needs what is to be taken away.

    Raises:
        MigrationError: one does.
    """
    for migration in wanted:
        if oldest is not None and migration.needs > oldest:
            raise MigrationError(
                f"{migration.name} takes away what a running release needs, which ends at"
                f" {oldest:04}: update to one with {migration.needs:04} first, or stop them all"
            )
