"""The two roles of a deployment's database, and where it is reached."""

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """`bulkhead.provisioner.v1.DatabaseRole`."""

    READER = "reader"
    WRITER = "writer"


@dataclass(frozen=True, slots=True)
class Address:
    """How one role of one deployment's database is reached."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(repr=False)
    # Of the server's certificate, as PEM; empty: it has none, and is on this machine.
    authority: str = ""
