"""Attacks on vends: no token of one tenant for another's key, and none that is not written down."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.domain import LEAST_LIFETIME
from services.credentials.ports import AuditRecord
from services.credentials.refresh.terms import RefreshPoint
from services.credentials.settings import Settings
from services.shared.errors import (
    BulkheadError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from services.shared.principal import KeyKind
from tests.audit_logs import verified, whole_log
from tests.borrowers import Borrower, borrower, reason
from tests.databases import Databases
from tests.mesh import Mesh, bearer
from tests.provider_double import ProviderDouble
from tests.refusals import expect_refused
from tests.vending_replica import Ledger, lease, replica, replica_settings

VEND = "bulkhead.credentials.v1.CredentialsService/Vend"
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
async def victim(mesh: Mesh) -> Borrower:
    """A deployment that has a connection under the alias `notes`."""
    own = await borrower(mesh)
    await own.bind(await own.static(token="v1ctim"), "notes")
    return own


@pytest.fixture(scope="module")
async def settings(home: Path, databases: Databases, provider: ProviderDouble) -> Settings:
    folder = home / "vending-attacks"
    folder.mkdir()
    return replica_settings(folder, provider, await databases.fresh("credentials"))


@pytest.mark.promise("P-33")
async def test_no_key_but_the_deployments_own_is_vended_its_tokens(victim: Borrower) -> None:
    neighbour = await borrower(victim.mesh, victim.customer)
    stranger = await borrower(victim.mesh)
    await stranger.bind(await stranger.static(token="str4nger"), "notes")
    strangers_key = await stranger.connection_key(await stranger.static(token="str4nger"))
    for key in (neighbour.key, stranger.key, strangers_key):
        results = await victim.vend(
            pb2.VendItem(alias="notes"), pb2.VendItem(provider="github"), key=key
        )
        assert {each.token.token for each in results} <= {"", "str4nger"}
    assert (await victim.token("notes")).token == "v1ctim"


@pytest.mark.promise("P-41")
async def test_another_tenants_alias_and_one_that_nobody_has_are_one_answer(
    victim: Borrower,
) -> None:
    stranger = await borrower(victim.mesh)
    assert await stranger.refusal("notes") == await stranger.refusal("nobody-has-it")
    assert await stranger.refusal(provider="github") == await stranger.refusal("nobody-has-it")


@pytest.mark.promise("P-33")
async def test_keys_of_other_kinds_and_without_the_scope_vend_nothing(victim: Borrower) -> None:
    keys = {
        victim.customer.key: "KEY_KIND_REFUSED",
        victim.mesh.operator_key: "KEY_KIND_REFUSED",
    }
    weak = await victim.mesh.key(victim.customer, victim.deployment_id, ("usage:read",))
    for key, why in (keys | {weak.key: "SCOPE_MISSING"}).items():
        with expect_refused("PERMISSION_DENIED", why):
            await victim.vend(pb2.VendItem(alias="notes"), key=key)


@pytest.mark.promise("P-33")
async def test_the_tables_themselves_keep_a_tenant_from_what_another_lends(
    settings: Settings, provider: ProviderDouble
) -> None:
    async with replica(settings) as own:
        victim, attacker = [await lease(own, settings, provider) for _ in range(2)]
        stolen = replace(attacker.principal, deployment_id=victim.principal.deployment_id)
        refusal = await own.refusal(replace(attacker, principal=stolen))
        assert refusal.reason is Reason.BINDING_MISSING
        stolen = replace(
            attacker.principal, kind=KeyKind.CONNECTION, connection_id=victim.connection_id
        )
        refusal = await own.refusal(replace(attacker, principal=stolen))
        assert refusal.reason is Reason.CONNECTION_NOT_ACTIVE
        with pytest.raises(BulkheadError):
            await own.refreshes.fresh(
                replace(victim.want, tenant_id=attacker.tenant_id), LEAST_LIFETIME
            )


@pytest.mark.promise("P-33")
async def test_every_vended_token_is_found_in_its_tenants_log_and_in_no_others(
    victim: Borrower,
) -> None:
    stranger = await borrower(victim.mesh)
    # The same token, bought twice: its names tell nothing.
    await stranger.bind(await stranger.static(token="v1ctim"), "notes")
    connection = await victim.static(token="v1ctim")
    key = await victim.connection_key(connection)
    await victim.vend(pb2.VendItem(alias="notes", purpose="the weekly report"))
    await victim.vend(pb2.VendItem(), pb2.VendItem(alias="notes"), key=key)
    await stranger.token("notes")
    name, strangers = [await _fingerprint(each, "v1ctim") for each in (victim, stranger)]
    assert name != strangers
    events = await _vends(victim, name)
    first = next(event for event in events if event.reason == "the weekly report")
    assert first.resources["deployment"] == victim.deployment_id
    assert first.resources["binding"].startswith("bnd_")
    own = [event for event in events if event.resources["connection"] == connection]
    assert len(own) == 2
    assert not any({"deployment", "binding"} & set(event.resources) for event in own)
    assert len({event.key_id for event in events}) == 2
    assert len(await _vends(stranger, strangers)) == 1
    assert not await _vends(victim, strangers)
    assert not await _vends(stranger, name)
    assert not (await verified(victim.mesh, victim.customer)).problems
    log, _ = await whole_log(victim.mesh, victim.customer)
    assert "v1ctim" not in str(log)


async def _fingerprint(own: Borrower, token: str) -> str:
    answer = await own.credentials.FingerprintToken(
        pb2.FingerprintTokenRequest(token=token), metadata=bearer(own.customer.key)
    )
    return answer.token_fingerprint


async def _vends(own: Borrower, name: str) -> Sequence[auth_pb2.AuditEvent]:
    answer = await own.mesh.stub(AuthServiceStub, "auth").ListAuditEvents(
        auth_pb2.ListAuditEventsRequest(method=VEND, resource_id=name),
        metadata=bearer(own.customer.key),
    )
    return answer.events


@pytest.mark.promise("P-33")
async def test_a_refused_item_is_not_written_down_and_the_others_are(victim: Borrower) -> None:
    own = await borrower(victim.mesh)
    await own.bind(await own.static(token="0wn"), "notes")
    results = await own.vend(pb2.VendItem(alias="notes"), pb2.VendItem(alias="nobody"))
    assert reason(results[1].refusal) == "BINDING_MISSING"
    log, _ = await whole_log(own.mesh, own.customer)
    (event,) = [event for event in log if event.method == VEND]
    assert event.resources["token"] == await _fingerprint(own, "0wn")


@dataclass
class Refusing(Ledger):
    """A trail that writes nothing."""

    away: bool = True

    async def record(self, records: Sequence[AuditRecord]) -> Sequence[bool]:
        """Returns that none is written, or says that it is away."""
        if self.away:
            raise UnavailableError("auth is away")
        return [True] * (len(records) - 1) + [False]


@pytest.mark.promise("P-33")
async def test_what_cannot_be_written_down_is_not_vended(
    settings: Settings, provider: ProviderDouble
) -> None:
    ledger = Refusing()
    async with replica(settings, ledger=ledger) as own:
        lent = await lease(own, settings, provider)
        with pytest.raises(UnavailableError) as refused:
            await own.outcomes(lent, 2)
        assert refused.value.reason is Reason.AUDIT_UNAVAILABLE
        ledger.away = False
        # The key was revoked between: not even what was written leaves.
        with pytest.raises(UnauthenticatedError):
            await own.outcomes(lent, 2)


class Gate:
    """Stops refreshes before the provider is asked."""

    def __init__(self) -> None:
        self.arrived, self.open = asyncio.Event(), asyncio.Event()

    async def reached(self, point: RefreshPoint) -> None:
        """Returns when the refresh may go on."""
        if point is RefreshPoint.MARKED:
            self.arrived.set()
            await self.open.wait()


@pytest.mark.promise("P-33")
async def test_unbinding_while_a_vend_is_under_way_acts_on_the_next(
    settings: Settings, provider: ProviderDouble
) -> None:
    gate, ledger = Gate(), Ledger()
    async with replica(settings, gate, ledger) as own:
        lent = await lease(own, settings, provider)
        await own.expire(lent)
        under_way = asyncio.create_task(own.vend(lent))
        await asyncio.wait_for(gate.arrived.wait(), PATIENCE_SECONDS)
        await own.execute("DELETE FROM bindings WHERE connection_id = $1", lent.connection_id)
        assert (await own.refusal(lent)).reason is Reason.BINDING_MISSING
        gate.open.set()
        # It had its binding when it came, and is written down with it.
        assert provider.state.access_tokens[await under_way].good
        assert len(ledger.records) == 1
        assert (await own.refusal(lent)).reason is Reason.BINDING_MISSING
