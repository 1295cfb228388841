"""The parts every service is made of, under load and at their end."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import (
    AuthServiceServicer,
    AuthServiceStub,
    add_AuthServiceServicer_to_server,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.pki import Paths, certificates
from deploy.local.ports import free_ports
from services.shared.channel import open_channel
from services.shared.deadline import time_remaining
from services.shared.errors import UnauthenticatedError, UnavailableError
from services.shared.ids import KeyId, TenantId
from services.shared.principal import Caller, KeyKind, Plan, Principal
from services.shared.runtime import read_settings
from services.shared.server import (
    Address,
    Registration,
    Service,
    UndeclaredAccessError,
    declared_access,
    serving,
)
from services.shared.settings import ServiceSettings
from services.shared.status import from_rpc_error
from services.shared.tls import Identity, channel_credentials
from tests.contracts import ROOT
from tests.mesh import bearer
from tests.refusals import expect_refused

SECRET = "postgres://user:hunter2@db/auth"
TENANT = Principal(
    KeyId("key_1"), KeyKind.TENANT, TenantId("ten_1"), None, frozenset({"tenants:read"}), Plan.FREE
)


class Anyone:
    """Knows one key, and keeps what it was asked to record."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, Mapping[str, str]]] = []
        self.audit_works = True

    async def authenticate(self, bearer: str) -> Principal:
        if bearer != "good":
            raise UnauthenticatedError
        return TENANT

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        if not self.audit_works:
            raise UnavailableError("the log is away")
        self.recorded.append((method, resources))


class Tenants(AuthServiceServicer):
    """Runs what a test puts in, as GetTenant."""

    def __init__(self, body: Callable[[], Awaitable[None]]) -> None:
        self._body = body
        self.finished = 0

    async def GetTenant(self, request: pb2.GetTenantRequest, context: Any) -> pb2.GetTenantResponse:  # noqa: N802
        try:
            await self._body()
        finally:
            self.finished += 1
        return pb2.GetTenantResponse()

    async def WatchRevocations(  # noqa: N802
        self, request: pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        yield pb2.WatchRevocationsResponse(sequence=1)
        await asyncio.Event().wait()


class Restless(Tenants):
    """Whose stream is always in the middle of a message."""

    def __init__(self, body: Callable[[], Awaitable[None]]) -> None:
        super().__init__(body)
        self.writes = asyncio.Event()

    async def WatchRevocations(  # noqa: N802
        self, request: pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        self.writes.set()
        while True:
            yield pb2.WatchRevocationsResponse(sequence=1)


def tenants_double(body: Callable[[], Awaitable[None]]) -> Tenants:
    return Tenants(body)  # type: ignore[abstract]  # the tests call two of its methods


class Running:
    """A served double of auth's contract, and stubs that call it."""

    def __init__(
        self, address: Address, settings: ServiceSettings, pki: Mapping[str, Paths]
    ) -> None:
        self.address = address
        self.settings = settings
        self._pki = pki

    def channel(self, peer: str = "edge") -> grpc.aio.Channel:
        files = self._pki[peer]
        identity = Identity.read(files.certificate, files.key, files.authority)
        return grpc.aio.secure_channel(
            f"127.0.0.1:{self.address.port}",
            channel_credentials(identity),
            options=[("grpc.ssl_target_name_override", "auth"), ("grpc.enable_retries", 0)],
        )


@asynccontextmanager
async def served(
    pki: Mapping[str, Paths],
    servicer: Any,
    anyone: Anyone | None = None,
    checks: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    anyone = anyone or Anyone()
    files = pki["auth"]
    values: dict[str, Any] = {
        "tls_cert_file": files.certificate,
        "tls_key_file": files.key,
        "tls_ca_file": files.authority,
        "drain_seconds": 0.0,
    }
    chosen = ServiceSettings(**(values | settings))
    service = Service(
        [registration(servicer)], authenticator=anyone, auditor=anyone, checks=checks or {}
    )
    async with serving(service, chosen) as address:
        yield Running(address, chosen, pki)


def registration(servicer: Any) -> Registration:
    return Registration(
        pb2.DESCRIPTOR.services_by_name["AuthService"],
        servicer,
        add_AuthServiceServicer_to_server,
    )


async def nothing() -> None:
    pass


async def test_an_unexpected_fault_tells_an_id_and_nothing_else(pki: dict[str, Paths]) -> None:
    async def fails() -> None:
        raise ValueError(SECRET)

    async with served(pki, tenants_double(fails)) as running, running.channel() as channel:
        with expect_refused("INTERNAL", "INTERNAL") as refusal:
            await AuthServiceStub(channel).GetTenant(
                pb2.GetTenantRequest(), metadata=bearer("good")
            )
        assert "hunter2" not in str(refusal.value)
        assert "err_" in str(refusal.value.details())


async def test_draining_waits_for_what_is_in_flight_and_refuses_what_is_new(
    pki: dict[str, Paths],
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        entered.set()
        await leave.wait()

    tenants = tenants_double(waits)
    stack = served(pki, tenants)
    running = await stack.__aenter__()
    async with running.channel() as channel:
        stub = AuthServiceStub(channel)
        call = asyncio.ensure_future(
            stub.GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"), timeout=20)
        )
        await entered.wait()
        draining = asyncio.ensure_future(stack.__aexit__(None, None, None))
        await asyncio.wait([draining], timeout=0.3)
        assert not draining.done()
        async with running.channel() as another:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AuthServiceStub(another).GetTenant(
                    pb2.GetTenantRequest(), metadata=bearer("good"), timeout=2
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        leave.set()
        await call
        await draining
    assert tenants.finished == 1


async def test_draining_ends_streams_at_once_and_tells_them_to_call_again(
    pki: dict[str, Paths],
) -> None:
    stack = served(pki, tenants_double(nothing), grace_seconds=30.0)
    running = await stack.__aenter__()
    async with running.channel("app_proxy") as channel:
        stream = AuthServiceStub(channel).WatchRevocations(pb2.WatchRevocationsRequest())
        events = aiter(stream)
        assert (await anext(events)).sequence == 1
        async with asyncio.timeout(30):
            await stack.__aexit__(None, None, None)
        with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await anext(events)


async def test_draining_ends_a_stream_in_the_middle_of_its_first_message(
    pki: dict[str, Paths],
) -> None:
    for _ in range(10):
        restless = Restless(nothing)  # type: ignore[abstract]
        stack = served(pki, restless, grace_seconds=60.0)
        running = await stack.__aenter__()
        async with running.channel("app_proxy") as channel:
            stream = AuthServiceStub(channel).WatchRevocations(pb2.WatchRevocationsRequest())
            reading = asyncio.create_task(read_to_the_end(aiter(stream)))
            async with asyncio.timeout(30):
                await restless.writes.wait()
                await stack.__aexit__(None, None, None)
            with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
                await reading


async def read_to_the_end(events: AsyncIterator[pb2.WatchRevocationsResponse]) -> None:
    async for _ in events:
        pass


async def test_a_handler_cancelled_by_the_grace_period_has_run_its_finally(
    pki: dict[str, Paths],
) -> None:
    entered = asyncio.Event()

    async def hangs() -> None:
        entered.set()
        await asyncio.Event().wait()

    tenants = tenants_double(hangs)
    async with served(pki, tenants, grace_seconds=0.1) as running:
        channel = running.channel()
        call = AuthServiceStub(channel).GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"))
        await asyncio.wait_for(entered.wait(), 30)
    assert tenants.finished == 1
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await channel.close()


async def test_more_calls_than_are_allowed_at_once_are_refused_but_health_is_not(
    pki: dict[str, Paths],
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        entered.set()
        await leave.wait()

    async with (
        served(pki, tenants_double(waits), max_in_flight=1) as running,
        running.channel() as channel,
    ):
        stub = AuthServiceStub(channel)
        first = asyncio.ensure_future(
            stub.GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"), timeout=10)
        )
        await entered.wait()
        with expect_refused("UNAVAILABLE", "OVERLOADED"):
            await stub.GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"))
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        leave.set()
        await first


async def test_a_deadline_travels_trimmed_and_a_hopeless_one_is_refused(
    pki: dict[str, Paths],
) -> None:
    seen: list[float | None] = []

    async def looks() -> None:
        seen.append(time_remaining())

    async with served(pki, tenants_double(looks)) as running, running.channel() as channel:
        stub = AuthServiceStub(channel)
        await stub.GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"), timeout=3)
        await stub.GetTenant(pb2.GetTenantRequest(), metadata=bearer("good"))
    assert seen[0] is not None
    assert 2 < seen[0] < 3
    assert seen[1] is None


async def test_our_channels_always_set_a_deadline(pki: dict[str, Paths]) -> None:
    seen: list[float | None] = []

    async def looks() -> None:
        seen.append(time_remaining())

    async with served(pki, tenants_double(looks)) as running:
        target = f"127.0.0.1:{running.address.port}"
        async with open_channel(running.settings, "auth", target) as channel:
            await AuthServiceStub(channel).GetTenant(
                pb2.GetTenantRequest(), metadata=bearer("good")
            )
    assert seen[0] is not None


async def test_a_channel_refuses_a_server_with_another_services_certificate(
    pki: dict[str, Paths],
) -> None:
    async with served(pki, tenants_double(nothing)) as running:
        target = f"127.0.0.1:{running.address.port}"
        async with open_channel(running.settings, "ratelimit", target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AuthServiceStub(channel).GetTenant(
                    pb2.GetTenantRequest(), metadata=bearer("good")
                )
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(from_rpc_error(caught.value), UnavailableError)


async def test_a_caller_from_another_authority_does_not_get_through(
    pki: dict[str, Paths], tmp_path: Path
) -> None:
    strangers = certificates(tmp_path / "pki", ["edge"])
    mixed = dict(pki) | {
        "edge": Paths(strangers["edge"].certificate, strangers["edge"].key, pki["edge"].authority)
    }
    async with served(pki, tenants_double(nothing)) as running:
        stranger = Running(running.address, running.settings, mixed)
        async with stranger.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AuthServiceStub(channel).GetTenant(
                    pb2.GetTenantRequest(), metadata=bearer("good"), timeout=3
                )
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_is_audited_before_does_not_run_when_it_cannot_be(
    pki: dict[str, Paths],
) -> None:
    anyone = Anyone()
    anyone.audit_works = False
    principal = Principal(
        TENANT.key_id, TENANT.kind, TENANT.tenant_id, None, frozenset({"keys:write"}), Plan.FREE
    )

    async def authenticate(bearer: str) -> Principal:
        return principal

    anyone.authenticate = authenticate  # type: ignore[method-assign]
    async with (
        served(pki, tenants_double(nothing), anyone) as running,
        running.channel() as channel,
    ):
        with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
            await AuthServiceStub(channel).RevokeKey(
                pb2.RevokeKeyRequest(key_id="key_1"), metadata=bearer("good")
            )
        anyone.audit_works = True
        with pytest.raises(grpc.aio.AioRpcError):
            await AuthServiceStub(channel).RevokeKey(
                pb2.RevokeKeyRequest(key_id="key_1"), metadata=bearer("good")
            )
    assert anyone.recorded == [("bulkhead.auth.v1.AuthService/RevokeKey", {"key": "key_1"})]


async def test_health_says_what_the_checks_say_on_both_ports(pki: dict[str, Paths]) -> None:
    broken = asyncio.Event()

    async def check() -> None:
        if broken.is_set():
            raise UnavailableError("away")

    async with served(pki, tenants_double(nothing), checks={"store": check}) as running:
        port = running.address.health_port
        async with running.channel() as channel, probe_of(port) as probe:
            serving_, not_serving = (
                health_pb2.HealthCheckResponse.SERVING,
                health_pb2.HealthCheckResponse.NOT_SERVING,
            )
            assert await health(channel) == await health(probe) == serving_
            broken.set()
            await until_health(probe, not_serving)
            assert await health(probe, "liveness") == serving_
            broken.clear()
            await until_health(probe, serving_)
            # Nothing but health is behind the port without certificates.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AuthServiceStub(probe).GetTenant(
                    pb2.GetTenantRequest(), metadata=bearer("good")
                )
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_lists_the_services(pki: dict[str, Paths]) -> None:
    async with served(pki, tenants_double(nothing)) as running, running.channel() as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # an aio channel serves too
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            names = {service.name for service in answer.list_services_response.service}
            assert "bulkhead.auth.v1.AuthService" in names
            break


async def test_a_second_server_on_the_same_port_fails_instead_of_sharing_it(
    pki: dict[str, Paths],
) -> None:
    listen = f"127.0.0.1:{free_ports(1)[0]}"
    second = served(pki, tenants_double(nothing), listen=listen)
    async with served(pki, tenants_double(nothing), listen=listen):
        with pytest.raises(RuntimeError, match="bind"):
            await second.__aenter__()


def test_a_server_does_not_start_with_a_method_that_declares_no_access() -> None:
    descriptor: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
    undeclared = Registration(descriptor, None, lambda *_: None)
    with pytest.raises(UndeclaredAccessError, match=r"grpc.health.v1.Health/"):
        declared_access(Service([undeclared], Anyone(), Anyone(), {}))


def test_a_bad_setting_is_one_line_that_names_it_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BULKHEAD_MAX_IN_FLIGHT", SECRET)
    with pytest.raises(SystemExit) as left:
        read_settings(ServiceSettings)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("BULKHEAD_MAX_IN_FLIGHT: ")
    assert printed.count("\n") == 1
    assert "hunter2" not in printed


def probe_of(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def test_a_service_that_cannot_start_says_why_in_one_line(
    pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    files = pki["auth"]
    pepper = tmp_path / "pepper"
    pepper.write_text("p" * 32)
    for settings, code, line in (
        ({"BULKHEAD_POSTGRES_PORT": str(free_ports(1)[0])}, 1, "auth cannot start: the service's"),
        ({"BULKHEAD_POSTGRES_PASSWORD_FILE": "/nowhere"}, 2, "/nowhere: No such file"),
        ({"BULKHEAD_TLS_CERT_FILE": "/nowhere"}, 2, "/nowhere: No such file"),
        (
            {"BULKHEAD_TLS_KEY_FILE": str(pki["edge"].key)},
            2,
            f"{files.certificate}: the key is not the certificate's",
        ),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.auth",
            env={
                "BULKHEAD_PEPPER_FILE": str(pepper),
                "BULKHEAD_POSTGRES_PASSWORD_FILE": "/dev/null",
                "BULKHEAD_TLS_CERT_FILE": str(files.certificate),
                "BULKHEAD_TLS_KEY_FILE": str(files.key),
                "BULKHEAD_TLS_CA_FILE": str(files.authority),
            }
            | settings,
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code
        assert err.decode().startswith(line)
        assert err.decode().count("\n") == 1


async def health(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    status: int = answer.status
    return status


async def until_health(channel: grpc.aio.Channel, wanted: int) -> None:
    async with asyncio.timeout(30):
        while await health(channel) != wanted:
            await asyncio.sleep(0.05)
