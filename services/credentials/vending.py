"""Vending: from a key along its bindings to tokens, which are written down before they leave."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from opentelemetry import metrics

from services.credentials import vend_store as store
from services.credentials.domain import LEAST_LIFETIME
from services.credentials.last_vends import LastVends
from services.credentials.lending import Asked, Lent, check_named, choose
from services.credentials.ports import Act, AuditRecord
from services.credentials.refusals import away, not_active, suspended
from services.credentials.sealing import unreadable
from services.credentials.supply import Outcome, Supply
from services.credentials.vend_audit import VendAudit, fingerprint
from services.credentials.vended import Vended
from services.shared.clock import steady_seconds
from services.shared.crypto import UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import BulkheadError, NotFoundError
from services.shared.ids import BindingId, ConnectionId, TenantId
from services.shared.postgres import Database
from services.shared.principal import Principal
from services.shared.recording import SCOPE

_AT_ONCE = timedelta(seconds=1)
# What was chosen for an item, or why nothing was.
_Choice: TypeAlias = Lent | BulkheadError
_Source: TypeAlias = tuple[ConnectionId, BindingId | None]


@dataclass(frozen=True, slots=True)
class Presented:
    """Who asks, and in which call."""

    principal: Principal
    # SHA-256 of the presented key.
    key_digest: bytes = field(repr=False)
    peer: str
    trace_id: str


class Vending:
    """Hands out tokens to who may have them (P-33)."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        supply: Supply,
        audit: VendAudit,
        last_vends: LastVends,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._supply = supply
        self._audit = audit
        self._last_vends = last_vends
        self._vends = metrics.get_meter(SCOPE).create_counter(
            "bulkhead.credentials.vends", "{vend}", "Items of vends, by outcome."
        )

    async def vend(self, presented: Presented, items: Sequence[Asked]) -> list[Outcome]:
        """Returns, in order, a token or why there is none.

        Raises:
            InvalidFieldError: an item of a deployment's key names nothing.
            UnauthenticatedError: the key was revoked meanwhile.
            UnavailableError: the database is away, or nothing can be written down.
        """
        read_at = steady_seconds()
        choices = await self._chosen(presented.principal, items)
        lent = {_source(each): each for each in choices if isinstance(each, Lent)}
        supplied = await self._supply.supply(
            presented.principal.tenant, list(lent.values()), read_at
        )
        outcomes = _outcomes(choices, dict(zip(lent, supplied, strict=True)))
        await self._audit.record(_records(presented, items, outcomes))
        leaving = [self._leaving(outcome) for outcome in outcomes]
        for outcome, number in Counter(map(_named, leaving)).items():
            self._vends.add(number, {"outcome": outcome})
        return leaving

    async def fingerprint(self, tenant: TenantId, token: str) -> str:
        """Returns how the tenant's audit log calls the token, vended or not.

        Raises:
            NotFoundError: the tenant has nothing here that could have been vended.
            FailedPreconditionError: its data key cannot be unwrapped.
        """
        try:
            cipher = await self._data_keys.existing(tenant)
        except UnreadableError as error:
            raise unreadable() from error
        if cipher is None:
            raise NotFoundError("token")
        return fingerprint(cipher, token)

    async def _chosen(self, principal: Principal, items: Sequence[Asked]) -> list[_Choice]:
        if principal.connection_id is not None:
            async with self._database.tenant(principal.tenant) as db:
                own = await store.get_own(db, principal.connection_id)
            return [own or not_active()] * len(items)
        if principal.deployment_id is None:
            return [not_active()] * len(items)
        check_named(items)
        aliases = {item.alias for item in items if item.alias}
        providers = {item.provider for item in items if not item.alias}
        async with self._database.tenant(principal.tenant) as db:
            lent = await store.list_lent(db, principal.deployment_id, aliases, providers)
        if lent is None:
            return [suspended()] * len(items)
        return [_choice(lent, item) for item in items]

    def _leaving(self, outcome: Outcome) -> Outcome:
        if isinstance(outcome, BulkheadError):
            return outcome
        lifetime = outcome.lifetime
        if lifetime is not None and lifetime < LEAST_LIFETIME:
            return away(_AT_ONCE, "the token grew too old on its way")
        self._last_vends.note(outcome.connection_id, outcome.scope_key)
        return outcome


def _named(outcome: Outcome) -> str:
    return outcome.reason.value if isinstance(outcome, BulkheadError) else "OK"


def _choice(lent: Sequence[Lent], item: Asked) -> _Choice:
    try:
        return choose(lent, item)
    except BulkheadError as refusal:
        return refusal


def _source(lent: Lent) -> _Source:
    return lent.standing.connection_id, lent.binding_id


def _outcomes(choices: Sequence[_Choice], supplied: dict[_Source, Outcome]) -> list[Outcome]:
    return [supplied[_source(each)] if isinstance(each, Lent) else each for each in choices]


def _records(
    presented: Presented, items: Sequence[Asked], outcomes: Sequence[Outcome]
) -> list[AuditRecord]:
    return [
        AuditRecord(
            act=Act.VEND,
            key_digest=presented.key_digest,
            peer=presented.peer,
            resources=_resources(presented.principal, outcome),
            purpose=item.purpose,
            trace_id=presented.trace_id,
        )
        for item, outcome in zip(items, outcomes, strict=True)
        if isinstance(outcome, Vended)
    ]


def _resources(principal: Principal, vended: Vended) -> dict[str, str]:
    resources = {"connection": vended.connection_id, "token": vended.token_fingerprint}
    if principal.deployment_id is not None and vended.binding_id is not None:
        resources |= {"deployment": principal.deployment_id, "binding": vended.binding_id}
    return resources
