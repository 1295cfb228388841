"""A service's own certificate while it runs: used when its files are whole, without a lost call."""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from structlog.testing import capture_logs

from deploy.local.pki import CERTIFICATE_LIFE, Paths, certificates, forget, reissue, succeed
from deploy.local.ports import LOOPBACK
from services.shared.channel import open_channel
from services.shared.clock import Clock, utc_now
from services.shared.identity import WatchedIdentity, open_identity
from services.shared.settings import UnusableFileError
from services.shared.tls import Identity, channel_credentials
from tests.renewals import (
    Beholder,
    beheld,
    checking,
    constant,
    identity_in,
    replaced,
    serial,
    serial_at,
    serial_in,
    until,
    watching,
)

SERVICES = ("auth", "edge")
NO_USE = "new certificate of no use, the old one stays"


def later(by: timedelta) -> Clock:
    return lambda: utc_now() + by


EXPIRED = later(-2 * CERTIFICATE_LIFE)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    certificates(tmp_path / "pki", SERVICES)
    return tmp_path / "pki"


@pytest.fixture
def pki(home: Path) -> Mapping[str, Paths]:
    return certificates(home, SERVICES)


def events(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


async def test_no_call_is_lost_while_both_ends_get_new_certificates(
    home: Path, pki: Mapping[str, Paths]
) -> None:
    beholder = Beholder()
    async with (
        open_identity(watching(pki["auth"])) as auth,
        beheld(lambda: auth.current, beholder) as port,
        open_channel(watching(pki["edge"]), "auth", f"{LOOPBACK}:{port}") as channel,
        constant(checking(channel)) as calls,
    ):
        for _ in range(3):
            reissue(home, SERVICES)
            await until(lambda: beholder.serials[-1] == serial_in(pki["edge"]))
            await until(lambda: serial(auth.current.certificate) == serial_in(pki["auth"]))
            assert await serial_at(port, pki["edge"]) == serial_in(pki["auth"])
            await calls.more()
    assert len(set(beholder.serials)) == 4


async def test_no_call_is_lost_while_an_authority_follows_another(
    home: Path, pki: Mapping[str, Paths]
) -> None:
    beholder = Beholder()
    async with (
        open_identity(watching(pki["auth"])) as auth,
        open_identity(watching(pki["edge"])) as edge,
        beheld(lambda: auth.current, beholder) as port,
        open_channel(watching(pki["edge"]), "auth", f"{LOOPBACK}:{port}", identity=edge) as channel,
        constant(checking(channel)) as calls,
    ):
        old = edge.current
        for change in (succeed, partial(reissue, services=SERVICES), forget):
            change(home)
            await until(lambda: auth.current == identity_in(pki["auth"]))
            await until(lambda: edge.current == identity_in(pki["edge"]))
            await calls.more()
        await until(lambda: beholder.serials[-1] == serial_in(pki["edge"]))
        # The old authority is believed no more, though whoever it issued to believes the new one.
        foreign = Identity(old.certificate, old.key, edge.current.authority)
        assert await refusal(port, foreign) is grpc.StatusCode.UNAVAILABLE


async def refusal(port: int, identity: Identity) -> grpc.StatusCode:
    options = [("grpc.ssl_target_name_override", "auth"), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(
        f"{LOOPBACK}:{port}", channel_credentials(identity), options=options
    ) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await checking(channel)()
    return caught.value.code()


async def test_a_stream_outlives_the_certificate_that_it_was_opened_with(
    home: Path, pki: Mapping[str, Paths]
) -> None:
    beholder, auth = Beholder(), identity_in(pki["auth"])
    async with (
        beheld(lambda: auth, beholder) as port,
        open_channel(watching(pki["edge"]), "auth", f"{LOOPBACK}:{port}") as channel,
    ):
        stub: Any = HealthStub(channel)
        stream = aiter(stub.Watch(HealthCheckRequest()))
        await anext(stream)
        reissue(home, ["edge"])
        async with constant(checking(channel), callers=1):
            await until(lambda: beholder.serials[-1] == serial_in(pki["edge"]))
        beholder.go_on.set()
        assert await anext(stream)
        assert [message async for message in stream] == []


async def test_an_old_connection_is_kept_until_the_new_certificate_is_let_in(
    home: Path, pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    beholder, auth = Beholder(), identity_in(pki["auth"])
    before = serial_in(pki["edge"])
    beheld_by = [auth]
    async with (
        open_identity(watching(pki["edge"])) as edge,
        beheld(lambda: beheld_by[-1], beholder) as port,
        open_channel(watching(pki["edge"]), "auth", f"{LOOPBACK}:{port}", identity=edge) as channel,
        constant(checking(channel)) as calls,
    ):
        # The other side does not know the authority that has issued the new certificate.
        succeed(home)
        reissue(home, ["edge"])
        await until(lambda: edge.current == identity_in(pki["edge"]))
        await calls.more(100)
        assert set(beholder.serials) == {before}
        beheld_by.append(identity_in(pki["auth"]))
        await until(lambda: beholder.serials[-1] == serial_in(pki["edge"]))


async def test_half_of_a_pair_is_waited_for(pki: Mapping[str, Paths], tmp_path: Path) -> None:
    other = certificates(tmp_path / "other", SERVICES)["auth"]
    shutil.copy(pki["auth"].authority, other.authority)
    new = reissue(tmp_path / "other", ["auth"])["auth"]
    identity = WatchedIdentity(watching(pki["auth"]))
    before = identity.current
    with capture_logs() as logs:
        shutil.copy(new.key, pki["auth"].key)
        identity.look()
        assert identity.current is before
        assert not logs
        shutil.copy(new.authority, pki["auth"].authority)
        shutil.copy(new.certificate, pki["auth"].certificate)
        identity.look()
    assert identity.current == identity_in(new)
    assert [line["event"] for line in logs] == ["certificate renewed"]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(
            lambda paths, _: shutil.copy(paths["edge"].key, paths["auth"].key),
            "the key is not the certificate's",
            id="another-key",
        ),
        pytest.param(
            lambda paths, _: paths["auth"].certificate.write_text("-----BEGIN CERT"),
            "the certificate is not whole, or no PEM",
            id="half",
        ),
        pytest.param(
            lambda paths, _: reissue(paths["auth"].key.parent, ["auth"], clock=EXPIRED),
            "the certificate has expired on",
            id="expired",
        ),
        pytest.param(
            lambda paths, _: reissue(
                paths["auth"].key.parent, ["auth"], clock=later(timedelta(days=2))
            ),
            "the certificate is not valid before",
            id="not-yet-valid",
        ),
        pytest.param(
            lambda paths, foreign: [
                shutil.copy(foreign.key, paths["auth"].key),
                shutil.copy(foreign.certificate, paths["auth"].certificate),
            ],
            "the certificate is of none of the authorities",
            id="foreign",
        ),
        pytest.param(
            lambda paths, _: paths["auth"].key.unlink(), "No such file or directory", id="missing"
        ),
    ],
)
def test_what_is_of_no_use_is_not_used_and_said_once(
    pki: Mapping[str, Paths], tmp_path: Path, spoil: Any, problem: str
) -> None:
    foreign = certificates(tmp_path / "foreign", ["auth"])["auth"]
    identity = WatchedIdentity(watching(pki["auth"]))
    before = identity.current
    with capture_logs() as logs:
        spoil(pki, foreign)
        for _ in range(5):
            identity.look()
    assert identity.current is before
    (line,) = logs
    assert line["event"] == NO_USE
    assert problem in line["problem"]
    with pytest.raises(UnusableFileError, match=problem):
        WatchedIdentity(watching(pki["auth"]))


def test_a_link_to_new_files_is_followed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        certificates(tmp_path / name, SERVICES)
    (tmp_path / "now").symlink_to(tmp_path / "one")
    mounted, upcoming = (
        Paths(home / "auth.pem", home / "auth.key", home / "ca.pem")
        for home in (tmp_path / "now", tmp_path / "two")
    )
    identity = WatchedIdentity(watching(mounted))
    replaced(mounted, upcoming)
    identity.look()
    assert identity.current == identity_in(upcoming)


def test_the_end_of_a_certificate_is_announced(pki: Mapping[str, Paths]) -> None:
    now = [utc_now()]
    identity = WatchedIdentity(watching(pki["auth"]), lambda: now[0])
    with capture_logs() as logs:
        for part in (0.6, 0.7, 0.8, 1.1, 1.2):
            now[0] = identity.life.begins + part * CERTIFICATE_LIFE
            identity.look()
    assert [line["event"] for line in logs] == ["certificate near its end", "certificate expired"]


async def test_a_certificate_that_is_issued_by_another_in_its_file_is_used(
    pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    # The authority's own certificate behind it is what leads from one to the other.
    chain = tmp_path / "chain.pem"
    chain.write_bytes(pki["auth"].certificate.read_bytes() + pki["auth"].authority.read_bytes())
    files = Paths(chain, pki["auth"].key, pki["auth"].authority)
    assert WatchedIdentity(watching(files)).current == identity_in(files)


def test_the_certificate_of_another_service_is_not_used(pki: Mapping[str, Paths]) -> None:
    identity = WatchedIdentity(watching(pki["auth"]))
    before = identity.current
    with capture_logs() as logs:
        shutil.copy(pki["edge"].key, pki["auth"].key)
        shutil.copy(pki["edge"].certificate, pki["auth"].certificate)
        for _ in range(5):
            identity.look()
    assert identity.current is before
    (line,) = logs
    assert (line["event"], line["problem"]) == (NO_USE, "the certificate is of another service")
