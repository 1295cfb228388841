"""Parts are killed under load: nobody gets a wrong answer, and each part comes back."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import pytest

from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.e2e.outside import (
    Deployment,
    Stack,
    http_client,
    problem,
    texts,
)

PATIENCE_SECONDS = 60
RIGHT = 200
CREATE_KEPT = "CREATE TABLE kept AS SELECT 7 AS n"


@dataclass
class Load:
    """Steady requests to one deployment, with its own key and with a false one."""

    deployment: Deployment
    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unreachable: int = 0

    async def run(self) -> None:
        false = new_key(KeyKind.DEPLOYMENT)
        url = f"http://{self.deployment.host}:{self.deployment.tenant.stack.port}/llms.txt"
        async with http_client() as http:
            while True:
                for key in (self.deployment.key, false):
                    await self._ask(http, url, key)
                    # As fast as it can it would keep from coming back what it waits for.
                    await asyncio.sleep(0.01)

    async def _ask(self, http: httpx2.AsyncClient, url: str, key: str) -> None:
        own = key == self.deployment.key
        try:
            answer = await http.get(url, headers={"authorization": f"Bearer {key}"})
        except httpx2.TransportError:
            self.unreachable += 1
            await asyncio.sleep(0.05)
            return
        self.answers[answer.status_code] += 1
        if answer.status_code == 503:
            problem(answer)
            if "retry-after" not in answer.headers:
                self.wrong.append("503 without Retry-After")
            await asyncio.sleep(0.02)
        elif answer.status_code != (RIGHT if own else 401):
            self.wrong.append(f"{answer.status_code} {answer.text}")

    async def works(self) -> None:
        """Returns once the deployment answers as it should, several times in a row."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            good = 0
            while good < 3:
                try:
                    answer = await self.deployment.get("/llms.txt")
                    good = good + 1 if answer.status_code == RIGHT else 0
                except httpx2.TransportError:
                    good = 0
                await asyncio.sleep(0.05)


@asynccontextmanager
async def under_load(deployment: Deployment, workers: int = 2) -> AsyncIterator[Load]:
    load = Load(deployment)
    tasks = [asyncio.create_task(load.run()) for _ in range(workers)]
    try:
        await load.works()
        yield load
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.fixture(scope="module")
async def deployment(stack: Stack) -> Deployment:
    # A plan whose limits the load does not reach.
    return await (await stack.tenant("scale")).deployment()


@pytest.mark.parametrize(
    "name", ["auth", "ratelimit", "provisioner", "app_proxy", "edge", "valkey", "postgres"]
)
async def test_a_killed_part_comes_back_and_no_answer_was_wrong(
    stack: Stack, deployment: Deployment, name: str
) -> None:
    async with under_load(deployment) as load:
        before = await stack.kill(name)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await stack.pid(name) in {before, None}:
                await asyncio.sleep(0.1)
        await load.works()
    assert load.wrong == []
    assert load.answers[RIGHT] > 0
    assert set(load.answers) <= {200, 401, 503}
    # Only the front door's own death is seen as anything but an answer.
    assert name == "edge" or load.unreachable == 0
    shown = (await deployment.tenant.run("tenant", "get", "--json")).json
    assert shown["plan"] == "PLAN_SCALE"


async def test_the_provisioner_away_stops_no_query(stack: Stack, deployment: Deployment) -> None:
    async with deployment.agent() as agent:
        await agent.call_tool("query", {"sql": "SELECT 1"})
        await stack.kill("provisioner")
        answer = await agent.call_tool("query", {"sql": "SELECT 41 + 1 AS n"})
        assert "42" in texts(answer)


async def test_a_killed_database_server_comes_back_with_the_next_query(
    stack: Stack, deployment: Deployment
) -> None:
    async with deployment.agent() as agent:
        async with asyncio.timeout(PATIENCE_SECONDS):
            # The provisioner, killed by the test before, may still be on its way back.
            while (await agent.call_tool("execute", {"sql": CREATE_KEPT})).is_error:
                await asyncio.sleep(0.1)
        servers = (await stack.status())["servers"]
        pid = next(s["pid"] for s in servers if s["deployment_id"] == deployment.deployment_id)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (
                answer := await agent.call_tool("query", {"sql": "SELECT n FROM kept"})
            ).is_error:
                assert "again" in texts(answer)
        assert "7" in texts(answer)


async def test_a_create_survives_the_provisioners_death_in_the_middle(stack: Stack) -> None:
    tenant = await stack.tenant()
    started = await tenant.run(
        "deployment", "create", "phoenix", "--mcp", "--database", "--no-wait", "--json"
    )
    await stack.kill("provisioner")
    deployment_id = started.json["deployment_id"]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            got = await tenant.run("deployment", "get", deployment_id, "--json")
            if got.code == 0 and got.json["state"] == "DEPLOYMENT_STATE_READY":
                break
    servers = [
        each for each in (await stack.status())["servers"] if each["deployment_id"] == deployment_id
    ]
    assert len(servers) == 1
