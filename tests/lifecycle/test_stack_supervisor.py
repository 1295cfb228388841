"""The supervisor over small processes: restarts, refusals, and nothing left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import psutil
import pytest

from deploy.local.files import ensure_private, new_secret
from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK, free_ports, is_free, keep_or_pick
from deploy.local.processes import Alive, Program, Supervised, identified, tail
from deploy.local.record import leftovers, read_record, write_record
from deploy.local.supervisor import (
    AlreadyRunningError,
    StartError,
    Supervisor,
    end_processes,
    sole_supervisor,
)
from deploy.local.waiting import until

SECONDS = 20.0
# Listens where it is told to, and ignores SIGTERM when it is told to.
SERVER = """
import signal, socket, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    listener.accept()[0].close()
"""


def program(home: Path, *arguments: str, code: str = SERVER, patience: float = 10.0) -> Program:
    port = free_ports(1)[0]

    async def probe() -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError:
            return False
        writer.close()
        return True

    return Program(
        name="server",
        command=(sys.executable, "-I", "-c", code, str(port), *arguments),
        log=home / "server.log",
        address=f"{LOOPBACK}:{port}",
        probe=probe,
        patience=patience,
    )


@asynccontextmanager
async def supervised(one: Program) -> AsyncIterator[Supervised]:
    kept = Supervised(one, lambda: None)
    supervisor = Supervisor(lambda: None)
    try:
        await supervisor.start([kept], monotonic() + SECONDS, lambda _: None)
        yield kept
    finally:
        await supervisor.stop([one.name])


def holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return condition()

    return asked


async def test_a_killed_process_is_started_again(tmp_path: Path) -> None:
    one = program(tmp_path)
    async with supervised(one) as kept:
        assert kept.alive
        first = kept.alive.pid
        os.kill(first, signal.SIGKILL)
        await until(holds(lambda: kept.alive is not None and kept.alive.pid != first), SECONDS)
        await until(one.probe, SECONDS)
        assert kept.restarts == 1
        assert "supervisor: server ended with -9" in tail(one.log)


async def test_nothing_is_left_when_it_is_told_to_end(tmp_path: Path) -> None:
    one = program(tmp_path)
    async with supervised(one) as kept:
        alive = kept.alive
    assert alive
    assert alive.process() is None
    assert not await one.probe()


async def test_a_process_that_does_not_listen_to_sigterm_is_killed(tmp_path: Path) -> None:
    one = program(tmp_path, "deaf", patience=0.2)
    async with supervised(one) as kept:
        alive = kept.alive
    assert alive
    assert alive.process() is None
    assert kept.exit_code == -signal.SIGKILL


async def test_a_process_that_keeps_dying_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    one = program(tmp_path, code="print('no such table', flush=True); raise SystemExit(1)")
    with pytest.raises(StartError, match="no such table"):
        async with supervised(one):
            pytest.fail("it was called healthy")


async def test_wrong_settings_are_given_up_at_once(tmp_path: Path) -> None:
    one = program(tmp_path, code="print('BULKHEAD_LISTEN: bad'); raise SystemExit(2)")
    with pytest.raises(StartError, match="BULKHEAD_LISTEN: bad") as refused:
        async with supervised(one):
            pytest.fail("it was called healthy")
    assert "ended with 2" in str(refused.value)


async def test_a_process_has_the_environment_it_was_given_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_KEY", "a key of the person at the terminal")
    code = f"import os; print(sorted(os.environ), oct(os.umask(0)), flush=True)\n{SERVER}"
    one = program(tmp_path, code=code)
    async with supervised(one):
        words = tail(one.log)
    assert "BULKHEAD_KEY" not in words
    assert "0o77" in words
    assert one.log.stat().st_mode & 0o777 == 0o600


async def test_children_of_a_killed_supervisor_end(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path.cwd())!r})
from tests.lifecycle.test_stack_supervisor import program, supervised

async def main():
    async with supervised(program(Path({str(tmp_path)!r}))) as kept:
        print(kept.alive.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert supervisor.stdout
    child = identified(int(await supervisor.stdout.readline()))
    assert child
    supervisor.kill()
    await supervisor.wait()
    await until(holds(lambda: child.process() is None), SECONDS)


async def test_what_a_dead_supervisor_left_is_known_and_ended(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path / "state")
    layout.make()
    async with supervised(program(tmp_path, "deaf", patience=0.1)) as kept:
        write_record(layout, [kept], ready=True)
        record = read_record(layout)
        assert record
        assert record.ready
        assert record.supervised
        assert leftovers(layout) == [kept.alive]


async def test_only_the_very_process_is_ended_not_one_that_has_its_id_now() -> None:
    own = psutil.Process()
    await end_processes([Alive(own.pid, own.create_time() - 100)], seconds=0.1)
    assert Alive(own.pid, own.create_time()).process() is not None


def test_one_state_is_never_started_twice(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with sole_supervisor(lock), pytest.raises(AlreadyRunningError), sole_supervisor(lock):
        pytest.fail("two supervisors")
    with sole_supervisor(lock):
        assert lock.stat().st_mode & 0o777 == 0o600


def test_ports_are_kept_while_they_are_free() -> None:
    kept = keep_or_pick({}, ["a", "b"])
    more = keep_or_pick(kept, ["a", "b", "c"])
    assert more == kept | {"c": more["c"]}
    assert len(set(more.values())) == 3


async def test_a_port_that_was_taken_meanwhile_is_picked_anew() -> None:
    kept = keep_or_pick({}, ["a", "b"])
    taken = await asyncio.start_server(lambda *_: None, LOOPBACK, kept["a"])
    async with taken:
        assert not is_free(kept["a"])
        picked = keep_or_pick(kept, ["a", "b"])
    assert picked["a"] != kept["a"]
    assert picked["b"] == kept["b"]


def test_a_secret_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    first = ensure_private(file, new_secret)
    file.chmod(0o644)
    assert ensure_private(file, new_secret) == first
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(first) >= 43
