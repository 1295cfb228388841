"""The beginning: tenants, their deployments, and a key for each agent."""

import asyncio

from deploy.local.story.command_line import Outcome
from deploy.local.story.scene import Deployment, Scene, Tenant

NAMES = ("acme", "globex")
DEPLOYMENT = "notes"
_DECLARED = ("--mcp", "--database", "--bucket")


async def create_tenants(scene: Scene) -> list[Tenant]:
    """Returns two tenants of the free plan, made by the operator."""
    operator = scene.addresses.operator_key_file.read_text().strip()
    commands = (
        scene.bulkhead.done("tenant", "create", name, "--plan", "free", key=operator)
        for name in NAMES
    )
    made = []
    for outcome in await asyncio.gather(*commands):
        created = outcome.document
        _show(scene, "operator", outcome, "tenant_id", "key")
        made.append(Tenant(created["name"], created["tenant_id"], created["key"]))
    return made


async def create_deployments(scene: Scene, tenants: list[Tenant]) -> list[Deployment]:
    """Returns a deployment of each tenant; both have the same name, neither has a key yet."""
    commands = (
        scene.bulkhead.done("deployment", "create", DEPLOYMENT, *_DECLARED, key=each.key)
        for each in tenants
    )
    made = []
    for tenant, outcome in zip(tenants, await asyncio.gather(*commands), strict=True):
        created = outcome.document
        _show(scene, tenant.name, outcome, "deployment_id", "host")
        scene.stage.check(
            f"{tenant.name}'s deployment is", "DEPLOYMENT_STATE_READY", created["state"]
        )
        made.append(Deployment(tenant, created["deployment_id"], created["host"], "", ""))
    return made


async def issue_keys(scene: Scene, deployments: list[Deployment]) -> list[Deployment]:
    """Returns the deployments with a key each, which opens that deployment alone."""
    keys = await asyncio.gather(*(issue_key(scene, each) for each in deployments))
    for keyed, outcome in keys:
        _show(scene, keyed.tenant.name, outcome, "key_id", "key")
    return [keyed for keyed, _ in keys]


async def issue_key(
    scene: Scene, deployment: Deployment, *scopes: str
) -> tuple[Deployment, Outcome]:
    """Returns the deployment with a new key of it, and the command that issued it."""
    options = [part for scope in scopes for part in ("--scope", scope)]
    outcome = await scene.bulkhead.done(
        *("key", "issue", "--deployment", deployment.deployment_id, *options),
        key=deployment.tenant.key,
    )
    issued = outcome.document
    keyed = Deployment(
        deployment.tenant,
        deployment.deployment_id,
        deployment.host,
        issued["key_id"],
        issued["key"],
    )
    return keyed, outcome


def _show(scene: Scene, who: str, outcome: Outcome, *names: str) -> None:
    scene.stage.command(who, outcome.line)
    if steps := [line.lstrip("… ") for line in outcome.told if line.startswith("…")]:
        scene.stage.aside(f"  steps          {', '.join(steps)}")
    scene.stage.result("\n".join(f"{name:<14} {outcome.document[name]}" for name in names))
