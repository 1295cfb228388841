"""The search for planted secrets finds them, so that finding none means something."""

import asyncio
import os
import sys
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

from tests.canaries import ACCESS_TOKEN, API_KEY, canary, leaked
from tests.contracts import ROOT
from tests.leaks import leaking_logs
from tests.scripted_api import COMMAND_SECONDS

# Each way by which something gets out, in a test of its own; the last one is clean.
LEAKY = """
import logging, os, subprocess, sys
import pytest, structlog
from tests.canaries import ACCESS_TOKEN

def test_print(): print("token", ACCESS_TOKEN)
def test_standard_error(): sys.stderr.write(ACCESS_TOKEN)
def test_descriptor(): os.write(2, ACCESS_TOKEN.encode().hex().encode())
def test_logging(): logging.getLogger("x").error("token %s", ACCESS_TOKEN)
def test_structlog(): structlog.get_logger().info("refreshed", token=ACCESS_TOKEN)
def test_process(): subprocess.run(["echo", ACCESS_TOKEN], check=True)

@pytest.fixture
def closing():
    yield
    print(ACCESS_TOKEN)

def test_fixture(closing): pass
def test_clean(): print("nothing to see")
"""


def test_a_canary_in_a_log_file_is_found(tmp_path: Path) -> None:
    for name, text in (("server.log", "fine"), ("server.log.1", b64encode(API_KEY.encode()))):
        (tmp_path / "within").mkdir(exist_ok=True)
        (tmp_path / "within" / name).write_text(str(text))
    assert leaking_logs(tmp_path) == [str(tmp_path / "within" / "server.log.1")]
    # What is left at the end is looked through once more.
    (tmp_path / "within" / "server.log.1").unlink()


def test_every_form_of_a_canary_is_found() -> None:
    secret = canary("x")
    for before in range(4):
        for after in range(4):
            text = b"b" * before + secret.encode() + b"a" * after
            forms = (text.decode(), text.hex(), b64encode(text), urlsafe_b64encode(text))
            assert all(leaked(str(form)) and leaked(str(form), [secret]) for form in forms)
    assert leaked("a canary, but none that was planted") == set()
    assert leaked(canary("y"), [secret]) == set()


async def test_whoever_writes_a_canary_the_test_fails(tmp_path: Path) -> None:
    file = tmp_path / "test_leaky.py"
    file.write_text(LEAKY)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-p", "tests.leaks", "-p", "no:cacheprovider", "-rA"),
        *("--rootdir", str(tmp_path), "--tb=no", "-q", str(file)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        output = (await process.communicate())[0].decode()
    assert process.returncode == 1, output.replace(ACCESS_TOKEN, "…")
    assert {line.split("::")[1].split()[0] for line in output.splitlines() if "ERROR" in line} == {
        f"test_{way}"
        for way in (
            "print",
            "standard_error",
            "descriptor",
            "logging",
            "structlog",
            "process",
            "fixture",
        )
    }
