"""What credentials does, by subject."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CredentialsService:
    """Connections, bindings and vends, over one database."""
