"""`python -m deploy.local.demo`: the main job on real parts, told step by step.

Two tenants, a deployment each, an agent each; one lends a grant at an outside provider to one of
its deployments; what must be refused is refused; a database sleeps and wakes; one trace shows it
all; and in the end one of them is deleted, with a certificate. Everything runs in a temporary
folder and nothing of it is left. Exits with 0 when all went as it must, 1 on any surprise, 130 when
interrupted.
"""

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType

from deploy.local.foreground import ended_by_signals, parse_overrides
from deploy.local.layout import Layout
from deploy.local.programs import Options, Overrides
from deploy.local.stack import Addresses, Stack
from deploy.local.story import (
    belongings,
    ending,
    evidence,
    keys,
    lending,
    preparation,
    refusals,
    sleep,
    work,
)
from deploy.local.story.command_line import CommandLine
from deploy.local.story.provider import OutsideProvider, outside_provider
from deploy.local.story.scene import Scene
from deploy.local.story.stage import Stage, Surprise
from deploy.local.story.temporary import temporary_state
from deploy.local.supervisor import StartError
from deploy.local.traces import Receiver, otlp_receiver

_MOST_SECONDS = 300.0
_SURPRISED, _INTERRUPTED = 1, 130
# So that nobody waits long for a database to be seen idle.
_QUICK: Overrides = MappingProxyType({"provisioner": {"look_seconds": "0.5"}})


async def play(stage: Stage, overrides: Overrides) -> None:
    """Plays the whole story, on services with these settings.

    Raises:
        Surprise: something did not happen as it must.
        StartError: the stack does not start.
    """
    async with AsyncExitStack() as exits:
        receiver = await exits.enter_async_context(otlp_receiver())
        state = exits.enter_context(temporary_state("bulkhead-demo-"))
        provider = await exits.enter_async_context(outside_provider(state))
        folders = (state, Layout.of(state).servers)
        with stage.step("The stack starts in a temporary folder"):
            settings = _merged(_merged(_QUICK, provider.overrides), overrides)
            options = Options(receiver.endpoint, edge_port=provider.edge_port, overrides=settings)
            scene = await _started(stage, exits, state, receiver, options)
        await _story(scene, provider)
        with stage.step("Everything stops, and nothing is left behind"):
            before = evidence.processes(state)
            await exits.aclose()
            evidence.nothing_left(scene, before, folders)


async def _started(
    stage: Stage, exits: AsyncExitStack, state: Path, receiver: Receiver, options: Options
) -> Scene:
    stage.command("operator", f"bulkhead up --state {state} --otlp {receiver.endpoint}")
    stack = Stack(state, options)
    addresses: Addresses = await exits.enter_async_context(stack.running(stage.result))
    stage.say(f"The front door is {addresses.edge}; deployments are hosts below it.")
    return Scene(stage, addresses, CommandLine(addresses.api), receiver.traces)


def _merged(first: Overrides, then: Overrides) -> Overrides:
    """Returns the settings of both; `then` counts where they differ."""
    services = {*first, *then}
    return {each: {**first.get(each, {}), **then.get(each, {})} for each in services}


async def _story(scene: Scene, provider: OutsideProvider) -> None:
    step = scene.stage.step
    with step("The operator creates two tenants on the free plan"):
        tenants = await preparation.create_tenants(scene)
    with step("Each creates a deployment: MCP, a Postgres server and a bucket of its own"):
        deployments = await preparation.create_deployments(scene, tenants)
    with step("Each issues a key that opens this one deployment"):
        acme, globex = await preparation.issue_keys(scene, deployments)
    with step("acme's agent works over MCP, with the official client"):
        trace_id = await work.work_at_first(scene, acme)
    with step("globex's agent runs the same SQL, and sees other data"):
        await work.work_at_second(scene, globex)
    with step("acme keeps a grant at an outside provider, by OAuth; a person allows it"):
        connection, second = await lending.authorize(scene, provider, acme.tenant)
    with step("It is lent to one of acme's two deployments, which uses it"):
        lent = await lending.lend(scene, connection, second)
    with step("Nobody else has it"):
        await lending.nobody_else(scene, lent, acme, globex)
    with step("The token leads to who was given it; without the binding no more is given"):
        await lending.traced(scene, lent)
    with step("What is not allowed is refused"):
        await refusals.at_the_door(scene, acme, globex)
        await refusals.at_the_api(scene, acme, globex)
        reader = await refusals.without_scope(scene, acme)
    with step("A key is rotated: both work until the grace period ends, here early"):
        acme = await keys.rotated(scene, acme)
    with step("A revoked key opens nothing, from the very next request on"):
        await keys.revoked(scene, reader)
    with step("Over the burst of the free plan"):
        await refusals.over_the_burst(scene, acme)
    with step("Two connection strings, two servers"):
        await evidence.two_servers(scene, (acme, globex))
    with step("One trace, from Envoy down to the SQL statement"):
        await evidence.one_trace(scene, trace_id)
    with step("acme's deployment gets a secret, which its own program alone can read"):
        environment = await belongings.secret_kept(scene, acme, globex)
    with step("Its bucket opens to its own credentials, which open no other"):
        await belongings.bucket_used(scene, environment, globex.tenant.name)
    with step("Its database sleeps when nobody uses it, and wakes for whoever does"):
        await sleep.asleep_and_awake(scene, acme)
    with step("acme suspends it, and resumes it"):
        await sleep.suspended_and_back(scene, acme)
    with step("acme is deleted, with everything that is its"):
        await ending.tenant_deleted(scene, acme, globex)
    with step("The certificate of that, fetched with the token, and checked offline"):
        await ending.certified(scene)


async def _played(stage: Stage, overrides: Overrides) -> int:
    """Returns the exit code; a signal ends the story early, and tidily."""
    with ended_by_signals(lambda: stage.fail("interrupted; stopping everything")):
        try:
            async with asyncio.timeout(_MOST_SECONDS):
                await play(stage, overrides)
        except asyncio.CancelledError:
            return _INTERRUPTED
        except Exception as error:  # noqa: BLE001 whatever it is, it is told in one line
            stage.fail(_why(error))
            return _SURPRISED
    stage.close()
    return 0


def _why(error: BaseException) -> str:
    """Returns what went wrong in a line; task groups wrap it, however often."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    match error:
        case Surprise():
            return f"surprise: {error}"
        case StartError():
            return str(error)
        case TimeoutError():
            return f"surprise: the story took longer than {_MOST_SECONDS:.0f} s"
        case _:
            return f"surprise: {type(error).__name__}: {error}"


def main() -> int:
    """Returns the exit code."""
    overrides = _overrides()
    stage = Stage()
    stage.open(
        "Bulkhead: one key, one Postgres server",
        "Two tenants, a deployment and an agent each. Every command and every answer is real.",
        "Who stands before the $ has its key in BULKHEAD_KEY; agents call tools over MCP.",
    )
    return asyncio.run(_played(stage, overrides))


def _overrides() -> Overrides:
    parser = argparse.ArgumentParser(prog="python -m deploy.local.demo")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SERVICE.SETTING=VALUE",
        help="a setting of one service, as `bulkhead up` takes it",
    )
    try:
        return parse_overrides(parser.parse_args().set)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
