"""Vends on their way into the audit log, before any of them leaves (P-33)."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.credentials.ports import AuditRecord, AuditTrail
from services.shared.coalesce import Coalescer
from services.shared.crypto import TenantCipher
from services.shared.errors import Reason, UnauthenticatedError, UnavailableError

# What auth takes at once.
_MOST_RECORDS = 256
_FINGERPRINT_LENGTH = 32


@dataclass(frozen=True, slots=True)
class _Call:
    """The vends of one call: they leave together, or none does."""

    records: Sequence[AuditRecord]


class VendAudit:
    """Writes vends down, those of concurrent calls together."""

    def __init__(self, trail: AuditTrail) -> None:
        self._trail = trail
        self._write: Coalescer[_Call, Sequence[bool]] = Coalescer(
            self._written, most=_MOST_RECORDS, weigh=lambda call: len(call.records)
        )

    async def record(self, records: Sequence[AuditRecord]) -> None:
        """Returns once every one of the call's vends is written.

        Raises:
            UnauthenticatedError: the key is not valid any more.
            UnavailableError: they cannot be written now, so nothing may be vended.
        """
        if not records:
            return
        try:
            written = await self._write(_Call(records))
        except UnavailableError as error:
            raise UnavailableError(
                "the audit log cannot be written, so nothing was vended", Reason.AUDIT_UNAVAILABLE
            ) from error
        if not all(written):
            raise UnauthenticatedError

    async def _written(self, calls: Sequence[_Call]) -> Sequence[Sequence[bool]]:
        records = [record for call in calls for record in call.records]
        written = iter(await self._trail.record(records))
        return [[next(written) for _ in call.records] for call in calls]


def fingerprint(cipher: TenantCipher, token: str) -> str:
    """Returns the name under which a tenant's audit log knows the token: `tok_…`.

    A hash under the tenant's data key, so that only who has the token can find its vends.
    """
    return f"tok_{cipher.keyed_hash('token', token).hex()[:_FINGERPRINT_LENGTH]}"
