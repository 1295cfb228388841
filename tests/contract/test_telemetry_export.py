"""Where spans and figures go, and that whoever does not take them disturbs nobody."""

import asyncio
import socket
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.traces import otlp_receiver
from services.shared.errors import UnavailableError
from services.shared.prometheus import serving_metrics

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 30.0
EXPORTING = """
import sys
from opentelemetry import metrics, trace
from services.shared.settings import TelemetrySettings
from services.shared.telemetry import exported

with exported("auth", TelemetrySettings()):
    tracer = trace.get_tracer("test")
    for number in range(20_000):
        tracer.start_span("step").end()
    metrics.get_meter("test").create_counter("test.steps").add(20_000)
"""
LOADED = """
import sys
import services.auth.__main__, services.credentials.__main__, services.provisioner.__main__
from services.shared.settings import TelemetrySettings
from services.shared.telemetry import exported

with exported("auth", TelemetrySettings()):
    loaded = [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
assert not loaded, loaded
"""


async def ended(program: str, **settings: str) -> int:
    """Returns how a program of its own ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", program),
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'protos' / 'gen'}", **settings},
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_where_nothing_is_recorded_no_service_loads_the_sdk_for_it() -> None:
    assert await ended(LOADED) == 0


async def test_a_receiver_that_never_answers_keeps_nobody() -> None:
    with closing(socket.create_server((LOOPBACK, 0))) as silent:
        endpoint = f"{LOOPBACK}:{silent.getsockname()[1]}"
        assert await ended(EXPORTING, BULKHEAD_OTLP_ENDPOINT=endpoint) == 0


async def test_both_ways_out_work_together_and_name_their_process() -> None:
    async with otlp_receiver() as receiver:
        settings = {
            "BULKHEAD_OTLP_ENDPOINT": receiver.endpoint,
            "BULKHEAD_METRICS_LISTEN": f"{LOOPBACK}:{free_ports(1)[0]}",
        }
        assert await ended(EXPORTING, **settings) == 0
        assert "test.steps" in receiver.metrics.names("auth")


async def test_metrics_are_served_at_one_path_alone() -> None:
    port = free_ports(1)[0]
    with serving_metrics(f"{LOOPBACK}:{port}") as reader:
        meters = MeterProvider([reader], shutdown_on_exit=False)
        meters.get_meter("test").create_counter("test.steps", "{step}").add(3, {"kind": "small"})
        async with httpx.AsyncClient(base_url=f"http://{LOOPBACK}:{port}") as client:
            answer = await client.get("/metrics")
            assert 'test_steps_total{kind="small"} 3.0' in answer.text
            assert "process_resident_memory_bytes" in answer.text
            for path in ("/", "/metricsx", "/metrics/"):
                assert (await client.get(path)).status_code == 404
            assert (await client.post("/metrics")).status_code == 501
        with pytest.raises(UnavailableError), serving_metrics(f"{LOOPBACK}:{port}"):
            pass
        meters.shutdown()
