"""A database that sleeps and wakes, and a deployment that is suspended and comes back."""

import asyncio
import os
from urllib.parse import urlsplit

from deploy.local.layout import Layout
from deploy.local.servers import deployment_servers
from deploy.local.story import work
from deploy.local.story.evidence import login_refusal
from deploy.local.story.refusals import PATH, check_refusal
from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise
from deploy.local.waiting import until
from services.provisioner.drivers.postgres_install import binaries

_ASLEEP = "sleeping"
_SLEEP_SECONDS = 30.0
_COUNT = "SELECT count(*) FROM notes"
_OK, _PAYMENT_REQUIRED = 200, 402
# Postgres's "cannot connect now".
_CLOSED = "57P03"


async def asleep_and_awake(scene: Scene, here: Deployment) -> None:
    """Lets the database sleep twice: psql wakes it, and then the agent's next query."""
    await _idle_timeout(scene, here, "1s")
    scene.stage.command(here.tenant.name, f"bulkhead deployment get {here.deployment_id} --json")
    await _until_asleep(scene, here)
    await _by_psql(scene, here)
    scene.stage.check("its server's processes now", 1, len(_processes(scene, here)))
    await _until_asleep(scene, here)
    # So that it is still awake when its state is asked for.
    await _idle_timeout(scene, here, "never")
    async with scene.visit(here.host, here.key) as visitor, visitor.agent() as agent:
        await work.read(scene, agent, work.ACME)
    _check(scene, here, "ready", await _state(scene, here))


async def suspended_and_back(scene: Scene, here: Deployment) -> None:
    """Suspends the deployment, knocks at its host and its database, and resumes it."""
    stage, run, key = scene.stage, scene.bulkhead, here.tenant.key
    uri = urlsplit((await _connection(scene, here))["uri"])
    suspended = await run.done("deployment", "suspend", here.deployment_id, key=key)
    stage.command(here.tenant.name, suspended.line)
    async with scene.visit(here.host, here.key) as visitor:
        answer = await visitor.get(PATH)
        check_refusal(scene, "its host", _PAYMENT_REQUIRED, answer, "DEPLOYMENT_SUSPENDED")
        stage.check("its database, by the connection string", _CLOSED, await login_refusal(uri))
        resumed = await run.done("deployment", "resume", here.deployment_id, key=key)
        stage.command(here.tenant.name, resumed.line)
        answer = await visitor.get(PATH)
    stage.check("its host again", _OK, answer.status_code, "nothing is lost")


async def _until_asleep(scene: Scene, here: Deployment) -> None:
    async def asleep() -> bool:
        return await _state(scene, here) == _ASLEEP

    await until(asleep, _SLEEP_SECONDS)
    _check(scene, here, _ASLEEP, _ASLEEP)


def _check(scene: Scene, here: Deployment, expected: str, found: str) -> None:
    """Checks what is said of the database, and whether its server's process is there."""
    pids = _processes(scene, here)
    detail = f"its server is process {pids[0]}" if pids else "no process of it runs"
    scene.stage.check("its database is", expected, found, detail)
    if bool(pids) == (expected == _ASLEEP):
        raise Surprise(f"a database that is {expected}: its servers' processes are {pids}")


def _processes(scene: Scene, here: Deployment) -> list[int]:
    servers = deployment_servers(Layout.of(scene.addresses.state))
    return [each.pid for each in servers if each.deployment_id == here.deployment_id]


async def _idle_timeout(scene: Scene, here: Deployment, length: str) -> None:
    changed = await scene.bulkhead.done(
        *("deployment", "update", here.deployment_id, "--idle-timeout", length),
        key=here.tenant.key,
    )
    scene.stage.command(here.tenant.name, changed.line)


async def _state(scene: Scene, here: Deployment) -> str:
    outcome = await scene.bulkhead.done(
        "deployment", "get", here.deployment_id, key=here.tenant.key
    )
    found = {each["kind"]: each["state"] for each in outcome.document["resources"]}
    return str(found["RESOURCE_KIND_DATABASE"].removeprefix("RESOURCE_STATE_").lower())


async def _by_psql(scene: Scene, here: Deployment) -> None:
    """Connects as anybody with a connection string does."""
    found = await _connection(scene, here)
    scene.stage.command(
        here.tenant.name,
        f'psql "$(bulkhead deployment connection {here.deployment_id})" -Atc "{_COUNT}"',
    )
    # By its environment, since other programs read arguments.
    given = {f"PG{name.upper()}": str(found[name]) for name in ("host", "port", "user", "password")}
    process = await asyncio.create_subprocess_exec(
        *(str(binaries() / "psql"), "-X", "-At", "-c", _COUNT),
        env={**os.environ, **given, "PGDATABASE": str(found["database"])},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    scene.stage.check("psql, on the sleeping one", str(len(work.ACME)), output.decode().strip())


async def _connection(scene: Scene, here: Deployment) -> dict[str, str]:
    outcome = await scene.bulkhead.done(
        "deployment", "connection", here.deployment_id, key=here.tenant.key
    )
    return dict(outcome.document)
