"""What every local server begins with: who there is, who may come in, and the SQL for both."""

from pathlib import Path

from services.provisioner.domain import DatabaseRole
from services.provisioner.drivers.postgres_process import HOST

SUPERUSER = "postgres"
GUARD = "guard"
DATABASE = "app"
MAINTENANCE = "postgres"

# Passwords only, over the loopback interface only, to each role its own database only.
ACCESS = f"""\
host {DATABASE} {DatabaseRole.READER},{DatabaseRole.WRITER} {HOST}/32 scram-sha-256
host {MAINTENANCE} {SUPERUSER},{GUARD} {HOST}/32 scram-sha-256
"""


def scripts() -> tuple[tuple[str, str], ...]:
    """Returns pairs of a database and the SQL to run in it, in order.

    In Postgres's single-user mode a statement ends with a semicolon before an empty line.
    """
    folder = Path(__file__).parent / "local_sql"
    return (
        (MAINTENANCE, (folder / "roles.sql").read_text()),
        (MAINTENANCE, (folder / "guard.sql").read_text()),
        (DATABASE, (folder / "app.sql").read_text()),
    )
