"""What `bulkhead up`, `down` and `status` do; imported when one of them runs, for it takes long."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from cli.fitting import ENDLESS, fitted, terminal_width
from cli.rendering import as_json as json_text
from cli.rendering import time_text
from deploy.local import control
from deploy.local.control import ProcessStatus, StackStatus
from deploy.local.foreground import parse_overrides, serve, tell
from deploy.local.layout import Layout
from deploy.local.programs import Options
from deploy.local.record import read_record
from deploy.local.stack import Addresses, Stack
from deploy.local.supervisor import AlreadyRunningError, StartError

_REFUSED = 1
_PROCESS_COLUMNS = ("process", "health", "pid", "restarts", "address", "up since")
T = TypeVar("T")


def options_of(
    otlp: str, edge_port: int | None, settings: Sequence[str], *, unchecked: bool
) -> Options:
    """Returns the options of a stack.

    Raises:
        typer.BadParameter: one of them has another form than it must.
    """
    return Options(
        otlp=_endpoint(otlp),
        edge_port=edge_port,
        unchecked=unchecked,
        overrides=_overrides(settings),
    )


def up(state: Path, options: Options, *, detach: bool, as_json: bool) -> None:
    """Starts the stack; returns when it is healthy, or else when it has been ended again."""
    layout = Layout.of(state)
    first = not layout.operator_key.exists()
    if detach:
        started = _run(control.start_detached(layout, _arguments(layout, options), tell))
        if not started:
            _refuse_other_options(layout, options)
        _show(control.addresses(layout), layout, as_json=as_json, first=first and started)
    else:
        _foreground(layout, options, as_json=as_json, first=first)


def down(state: Path, *, purge: bool, as_json: bool) -> None:
    """Ends the stack."""
    layout = Layout.of(state)
    existed = layout.exists()
    ran = _run(control.stop(layout, purge=purge))
    if as_json:
        purged = purge and existed
        print(json_text({"state": str(layout.state), "stopped": ran, "purged": purged}))
    elif not existed:
        tell(f"there is no stack in {layout.state}")
    else:
        did = "stopped the stack" if ran else "nothing ran"
        tell(f"{did} in {layout.state}{'; removed it with all data' if purge else ''}")


def status(state: Path, *, as_json: bool) -> None:
    """Shows the stack.

    Raises:
        typer.Exit: 1 when it does not run, or something in it is not well.
    """
    found = _run(control.status(Layout.of(state)))
    if as_json:
        print(json_text({**asdict(found), "healthy": found.healthy}))
    else:
        print(_status_text(found))
    if not found.healthy:
        raise typer.Exit(_REFUSED)


def _foreground(layout: Layout, options: Options, *, as_json: bool, first: bool) -> None:
    def ready(addresses: Addresses) -> None:
        _show(addresses, layout, as_json=as_json, first=first)
        tell("press Ctrl-C to stop everything")

    async def running() -> None:
        try:
            await serve(Stack(layout.state, options), tell, ready)
        except AlreadyRunningError:
            await control.until_ready(layout, tell)
            _refuse_other_options(layout, options)
            tell("it runs already; `bulkhead down` ends it")
            _show(control.addresses(layout), layout, as_json=as_json, first=False)

    _run(running())


def _refuse_other_options(layout: Layout, options: Options) -> None:
    """Refuses options that a stack that runs already was not asked for just now."""
    edge = control.addresses(layout).edge
    moved = options.edge_port is not None and not edge.endswith(f":{options.edge_port}")
    if moved or options.otlp or options.unchecked or options.overrides:
        _refuse("it runs already, and takes options at its start only: `bulkhead down` first")


def _run(work: Awaitable[T]) -> T:
    async def awaited() -> T:
        return await work

    try:
        return asyncio.run(awaited())
    except StartError as error:
        _refuse(str(error))
    except PermissionError as error:
        _refuse(f"{error.filename}: this belongs to another user")


def _refuse(why: str) -> NoReturn:
    tell(why)
    raise typer.Exit(_REFUSED)


def _overrides(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    try:
        return parse_overrides(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def _endpoint(otlp: str) -> str:
    host, _, port = otlp.rpartition(":")
    if otlp and not (host and port.isdigit()):
        raise typer.BadParameter("must be HOST:PORT", param_hint="--otlp")
    return otlp


def _arguments(layout: Layout, options: Options) -> list[str]:
    settings = (
        f"{service}.{name}={value}"
        for service, values in options.overrides.items()
        for name, value in values.items()
    )
    return [
        *("--state", str(layout.state)),
        *("--otlp", options.otlp),
        *(("--edge-port", str(options.edge_port)) if options.edge_port else ()),
        *(("--unchecked",) if options.unchecked else ()),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def _show(addresses: Addresses, layout: Layout, *, as_json: bool, first: bool) -> None:
    if as_json:
        print(json_text(_document(addresses, layout)), flush=True)
        return
    print(f"api    {addresses.api}")
    print(f"edge   {addresses.edge}  (deployments are hosts below it)")
    print(f"key    {addresses.operator_key_file}  (the operator's)")
    print(f"state  {addresses.state}")
    if first:
        print("\nBegin with:\n")
        print(f"  export BULKHEAD_API={addresses.api}")
        print(f"  bulkhead tenant create acme --key-file {addresses.operator_key_file}")


def _document(addresses: Addresses, layout: Layout) -> dict[str, Any]:
    record = read_record(layout)
    processes = [
        {
            "name": process.name,
            "pid": process.alive.pid if process.alive else None,
            "address": process.address,
        }
        for process in (record.processes if record else ())
    ]
    return {
        "api": addresses.api,
        "edge": addresses.edge,
        **({"unchecked": addresses.unchecked} if addresses.unchecked else {}),
        "operator_key_file": str(addresses.operator_key_file),
        "state": str(addresses.state),
        "processes": processes,
    }


def _status_text(found: StackStatus) -> str:
    rows = zip(*(_process_row(process) for process in found.processes), strict=True)
    processes = fitted(
        dict(zip(_PROCESS_COLUMNS, map(list, rows), strict=False)),
        {},
        ("restarts", "pid"),
        terminal_width(ENDLESS),
    )
    servers = fitted(
        {
            "deployment": [server.deployment_id for server in found.servers],
            "pid": [str(server.pid) for server in found.servers],
            "port": [str(server.port) for server in found.servers],
            "data directory": [server.data_directory for server in found.servers],
        },
        {},
        ("data directory",),
        terminal_width(ENDLESS),
    )
    if not found.running:
        processes = f"no stack runs in {found.state}"
    return f"{processes}\n\n{servers}" if found.servers else processes


def _process_row(process: ProcessStatus) -> tuple[str, ...]:
    return (
        process.name,
        "healthy" if process.healthy else "away",
        str(process.pid or "-"),
        str(process.restarts),
        process.address,
        _since(process),
    )


def _since(process: ProcessStatus) -> str:
    if not process.since:
        return "-"
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromisoformat(process.since))
    return time_text(stamp)
