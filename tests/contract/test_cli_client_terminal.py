"""What commands do at a terminal: they ask before they delete, and Ctrl-C is no fault."""

import asyncio
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from tests.scripted_api import COMMAND_SECONDS, KEY, PROGRAM, ScriptedApi

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
            "BULKHEAD_KEY": KEY,
            "BULKHEAD_API": f"127.0.0.1:{api.port}",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **streams,
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
