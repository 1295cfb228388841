"""The mesh is lost and restored by the commands of docs/operations.md: all that was in it works."""

import asyncio
import os
import re
import shlex
import shutil
import sys
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.local.layout import Layout
from tests.e2e.outside import Deployment, Ran, Stack, problem, run, texts

ROOT = Path(__file__).parent.parent.parent
TOKEN = "lent-" + "t" * 20
SECRET = "kept-" + "s" * 20
PATIENCE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a tenant has when it is saved."""

    deployment: Deployment
    # A key that is revoked after that.
    doomed: Any
    # For the deployment's own environment.
    program_key: str
    certificate: Path
    # As text, of the audit log.
    head: str


def commands(beginning: str) -> list[list[str]]:
    """Returns the lines of the document that begin so, in words."""
    text = (ROOT / "docs" / "operations.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(beginning)]


async def documented(state: Path, saved: Path, words: list[str]) -> None:
    """Runs a line of the document with the paths of the test."""
    own = {"mesh-backup": str(saved), "new-keys": str(saved.with_name("new-keys"))}
    arguments = [own.get(word, word.replace(".bulkhead", str(state))) for word in words]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, said.decode()


@pytest.mark.promise("P-37")
async def test_what_was_saved_works_when_the_mesh_was_lost_and_restored(tmp_path: Path) -> None:
    state, saved = tmp_path / "state", tmp_path / "saved"
    save, restore, without_log = commands("python -m deploy.local.mesh_backup")
    assert "--every-key" in without_log
    try:
        stack = await started(state)
        belongings = await furnished(stack, tmp_path)
        await documented(state, saved, save)
        await revoked(belongings)
        made_since = await belongings.deployment.tenant.deployment("since")
        lose(await ended(state))
        await documented(state, saved, restore)
        [up] = commands("bulkhead up --detach --set provisioner")
        again = await started(state, *up[2:])
        await everything_works(again, belongings)
        await nothing_is_removed(again, made_since)
    finally:
        await run("down", "--purge", "--state", str(state))


async def started(state: Path, *options: str) -> Stack:
    ran = await run("up", "--detach", "--json", "--state", str(state), *options)
    return Stack(state, ran.json["api"], ran.json["edge"], Path(ran.json["operator_key_file"]))


async def ended(state: Path) -> Layout:
    """Returns the layout of a stack that has ended."""
    await done(run("down", "--state", str(state)))
    return Layout.of(state)


def lose(layout: Layout) -> None:
    """Removes all that is the mesh's own; what is the deployments' is on other disks, and logs."""
    folders = (layout.secrets, layout.pki, layout.valkey, layout.envoy, layout.state / "postgres")
    for folder in (layout.servers / "mesh", *folders):
        shutil.rmtree(folder)
    layout.operator_key.unlink()


async def furnished(stack: Stack, folder: Path) -> Belongings:
    """Returns a tenant's things in every service, and the certificate of one that was deleted."""
    tenant = await stack.tenant()
    deployment = await tenant.deployment()
    async with deployment.agent() as agent:
        await agent.call_tool("execute", {"sql": "CREATE TABLE kept AS SELECT 7 AS n"})
    put = ("secret", "put", deployment.deployment_id, "KEPT", "--value-file", "-")
    create = ("connection", "create", "github", "--name", "lent", "--token-file", "-", "--json")
    # Several at once, since each is a process of its own.
    doomed, program, lent, certificate, _ = await asyncio.gather(
        another_key(deployment),
        another_key(deployment, "--scope", "environment:read"),
        tenant.run(*create, given=TOKEN),
        certificate_of_a_deletion(stack, folder),
        done(tenant.run(*put, given=SECRET)),
    )
    lent_id = lent.json["connection_id"]
    await done(tenant.run("binding", "create", deployment.deployment_id, lent_id))
    head = (await tenant.run("audit", "verify", "--json")).json["head"]
    return Belongings(deployment, doomed, program["key"], certificate, head)


async def certificate_of_a_deletion(stack: Stack, folder: Path) -> Path:
    certificate = folder / "gone.certificate"
    files = ("--certificate", str(certificate), "--token-file", str(folder / "gone.token"))
    await done((await stack.tenant()).run("tenant", "delete", "--yes", *files))
    return certificate


async def revoked(belongings: Belongings) -> None:
    """Returns when the doomed key, which has worked, works no more."""
    deployment, key = belongings.deployment, belongings.doomed
    assert (await deployment.get("/llms.txt", key=key["key"])).status_code == 200
    await done(deployment.tenant.run("key", "revoke", key["key_id"]))
    assert problem(await deployment.get("/llms.txt", key=key["key"]))[0] == 401


async def everything_works(stack: Stack, belongings: Belongings) -> None:
    tenant = replace(belongings.deployment.tenant, stack=stack)
    deployment = replace(belongings.deployment, tenant=tenant)
    async with deployment.agent() as agent:
        read = await agent.call_tool("query", {"sql": "SELECT n FROM kept"})
        assert "7" in texts(read)
    # What was revoked in the lost time is, and what is revoked now is too.
    doomed = belongings.doomed["key"]
    assert problem(await deployment.get("/llms.txt", key=doomed)) == (401, "KEY_INVALID")
    vended, environment, keys, _ = await asyncio.gather(
        run("vend", "github", "--json", key=deployment.key, api=stack.api),
        run("deployment", "environment", "--json", key=belongings.program_key, api=stack.api),
        done(run("certificate", "keys", api=stack.api)),
        done(tenant.run("audit", "verify", "--expect-head", belongings.head)),
    )
    assert vended.json["results"][0]["token"]["token"] == TOKEN
    assert SECRET in environment.out
    published = belongings.certificate.with_name("keys.json")
    published.write_text(keys.out)
    await done(run("certificate", "verify", str(belongings.certificate), "--keys", str(published)))
    await revoked(replace(belongings, deployment=deployment, doomed=await another_key(deployment)))


async def another_key(deployment: Deployment, *options: str) -> Any:
    own = ("--deployment", deployment.deployment_id, "--json")
    return (await deployment.tenant.run("key", "issue", *own, *options)).json


async def nothing_is_removed(stack: Stack, made_since: Deployment) -> None:
    """Returns when the sweep has reported what no row speaks of, and left it."""
    layout = Layout.of(stack.state)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not reported(layout, made_since.deployment_id):
            await asyncio.sleep(0.1)
    assert (layout.servers / made_since.deployment_id / "PG_VERSION").exists()


def reported(layout: Layout, deployment_id: str) -> bool:
    lines = layout.log("provisioner").read_text().splitlines()
    return any("unwanted server left" in line and deployment_id in line for line in lines)


async def done(running: Awaitable[Ran]) -> Ran:
    """Returns how a command ended, which must have ended well."""
    ran = await running
    assert ran.code == 0, ran.err
    return ran
