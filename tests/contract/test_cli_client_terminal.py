"""What commands do at a terminal: they ask before they delete, and Ctrl-C is no fault."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from tests.scripted_api import COMMAND_SECONDS, KEY, PROGRAM, ScriptedApi, time

DEPLOYMENT = "dep_" + "1" * 26
RUNNING = pb.Operation(
    operation_id="op_1",
    deployment_id=DEPLOYMENT,
    state=pb.OPERATION_STATE_RUNNING,
    step="uncounting",
)
DELETE = ("deployment", "delete", DEPLOYMENT)
# Says when it is about to import what a command needs, and goes on once it was interrupted.
SLOWLY = """
import sys
from cli.__main__ import main

class Finder:
    def find_spec(self, name, *_):
        if name == "cli.program":
            print("importing", flush=True)
            sys.stdin.read()

sys.meta_path.insert(0, Finder())
main()
"""


@asynccontextmanager
async def started(
    api: ScriptedApi, *arguments: str, program: str = PROGRAM, **streams: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Yields a command in a process of its own, which is ended with the context."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "COLUMNS": "",
            "BULKHEAD_KEY": KEY,
            "BULKHEAD_API": f"127.0.0.1:{api.port}",
        },
        **{"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **streams},
    )
    try:
        async with asyncio.timeout(COMMAND_SECONDS):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def scripted(api: ScriptedApi) -> None:
    api.answers["DeleteDeployment"] = pb.DeleteDeploymentResponse(operation=RUNNING)
    api.answers["WaitOperation"] = [pb.WaitOperationResponse(operation=RUNNING)]


async def test_ctrl_c_while_waiting_says_that_it_goes_on(api: ScriptedApi) -> None:
    scripted(api)
    async with started(api, *DELETE, stdin=asyncio.subprocess.DEVNULL) as process:
        while not api.requests("WaitOperation"):
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert process.returncode == 130
    lines = err.decode().splitlines()
    assert f"it goes on; see: bulkhead deployment get {DEPLOYMENT}" in lines
    assert "Traceback" not in err.decode()


async def test_ctrl_c_while_a_command_begins_is_no_traceback(api: ScriptedApi) -> None:
    async with started(api, *DELETE, program=SLOWLY, stdin=asyncio.subprocess.PIPE) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert not api.asked


async def test_a_deployment_is_deleted_at_a_terminal_after_a_yes_alone(api: ScriptedApi) -> None:
    scripted(api)
    near, far = pty.openpty()
    try:
        async with started(api, *DELETE, "--no-wait", stdin=far) as process:
            os.write(near, b"n\n")
            _, err = await process.communicate()
        assert (process.returncode, api.asked) == (1, [])
        assert b"backups will be gone for good" in err
        async with started(api, *DELETE, "--no-wait", stdin=far) as process:
            os.write(near, b"y\n")
            await process.communicate()
    finally:
        os.close(near)
        os.close(far)
    assert process.returncode == 0
    assert len(api.requests("DeleteDeployment")) == 1


@pytest.mark.parametrize("columns", [80, 100])
async def test_long_lists_fit_the_terminal(api: ScriptedApi, columns: int) -> None:
    event = auth_pb.AuditEvent(
        sequence=1,
        time=time(),
        method="bulkhead.provisioner.v1.ProvisionerService/CreateDeployment",
        key_id="key_" + "1" * 26,
        peer="edge",
        trace_id="a" * 32,
        resources={"deployment": DEPLOYMENT},
    )
    key = auth_pb.Key(
        key_id="key_" + "1" * 26,
        deployment_id=DEPLOYMENT,
        name="a name of many words",
        scopes=["mcp:call", "db:write"],
        create_time=time(),
        expire_time=time(),
        last_use_time=time(),
    )
    api.answers["ListAuditEvents"] = auth_pb.ListAuditEventsResponse(events=[event])
    api.answers["ListKeys"] = auth_pb.ListKeysResponse(keys=[key])
    for command in (("audit", "list"), ("key", "list")):
        lines = (await shown(api, columns, *command)).splitlines()
        assert any("20" in line for line in lines), lines
        assert max(map(len, lines)) <= columns


async def shown(api: ScriptedApi, columns: int, *command: str) -> str:
    """Returns what a terminal of so many columns is shown."""
    near, far = pty.openpty()
    try:
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        async with started(api, *command, stdin=far, stdout=far) as process:
            _, err = await process.communicate()
        assert process.returncode == 0, err
        return os.read(near, 65_536).decode()
    finally:
        os.close(near)
        os.close(far)
