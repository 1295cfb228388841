"""Valkey on a cluster: its users are those of the embedded stack, and it starts with them."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
)
from redis.exceptions import (
    ConnectionError as AwayError,
)

from deploy.local import valkey
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import until
from tests.deploy.rendered import WITH_VALKEY, Rendered

SECONDS = 30.0
PASSWORDS = {"app-proxy": "of app_proxy's own", "ratelimit": "of ratelimit's own"}


@pytest.fixture(scope="session")
def files(overlays: Mapping[str, Rendered]) -> Mapping[str, str]:
    """What is mounted, alike in both overlays."""
    one, other = (each.one("ConfigMap", "valkey")["data"] for each in overlays.values())
    assert one == other
    mounted: dict[str, str] = one
    return mounted


@pytest.fixture
def home(tmp_path: Path, files: Mapping[str, str]) -> Path:
    """The folders of the pod, as the container finds them."""
    for folder in ("bin", "configuration", "state", "data"):
        (tmp_path / folder).mkdir()
    for name, content in files.items():
        (tmp_path / "configuration" / name).write_text(content)
    for service, password in PASSWORDS.items():
        (tmp_path / "passwords" / service).mkdir(parents=True)
        (tmp_path / "passwords" / service / "password").write_text(f"{password}\n")
    (tmp_path / "bin" / "valkey-server").symlink_to(valkey.valkey_binary())
    return tmp_path


def test_the_users_are_those_of_the_embedded_stack(
    files: Mapping[str, str], tmp_path: Path
) -> None:
    valkey.configure(tmp_path, port=1)
    lines = (tmp_path / "users.acl").read_text().splitlines()
    without = [re.sub(r"^user (\w+) (.*)#[0-9a-f]{64}", r"user \1 \2#@\1@", each) for each in lines]
    assert files["users.acl"].splitlines() == without


def test_it_is_reached_by_tls_alone_and_under_the_name_that_is_looked_up(
    files: Mapping[str, str], overlays: Mapping[str, Rendered]
) -> None:
    told = dict(line.split(" ", 1) for line in files["valkey.conf"].splitlines() if line)
    assert told["port"] == "0"
    assert told["tls-auth-clients"] == "yes"
    for there in overlays.values():
        mounts = there.workloads["valkey"].container["volumeMounts"]
        (tls,) = (each["mountPath"] for each in mounts if each["name"] == "tls")
        assert told["tls-cert-file"] == f"{tls}/tls.crt"
        certificate = there.one("Certificate", "valkey")["spec"]
        for service in WITH_VALKEY:
            variables = there.variables(service)
            assert variables["BULKHEAD_VALKEY_TLS"] == "true"
            assert certificate["dnsNames"] == [variables["BULKHEAD_VALKEY_HOST"]]
            assert told["tls-port"] == variables["BULKHEAD_VALKEY_PORT"]


async def test_a_user_has_its_services_password_and_reaches_its_own_keys_alone(home: Path) -> None:
    async with running(home) as port:
        door = partial(Redis, host=LOOPBACK, port=port, retry=Retry(NoBackoff(), 0))
        async with door(username="app_proxy", password=PASSWORDS["app-proxy"]) as own:
            assert await own.set("deploy:a", "b")
            with pytest.raises(NoPermissionError):
                await own.get("limit:a")
            with pytest.raises(NoPermissionError):
                await own.keys("*")
        async with door(username="ratelimit", password=PASSWORDS["ratelimit"]) as own:
            assert await own.set("limit:a", "b")
        async with door(username="ratelimit", password=PASSWORDS["app-proxy"]) as foreign:
            with pytest.raises(AuthenticationError):
                await foreign.get("limit:a")
        async with door() as nobody:
            with pytest.raises(AuthenticationError):
                await nobody.ping()


async def test_the_probes_user_may_do_nothing_but_look(home: Path) -> None:
    async with running(home) as port:
        password = (home / "state" / "operator").read_text().strip()
        async with Redis(
            host=LOOPBACK, port=port, username=valkey.OPERATOR, password=password
        ) as probe:
            assert await probe.ping()
            with pytest.raises(NoPermissionError):
                await probe.get("deploy:a")


async def test_a_password_that_is_empty_starts_nothing(home: Path) -> None:
    (home / "passwords" / "ratelimit" / "password").write_text("\n")
    process = await started(home, free_ports(1)[0])
    async with asyncio.timeout(SECONDS):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"ratelimit/password is empty" in said
    assert not (home / "state" / "users.acl").exists()


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[int]:
    """Yields the port of a server that is ended after."""
    (port,) = free_ports(1)
    process = await started(home, port)
    try:
        await until(partial(answers, port), SECONDS)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def started(home: Path, port: int) -> asyncio.subprocess.Process:
    """Starts what the container does, in `home` instead of the pod's folders.

    The server of the wheel knows no TLS: what is said of that is left out here.
    """
    file = home / "configuration" / "valkey.conf"
    told = file.read_text().replace("/run/valkey", str(home / "state"))
    told = told.replace("dir /data", f"dir {home / 'data'}")
    kept = [line for line in told.splitlines() if not re.match(r"tls-|port ", line)]
    file.write_text("\n".join([*kept, f"port {port}", ""]))
    folders = {name.upper(): str(home / name) for name in ("configuration", "passwords", "state")}
    return await asyncio.create_subprocess_exec(
        *("sh", home / "configuration" / "start.sh"),
        env={"PATH": f"{home / 'bin'}:{os.defpath}", **folders},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def answers(port: int) -> bool:
    """Whether the server answers, if only that it does not know who asks."""
    try:
        async with Redis(host=LOOPBACK, port=port, retry=Retry(NoBackoff(), 0)) as nobody:
            return bool(await nobody.ping())
    except AuthenticationError:
        return True
    except AwayError:
        return False
