"""Settings of the ratelimit service: `BULKHEAD_*`."""

from pathlib import Path

from pydantic import Field

from services.ratelimit.domain import Limits, PlanLimits
from services.ratelimit.gcra import Ceiling
from services.shared.principal import Plan
from services.shared.settings import (
    LOCAL_PKI,
    LOCAL_STATE,
    PostgresSettings,
    ServiceSettings,
    ValkeySettings,
)

# With both at most a million, every number of `acquire.lua` stays an exact double.
_MOST = 1_000_000


class Settings(ServiceSettings, PostgresSettings, ValkeySettings):
    """What each plan admits, beside what every service has."""

    listen: str = "127.0.0.1:7102"
    tls_cert_file: Path = LOCAL_PKI / "ratelimit.pem"
    tls_key_file: Path = LOCAL_PKI / "ratelimit.key"
    postgres_database: str = "ratelimit"
    postgres_user: str = "ratelimit"
    postgres_password_file: Path | None = LOCAL_STATE / "postgres/ratelimit.password"
    valkey_user: str = "ratelimit"
    valkey_password_file: Path | None = LOCAL_STATE / "valkey/ratelimit.password"

    # Sustained calls per second of one deployment.
    rate_free: int = Field(default=10, ge=1, le=_MOST)
    rate_pro: int = Field(default=100, ge=1, le=_MOST)
    rate_scale: int = Field(default=1_000, ge=1, le=_MOST)
    # Calls of one deployment that may come at once.
    burst_free: int = Field(default=20, ge=1, le=_MOST)
    burst_pro: int = Field(default=200, ge=1, le=_MOST)
    burst_scale: int = Field(default=2_000, ge=1, le=_MOST)
    # Calls of one deployment in a UTC calendar month; 0: no monthly limit.
    quota_free: int = Field(default=1_000, ge=0)
    quota_pro: int = Field(default=0, ge=0)
    quota_scale: int = Field(default=0, ge=0)
    # A file, or a folder of *.yaml, with the limits of Envoy's rate limit API; none: it is refused.
    ratelimit_config: Path | None = None
    # Seconds between two looks at it.
    ratelimit_config_seconds: float = Field(default=5.0, gt=0)
    # Seconds that Valkey may take to decide a batch; then it is taken to be away.
    valkey_patience_seconds: float = Field(default=0.8, gt=0)
    # Seconds between two looks whether Valkey is there.
    valkey_probe_seconds: float = Field(default=0.25, gt=0, le=5)
    # Seconds without Valkey for which limits are enforced here; then calls are refused.
    valkey_outage_seconds: float = Field(default=60.0, ge=0)
    # Seconds that Postgres may take to say what a month counts from; then the call is refused.
    month_patience_seconds: float = Field(default=0.8, gt=0)
    # Seconds after which what was used is written down, so that it outlives Valkey.
    checkpoint_seconds: float = Field(default=1.0, gt=0, le=60)

    def plan_limits(self) -> PlanLimits:
        """Returns the limits of every plan."""
        return {
            Plan.FREE: _limits(self.rate_free, self.burst_free, self.quota_free),
            Plan.PRO: _limits(self.rate_pro, self.burst_pro, self.quota_pro),
            Plan.SCALE: _limits(self.rate_scale, self.burst_scale, self.quota_scale),
        }


def _limits(rate: int, burst: int, quota: int) -> Limits:
    return Limits(Ceiling(rate, burst), quota or None)
