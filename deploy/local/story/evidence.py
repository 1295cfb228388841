"""What can be seen from the machine's side: two servers, one trace, and in the end nothing."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import asyncpg

from deploy.local.layout import Layout
from deploy.local.processes import Alive, identified
from deploy.local.record import read_record
from deploy.local.servers import deployment_servers
from deploy.local.story import work
from deploy.local.story.command_line import Outcome
from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise
from deploy.local.traces import Span, render

_TRACE_SECONDS = 15.0
_FIRST, _STATEMENT = "edge", work.SELECT
# The first query of a deployment asks everyone: who, how often, where its database is.
_PASSED = ("edge", "app_proxy", "auth", "ratelimit", "provisioner")
_STATEMENTS = ("db.query.text", "db.statement")
# A gRPC method as services and Envoy name its spans: package, service, method.
_METHOD = re.compile(r"(?:async )?[\w.]+\.(\w+)[./](\w+)(?: egress)?")
_LABEL_COLUMNS, _LEVEL_COLUMNS = 72, 3


async def two_servers(scene: Scene, deployments: Sequence[Deployment]) -> None:
    """Shows the connection string of each deployment and the server behind it."""
    stage, names = scene.stage, [each.tenant.name for each in deployments]
    state = str(scene.addresses.state)
    status, *connections = await asyncio.gather(
        scene.bulkhead.done("status", "--state", state),
        *(_connection(scene, each) for each in deployments),
    )
    for name, connection in zip(names, connections, strict=True):
        stage.command(name, connection.line)
        stage.result(str(connection.document["uri"]))
    stage.command("operator", status.line)
    uris = [urlsplit(connection.document["uri"]) for connection in connections]
    servers = {server["deployment_id"]: server for server in status.document["servers"]}
    behind = [servers[each.deployment_id] for each in deployments]
    for name, server in zip(names, behind, strict=True):
        stage.result(f"{name:<8} pid {server['pid']:<8} {server['data_directory']}")
    for what in ("data_directory", "port", "pid"):
        stage.check(f"different: {what}", 2, len({server[what] for server in behind}))
    stage.check("different: password", 2, len({uri.password for uri in uris}))
    found = await login_refusal(uris[0]._replace(netloc=_netloc(uris[0], uris[1].port)))
    stage.check(f"{names[0]}'s password at {names[1]}'s server", "28P01", found, "no login")


async def one_trace(scene: Scene, trace_id: str) -> None:
    """Draws the trace of one query, from the front door to the statement."""
    try:
        spans = await scene.traces.wait_for(trace_id, _complete, _TRACE_SECONDS)
    except TimeoutError:
        found = sorted({span.service for span in scene.traces.spans(trace_id)})
        raise Surprise(f"trace {trace_id} is not whole; spans came from {found}") from None
    scene.stage.aside(f"trace {trace_id}: what, when it began, how long it took")
    known = {span.span_id: span for span in spans}
    services = sorted({span.service for span in spans})
    scene.stage.drawing(render(_fitted(span, known) for span in spans), services)
    expected = sorted(_PASSED)
    scene.stage.check("services in it", ", ".join(expected), ", ".join(services))


def processes(state: Path) -> list[Alive]:
    """Returns every process that the stack runs now, deployments' servers too."""
    layout = Layout.of(state)
    record = read_record(layout)
    own = [each.alive for each in (record.processes if record else ()) if each.alive]
    servers = [identified(server.pid) for server in deployment_servers(layout)]
    return [*own, *(server for server in servers if server)]


def nothing_left(scene: Scene, before: Sequence[Alive], folders: Sequence[Path]) -> None:
    """Checks that no process and no folder of the stack is left."""
    living = [alive.pid for alive in before if alive.process() is not None]
    scene.stage.check(f"processes left, of {len(before)}", 0, len(living), str(living or ""))
    left = [str(folder) for folder in folders if folder.exists()]
    scene.stage.check("folders left", 0, len(left), ", ".join(left))


async def _connection(scene: Scene, deployment: Deployment) -> Outcome:
    return await scene.bulkhead.done(
        "deployment", "connection", deployment.deployment_id, key=deployment.tenant.key
    )


def _netloc(uri: SplitResult, port: int | None) -> str:
    """Returns the user and password of `uri` at another port."""
    user = uri.netloc.rpartition("@")[0]
    return f"{user}@{uri.hostname}:{port}"


async def login_refusal(uri: SplitResult) -> str:
    """Returns the SQLSTATE with which a database refuses a login."""
    try:
        connection = await asyncpg.connect(uri.geturl(), timeout=10)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    await connection.close()
    return "let in"


def _complete(spans: Sequence[Span]) -> bool:
    """Whether a statement of ours is there, and every span from it up to the front door."""
    known = {span.span_id: span for span in spans}
    ours = [span for span in spans if _statement(span).startswith(_STATEMENT)]
    return bool(ours) and all(_path(span, known)[0].service == _FIRST for span in ours)


def _path(span: Span, known: Mapping[str, Span]) -> list[Span]:
    """Returns the spans from the first down to `span`."""
    above = known.get(span.parent_id)
    return [*(_path(above, known) if above else ()), span]


def _statement(span: Span) -> str:
    return next((span.attributes[name] for name in _STATEMENTS if name in span.attributes), "")


def _fitted(span: Span, known: Mapping[str, Span]) -> Span:
    """Returns the span named so that its line fits: a statement itself, a method's last words."""
    room = _LABEL_COLUMNS - _LEVEL_COLUMNS * len(_path(span, known)) - len(span.service)
    method = _METHOD.fullmatch(span.name)
    name = " ".join(_statement(span).split()) or (
        "/".join(method.groups()) if method else span.name
    )
    return replace(span, name=name if len(name) <= room else f"{name[: room - 1]}…", attributes={})
