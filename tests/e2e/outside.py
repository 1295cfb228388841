"""The stack as its users have it: the command line, HTTP and MCP, nothing else."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from deploy.local.ports import RANGE_VARIABLE
from tests.warm_commands import WarmCommands

BULKHEAD = Path(sys.executable).parent / "bulkhead"


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        assert self.code == 0, self.err
        return json.loads(self.out)


async def run(
    *arguments: str, key: str | None = None, api: str | None = None, given: str | None = None
) -> Ran:
    """Runs `bulkhead` as a user would; it reads `given` from its standard input."""
    ended = await WarmCommands.found().run(arguments, _environment(key, api), given)
    return Ran(ended.code, ended.out, ended.err)


async def run_anew(*arguments: str, key: str | None = None, api: str | None = None) -> Ran:
    """Runs `bulkhead` from its file, as a shell does."""
    process = await asyncio.create_subprocess_exec(
        str(BULKHEAD),
        *arguments,
        env=_environment(key, api),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    return Ran(process.returncode or 0, out.decode(), err.decode())


def _environment(key: str | None, api: str | None) -> dict[str, str]:
    """Returns what a user's shell has, and nothing of the tests."""
    own = {"BULKHEAD_KEY": key, "BULKHEAD_API": api}
    of_shell = {name: os.environ.get(name) for name in ("PATH", "HOME", RANGE_VARIABLE)}
    return {name: value for name, value in (of_shell | own).items() if value}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer, by the command line."""

    stack: "Stack"
    key: str

    async def run(self, *arguments: str, given: str | None = None) -> Ran:
        """Runs `bulkhead` with the tenant's key."""
        return await run(*arguments, key=self.key, api=self.stack.api, given=given)

    async def deployment(
        self, name: str = "notes", parts: Sequence[str] = ("--mcp", "--database")
    ) -> "Deployment":
        """Returns a new deployment, with MCP and a database unless told, and a key of its own."""
        made = (await self.run("deployment", "create", name, *parts, "--json")).json
        issued = (
            await self.run("key", "issue", "--deployment", made["deployment_id"], "--json")
        ).json
        return Deployment(
            self, made["deployment_id"], made["host"], issued["key"], issued["key_id"]
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment and a key of its own."""

    tenant: Tenant
    deployment_id: str
    host: str
    key: str
    key_id: str

    @asynccontextmanager
    async def agent(self, key: str | None = None) -> AsyncIterator[Client]:
        """Yields an official MCP client, as an agent has it."""
        async with (
            http_client(key or self.key) as http,
            Client(
                streamable_http_client(
                    f"http://{self.host}:{self.tenant.stack.port}/mcp", http_client=http
                )
            ) as client,
        ):
            yield client

    async def get(self, path: str, key: str | None = None, **headers: str) -> httpx2.Response:
        """Returns the answer to a plain request with `key`; without one when it is empty."""
        async with http_client(self.key if key is None else key) as http:
            return await http.get(
                f"http://{self.host}:{self.tenant.stack.port}{path}", headers=headers
            )


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack."""

    state: Path
    api: str
    edge: str
    operator_key_file: Path

    @property
    def port(self) -> int:
        """Where the front door listens."""
        return int(self.edge.rsplit(":", 1)[1])

    async def tenant(self, plan: str = "pro") -> Tenant:
        """Returns a new tenant."""
        made = await run(
            "tenant", "create", "acme", "--plan", plan, "--json",
            "--key-file", str(self.operator_key_file), api=self.api,
        )  # fmt: skip
        return Tenant(self, made.json["key"])

    async def status(self) -> Any:
        """Returns what `bulkhead status` says; it exits with 1 while a part is not healthy."""
        return json.loads((await run("status", "--json", "--state", str(self.state))).out)

    async def pid(self, name: str) -> int | None:
        """Returns the process that is `name` now; None while there is none."""
        processes = (await self.status())["processes"]
        pid: int | None = next(each["pid"] for each in processes if each["name"] == name)
        return pid

    async def kill(self, name: str) -> int:
        """Kills the process that is `name`, and returns which it was."""
        pid = await self.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid


@asynccontextmanager
async def running_stack(state: Path, *options: str) -> AsyncIterator[Stack]:
    """Yields a stack in `state`, started and ended by the command line."""
    started = await run_anew("up", "--detach", "--json", "--state", str(state), *options)
    try:
        printed = started.json
        yield Stack(state, printed["api"], printed["edge"], Path(printed["operator_key_file"]))
    finally:
        await run_anew("down", "--purge", "--state", str(state))


class _Loopback(httpx2.AsyncHTTPTransport):
    """Reaches any `*.localhost`, which not every machine's resolver knows, at 127.0.0.1."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


def http_client(key: str = "") -> httpx2.AsyncClient:
    """Returns a client that presents `key`; the Host header stays the deployment's."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.AsyncClient(transport=_Loopback(), headers=headers, timeout=20)


def texts(result: Any) -> str:
    """Returns the text of a tool's answer."""
    return "\n".join(item.text for item in result.content)


def problem(response: httpx2.Response) -> tuple[int, str]:
    """Returns status and reason of a refusal, which must be a problem document."""
    assert response.headers["content-type"].startswith("application/problem+json"), response.text
    body = response.json()
    assert body["status"] == response.status_code
    return response.status_code, body["reason"]
