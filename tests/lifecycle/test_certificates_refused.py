"""Certificates that are not to be believed, on either side: refused, and said what is wrong."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from deploy.envoy.settings import Address
from deploy.local.envoy import front_door
from deploy.local.pki import CERTIFICATE_LIFE, Paths, certificates, reissue
from deploy.local.ports import LOOPBACK
from services.shared.channel import open_channel
from services.shared.clock import utc_now
from services.shared.tls import Identity, channel_credentials
from tests.contracts import ROOT
from tests.lifecycle.envoy_doubles import settings_of
from tests.renewals import (
    PATIENCE_SECONDS,
    Beholder,
    beheld,
    checking,
    identity_in,
    until,
    watching,
)

SERVICES = ("auth", "ratelimit", "edge")
CALL = "/bulkhead.auth.v1.AuthService/GetTenant"


@pytest.fixture
def pki(tmp_path: Path) -> Mapping[str, Paths]:
    return certificates(tmp_path / "pki", SERVICES)


@pytest.fixture
def foreign(tmp_path: Path) -> Mapping[str, Paths]:
    return certificates(tmp_path / "foreign", SERVICES)


def expire(pki: Mapping[str, Paths], service: str) -> None:
    reissue(pki[service].key.parent, [service], clock=lambda: utc_now() - 2 * CERTIFICATE_LIFE)


async def told(settings: Any, port: int) -> str:
    """Returns what a service that calls auth at the port says to be wrong."""
    with capture_logs() as logs:
        async with open_channel(settings, "auth", f"{LOOPBACK}:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await checking(channel)()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            # Others in this process log as well.
            refused = partial(said_of, logs, "certificate refused", "auth")
            await until(lambda: bool(refused()))
    (line,) = refused()
    return str(line["problem"])


def said_of(
    logs: Sequence[MutableMapping[str, Any]], event: str, service: str
) -> list[MutableMapping[str, Any]]:
    return [line for line in logs if (line["event"], line.get("service")) == (event, service)]


async def test_an_expired_server_is_refused(pki: Mapping[str, Paths]) -> None:
    expire(pki, "auth")
    expired = identity_in(pki["auth"])
    async with beheld(lambda: expired, Beholder()) as port:
        problem = await told(watching(pki["edge"]), port)
    assert problem == "the other side's certificate: certificate has expired"


async def test_a_server_of_another_authority_is_refused(
    pki: Mapping[str, Paths], foreign: Mapping[str, Paths]
) -> None:
    stranger = identity_in(foreign["auth"])
    async with beheld(lambda: stranger, Beholder()) as port:
        problem = await told(watching(pki["edge"]), port)
    assert problem == "the other side's certificate: unable to get local issuer certificate"


async def test_a_server_of_another_name_is_refused(pki: Mapping[str, Paths]) -> None:
    other = identity_in(pki["ratelimit"])
    async with beheld(lambda: other, Beholder()) as port:
        problem = await told(watching(pki["edge"]), port)
    assert problem == "the other side's certificate is of another service"


async def test_a_client_whom_the_server_does_not_believe_is_told_so(
    pki: Mapping[str, Paths], foreign: Mapping[str, Paths]
) -> None:
    # It is of one of the authorities that the client believes, but not of the server's.
    auth, beholder = identity_in(pki["auth"]), Beholder()
    both = pki["edge"].authority.read_bytes() + foreign["edge"].authority.read_bytes()
    foreign["edge"].authority.write_bytes(both)
    async with beheld(lambda: auth, beholder) as port:
        problem = await told(watching(foreign["edge"]), port)
    assert problem.startswith("the other side ends the handshake")
    assert not beholder.serials


async def test_a_server_names_what_is_wrong_with_its_callers(
    pki: Mapping[str, Paths], foreign: Mapping[str, Paths]
) -> None:
    async with server_in_a_process(pki["auth"]) as process:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        expire(pki, "edge")
        for files, problem in (
            (foreign["edge"], b"unable to get local issuer certificate"),
            (pki["edge"], b"certificate has expired"),
        ):
            shown = replace(identity_in(files), authority=pki["auth"].authority.read_bytes())
            assert await is_refused(port, shown)
            await said(process, b"CERTIFICATE_VERIFY_FAILED: " + problem)


@asynccontextmanager
async def server_in_a_process(files: Paths) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.beholding_process"),
        *(str(file) for file in (files.certificate, files.key, files.authority)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield process
    finally:
        process.terminate()
        await process.wait()


async def said(process: asyncio.subprocess.Process, words: bytes) -> None:
    assert process.stderr is not None
    while words not in (line := await process.stderr.readline()):
        assert line, "it has ended"


async def is_refused(port: int, identity: Identity) -> bool:
    options = [("grpc.ssl_target_name_override", "auth"), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(
        f"{LOOPBACK}:{port}", channel_credentials(identity), options=options
    ) as channel:
        try:
            await checking(channel)()
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


async def test_the_front_door_says_why_it_cannot_reach_a_service(
    pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    expire(pki, "auth")
    auth = identity_in(pki["auth"])
    async with beheld(lambda: auth, Beholder()) as port:
        settings = settings_of(pki, tmp_path)
        services = {**settings.services, "auth": Address(LOOPBACK, port)}
        settings = replace(settings, services=services)
        async with (
            front_door(tmp_path, settings),
            grpc.aio.insecure_channel(str(settings.listen)) as channel,
        ):
            call: Any = channel.unary_unary(CALL)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await until(lambda: bool(settings.access_log.read_text()))
    line = json.loads(settings.access_log.read_text().splitlines()[0])
    assert line["upstream"] == "auth"
    assert "CERTIFICATE_VERIFY_FAILED" in line["upstream_failure"]
