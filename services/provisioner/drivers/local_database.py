"""What every local server begins with: who there is, who may come in, and the SQL for both."""

from pathlib import Path

from services.provisioner.domain import DatabaseRole
from services.provisioner.drivers.postgres_process import HOST

SUPERUSER = "postgres"
GUARD = "guard"
DATABASE = "app"
MAINTENANCE = "postgres"

_TURNS = ("a", "b")


def login(role: DatabaseRole, generation: int) -> str:
    """Returns the login that acts as `role`: two take turns, so that passwords can overlap."""
    return f"{role}_{_TURNS[(generation - 1) % len(_TURNS)]}"


LOGINS = tuple(login(role, generation) for role in DatabaseRole for generation in (1, 2))

# Passwords only, over the loopback interface only, to each login the tenant's database only.
ACCESS = f"""\
host {DATABASE} {",".join(LOGINS)} {HOST}/32 scram-sha-256
host {DATABASE},{MAINTENANCE} {SUPERUSER},{GUARD} {HOST}/32 scram-sha-256
"""


# Makes the tenant's database; in no transaction with anything else.
CREATE = f"CREATE DATABASE {DATABASE}"


def sql(name: str) -> str:
    """Returns one of the SQL scripts; see `scripts` for how its statements end."""
    return (Path(__file__).parent / "local_sql" / f"{name}.sql").read_text()


def copied() -> str:
    """Returns the SQL to run in `MAINTENANCE` of what was copied from another server."""
    return sql("copied")


def scripts() -> tuple[tuple[str, str], ...]:
    """Returns pairs of a database and the SQL to run in it, in order.

    In Postgres's single-user mode a statement ends with a semicolon before an empty line.
    """
    roles = "\n".join((sql("roles"), f"{CREATE};\n", sql("grants"), sql("templates")))
    return (
        (MAINTENANCE, roles),
        (MAINTENANCE, sql("guard")),
        (DATABASE, sql("app")),
        (DATABASE, sql("quota")),
    )
