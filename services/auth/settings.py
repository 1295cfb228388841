"""Settings of auth."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.shared.settings import LOCAL_PKI, LOCAL_STATE, PostgresSettings, ServiceSettings


class Settings(ServiceSettings, PostgresSettings):
    """Read from `BULKHEAD_*`."""

    listen: str = "127.0.0.1:7101"
    tls_cert_file: Path = LOCAL_PKI / "auth.pem"
    tls_key_file: Path = LOCAL_PKI / "auth.key"
    postgres_database: str = "auth"
    postgres_user: str = "auth"
    postgres_password_file: Path | None = LOCAL_STATE / "postgres/auth.password"
    # At least 32 bytes; without it nobody can tell from a copy of the database what a key is.
    pepper_file: Path = LOCAL_STATE / "secrets/pepper"
    # Peppers from before, separated by commas: keys under them work, and move when they are used.
    previous_pepper_files: Annotated[tuple[Path, ...], NoDecode] = ()
    # The pepper that is to come: keys that other replicas store under it work already.
    next_pepper_file: Path | None = None
    # Holds the operator's key; the key in this file is valid, and no earlier one.
    bootstrap_operator_key_file: Path | None = None
    # How long a job may act for a tenant after it was asked for.
    job_key_lifetime: timedelta = timedelta(hours=24)
    # The same where the tenant is closed: no other key could take over if its job were away longer.
    closing_key_lifetime: timedelta = timedelta(days=30)
    # How long a replica that has fallen silent may trust what it remembers of keys: the longest
    # that a revocation waits for it.
    fence: timedelta = Field(
        default=timedelta(seconds=1), ge=timedelta(milliseconds=500), le=timedelta(seconds=10)
    )

    @field_validator("previous_pepper_files", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        """Returns the paths in a text that separates them by commas."""
        if not isinstance(value, str):
            return value
        return [path.strip() for path in value.split(",") if path.strip()]
