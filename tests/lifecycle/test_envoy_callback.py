"""The one path of the front door that people are led back to: no key, no trace, little room."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from deploy.envoy.routes import CALLBACK_PATH
from deploy.envoy.settings import Address
from deploy.local.envoy import front_door
from deploy.local.pki import Paths, certificates
from deploy.local.traces import Receiver, otlp_receiver
from tests.lifecycle.envoy_doubles import (
    SERVICES,
    Door,
    DoorKeeper,
    Recorded,
    RecordingService,
    door_of,
    grpc_server,
    http_server,
    settings_of,
)

HOST = "shop.localhost"
QUERY = f"{CALLBACK_PATH}?state=planted-state&code=planted-code"
SAMPLED = "00-{trace}-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class Traced:
    """A front door, and the spans that it makes."""

    door: Door
    receiver: Receiver


@pytest.fixture(scope="module")
def mesh_pki(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Paths]:
    return certificates(tmp_path_factory.mktemp("pki"), (*SERVICES, "edge"))


@pytest.fixture(scope="module")
async def traced(
    mesh_pki: Mapping[str, Paths], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Traced]:
    async with running(mesh_pki, tmp_path_factory.mktemp("door"), gateways=0) as traced:
        yield traced


@contextlib.asynccontextmanager
async def running(pki: Mapping[str, Paths], home: Path, gateways: int) -> AsyncIterator[Traced]:
    """Yields a front door behind so many gateways."""
    recorded = Recorded()
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(otlp_receiver())
        host, _, port = receiver.endpoint.rpartition(":")
        settings = replace(
            settings_of(pki, home),
            otlp=Address(host, int(port)),
            trusts_traces=True,
            gateways=gateways,
        )
        paths, handler = pki["app_proxy"], RecordingService("app_proxy", recorded)
        checks = settings.services["app_proxy"].port
        await stack.enter_async_context(grpc_server(paths, checks, handler, DoorKeeper(recorded)))
        http_port = settings.app_proxy_http.port
        await stack.enter_async_context(http_server(paths, http_port, recorded))
        await stack.enter_async_context(front_door(home, settings))
        yield Traced(door_of(settings, recorded), receiver)


@pytest.fixture
def door(traced: Traced) -> Door:
    recorded = traced.door.recorded
    for each in (recorded.calls, recorded.checks, recorded.requests):
        each.clear()
    return traced.door


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "localhost:9999"])
async def test_the_redirect_needs_no_key_on_the_hosts_of_the_api(door: Door, host: str) -> None:
    async with door.client() as client:
        got = await client.get(QUERY, headers={"host": host})
        sent = await client.post(CALLBACK_PATH, headers={"host": host}, content=b"state=s")
    assert (got.text, sent.text) == (f"saw {QUERY}", f"saw {CALLBACK_PATH}")
    assert not door.recorded.checks


async def test_a_deployments_own_callback_is_checked_like_any_path_of_it(door: Door) -> None:
    async with door.client() as client:
        stranger = await client.get(QUERY, headers={"host": HOST})
        assert stranger.status_code == 401
        assert not door.recorded.requests
        guest = {"host": HOST, "authorization": "Bearer good"}
        assert (await client.get(QUERY, headers=guest)).text == f"saw {QUERY}"
    assert len(door.recorded.checks) == 2


@pytest.mark.parametrize(
    "path",
    [f"{CALLBACK_PATH}/", f"{CALLBACK_PATH}/more", "/oauth", "/oauth/callbacks", "/OAUTH/callback"],
)
async def test_no_path_beside_it_is_open(door: Door, path: str) -> None:
    async with door.client() as client:
        response = await client.get(path)
    assert response.status_code == 404
    assert not door.recorded.requests


async def test_a_body_larger_than_our_form_is_refused(door: Door) -> None:
    async with door.client() as client:
        response = await client.post(CALLBACK_PATH, content=b"x" * (16 * 1024 + 1))
    assert response.status_code == 413
    assert not door.recorded.requests


async def test_neither_span_nor_access_log_holds_what_the_redirect_brings(traced: Traced) -> None:
    door, hidden, shown = traced.door, "a" * 32, "b" * 32
    async with door.client() as client:
        led_back = {
            "traceparent": SAMPLED.format(trace=hidden),
            "referer": f"https://x.test{QUERY}",
        }
        assert (await client.get(QUERY, headers=led_back)).status_code == 200
        guest = {"host": HOST, "authorization": "Bearer good"}
        guest |= {"traceparent": SAMPLED.format(trace=shown)}
        assert (await client.get("/mcp", headers=guest)).status_code == 200
    # The later one is there: so is whatever was to be of the earlier one.
    await traced.receiver.traces.wait_for(shown, lambda found: len(found) >= 2)
    assert not traced.receiver.traces.spans(hidden)
    log = await written(door.settings.access_log, '"/mcp"')
    assert '"/oauth/callback"' in log
    assert "planted" not in log


async def written(log: Path, line: str) -> str:
    """Returns the access log once `line` is in it."""
    async with asyncio.timeout(30):
        while line not in (text := await asyncio.to_thread(log.read_text)):
            await asyncio.sleep(0.05)
    return text


async def asked_until_refused(door: Door, forwarded: Callable[[int], str]) -> httpx.Response:
    """Returns the answer with which an address is told that it has asked too often."""
    async with door.client() as client:
        for number in range(40):
            response = await client.get(QUERY, headers={"x-forwarded-for": forwarded(number)})
            if response.status_code == 429:
                break
    return response


async def test_one_address_can_ask_only_so_often(door: Door) -> None:
    """Last here: it spends what this address may ask for, whatever it says that it is."""
    response = await asked_until_refused(door, lambda number: f"198.51.100.{number}")
    assert response.status_code == 429
    assert response.json()["reason"] == "OVERLOADED"
    assert int(response.headers["retry-after"]) >= 1


async def test_behind_a_gateway_each_caller_is_limited_for_himself(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    async with running(mesh_pki, tmp_path, gateways=1) as traced:
        # What the caller says of himself stands before what the gateway adds.
        response = await asked_until_refused(
            traced.door, lambda number: f"198.51.100.{number}, 203.0.113.1"
        )
        assert response.status_code == 429
        async with traced.door.client() as client:
            other = {"x-forwarded-for": "203.0.113.1, 203.0.113.2"}
            assert (await client.get(QUERY, headers=other)).status_code == 200
