"""What every migration says of the releases before it, and whether it is so."""

import hashlib
from pathlib import Path

import pytest

from services.shared.migrations import (
    Applied,
    Migration,
    MigrationError,
    oldest_release,
    pending,
    read_migrations,
    session_name,
    verify_contracts,
)
from tests.databases import SERVICES
from tests.expanding import takes_away

FILES = sorted(SERVICES.glob("*/migrations/*.sql"))
MIGRATIONS = {
    f"{folder.parent.name}/{migration.name}": migration
    for folder in sorted({file.parent for file in FILES})
    for migration in read_migrations(folder)
}


def test_every_migration_says_what_it_does_to_the_releases_before_it() -> None:
    assert len(MIGRATIONS) == len(FILES) >= 15


@pytest.mark.parametrize("name", sorted(MIGRATIONS))
def test_what_only_expands_takes_nothing_away(name: str) -> None:
    migration = MIGRATIONS[name]
    assert migration.needs or takes_away(migration.sql) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE keys",
        "ALTER TABLE keys DROP COLUMN name",
        "ALTER TABLE keys ADD COLUMN a text, DROP CONSTRAINT b",
        "ALTER TABLE keys RENAME COLUMN name TO title",
        "ALTER TABLE keys RENAME TO old_keys",
        "ALTER TABLE keys ALTER COLUMN name SET NOT NULL",
        "ALTER TABLE keys ALTER COLUMN name TYPE bytea",
        "ALTER TABLE keys ALTER name SET DATA TYPE bytea",
        "ALTER TABLE keys ADD COLUMN a text NOT NULL",
        "ALTER TABLE keys ADD CHECK (a > 0)",
        "ALTER TABLE keys\n    ADD COLUMN a numeric(1, 2),\n    ADD CONSTRAINT c UNIQUE (a, b)",
        "ALTER TABLE ONLY keys ADD FOREIGN KEY (a) REFERENCES b",
        "ALTER TABLE keys ENABLE ROW LEVEL SECURITY",
        "CREATE UNIQUE INDEX one ON keys (name)",
        "CREATE TRIGGER t BEFORE INSERT ON keys FOR EACH ROW EXECUTE FUNCTION f()",
        "CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN END $$",
        "REVOKE INSERT ON keys FROM auth_tenant",
        "TRUNCATE keys",
        "DELETE FROM keys",
        "-- expand\nCREATE TABLE a (b text); DROP INDEX keys_by_name",
        "DO $$ BEGIN EXECUTE 'DROP TABLE keys'; END $$",
    ],
)
def test_what_takes_away_is_found(statement: str) -> None:
    assert takes_away(f"{statement};\n")


@pytest.mark.parametrize(
    "statement",
    [
        "-- DROP TABLE keys\nSELECT 1",
        "CREATE TABLE own (a text NOT NULL CHECK (a <> ''))",
        "CREATE TABLE own (a text); ALTER TABLE own ENABLE ROW LEVEL SECURITY",
        "CREATE TABLE own (a text); CREATE UNIQUE INDEX one ON own (a)",
        "ALTER TABLE keys ADD COLUMN a text",
        "ALTER TABLE keys ADD COLUMN a integer NOT NULL DEFAULT 0 CHECK (a >= 0)",
        "CREATE INDEX slow ON keys (name)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM a; END $$",
        "GRANT SELECT ON keys TO auth_tenant",
        "UPDATE keys SET name = 'a; b'",
    ],
)
def test_what_only_adds_is_left_alone(statement: str) -> None:
    assert takes_away(f"{statement};\n") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("SELECT 1;\n", "begin it with"),
        ("-- expand: a little\nSELECT 1;\n", "begin it with"),
        ("-- contract\nSELECT 1;\n", "begin it with"),
        ("-- contract: after 0003\nSELECT 1;\n", "comes before"),
    ],
)
def test_a_migration_that_says_nothing_is_no_migration(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "0002_two.sql").write_text(text)
    with pytest.raises(MigrationError, match=why):
        read_migrations(tmp_path)


def migration(version: int, needs: int = 0) -> Migration:
    return Migration(version, f"{version:04}_x.sql", needs, f"SELECT {version};")


def applied(*migrations: Migration) -> list[Applied]:
    return [Applied(each.version, each.name, each.checksum, each.needs) for each in migrations]


def test_the_first_line_is_no_part_of_what_was_applied(tmp_path: Path) -> None:
    file = tmp_path / "0001_one.sql"
    file.write_text("-- expand\nSELECT 1;\n")
    (expanding,) = read_migrations(tmp_path)
    file.write_text("-- contract: after 0001\nSELECT 1;\n")
    (contracting,) = read_migrations(tmp_path)
    assert expanding.checksum == contracting.checksum
    # As a release wrote it down that knew no such line.
    assert expanding.checksum == hashlib.sha256(b"SELECT 1;\n").hexdigest()


def test_an_earlier_release_runs_on_what_was_only_added() -> None:
    assert pending([migration(1)], applied(migration(1), migration(2), migration(3, 1))) == []


def test_an_earlier_release_does_not_start_where_what_it_needs_is_gone() -> None:
    newer = applied(migration(1), migration(2), migration(3, needs=2))
    with pytest.raises(MigrationError, match=r"0003_x.sql .* migration 0002 .* ends at 0001"):
        pending([migration(1)], newer)
    assert pending([migration(1), migration(2)], newer) == []


def test_what_was_changed_after_it_was_applied_is_refused() -> None:
    changed = Migration(1, "0001_x.sql", 0, "SELECT 2;")
    with pytest.raises(MigrationError, match="changed after it was applied"):
        pending([changed], applied(migration(1)))


def test_what_a_running_release_needs_is_not_taken_away() -> None:
    wanted = [migration(2), migration(3, needs=2)]
    with pytest.raises(MigrationError, match=r"0003_x.sql .* ends at 0001: update .* 0002 first"):
        verify_contracts(wanted, 1)
    verify_contracts(wanted, 2)
    verify_contracts(wanted, None)


def test_sessions_say_what_their_release_knows() -> None:
    mine = session_name([migration(1), migration(7)])
    assert oldest_release([mine, "psql", "bulkhead"]) == 7
    assert oldest_release([mine, session_name([migration(3)])]) == 3
    # A release from before sessions had names.
    assert oldest_release([mine, ""]) == 0
    assert oldest_release(["psql"]) is None
