"""Settings of auth."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

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
    # Holds the operator's key; the key in this file is valid, and no earlier one.
    bootstrap_operator_key_file: Path | None = None
    # How long a job may act for a tenant after it was asked for.
    job_key_lifetime: timedelta = timedelta(hours=24)
    # How long a replica that has fallen silent may trust what it remembers of keys: the longest
    # that a revocation waits for it.
    fence: timedelta = Field(
        default=timedelta(seconds=1), ge=timedelta(milliseconds=500), le=timedelta(seconds=10)
    )
