"""How connections are shown, and what may have to be done about them."""

from collections.abc import Sequence
from types import MappingProxyType

from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from google.protobuf.message import Message

from cli.fitting import fitted
from cli.rendering import enum_text, fields, minute_text, time_text

# The first is wrapped first.
_WRAPPED = MappingProxyType({"name": 16, "state": 16, "kind": 13})
_MISSED_LEAST_FIRST = ("last vend", "kind", "provider")


def connection_text(connection: pb.Connection) -> str:
    """Returns all that is known of one connection, a line each, and what it waits for."""
    parameters = connection.parameters
    known = {
        "connection": connection.connection_id,
        "name": connection.name,
        "provider": connection.provider,
        "kind": kind_text(connection.kind),
        "state": _state(connection),
        "since": _when(connection, "state_time"),
        "link open until": _when(connection, "authorization_expire_time"),
        "scopes": ", ".join(connection.scopes),
        "exclusive": "yes" if connection.exclusive else "",
        "parameters": ", ".join(f"{name}={parameters[name]}" for name in sorted(parameters)),
        "client id": connection.client_id,
        "token expires": _when(connection, "token_expire_time"),
        "created": _when(connection, "create_time"),
        "last vend": _last_vend(connection),
    }
    return "\n".join([fields(known), *_wanting(connection)])


def connection_table(connections: Sequence[pb.Connection]) -> str:
    """Returns the connections as a table, and below it what some of them wait for."""
    columns = {
        "connection": [one.connection_id for one in connections],
        "name": [one.name for one in connections],
        "provider": [one.provider for one in connections],
        "kind": [kind_text(one.kind) for one in connections],
        "state": [_state(one) for one in connections],
        "last vend": [_last_vend(one) for one in connections],
    }
    wanting = [line for one in connections for line in _wanting(one)]
    return "\n".join([fitted(columns, _WRAPPED, _MISSED_LEAST_FIRST), *wanting])


def kind_text(kind: "pb.ConnectionKind.ValueType") -> str:
    """Returns a kind of connection as people write it."""
    return enum_text(pb.ConnectionKind.Name(kind), "CONNECTION_KIND_")


def how_to_mend(connection: pb.Connection) -> str:
    """Returns the command that makes a broken connection work again."""
    if connection.kind == pb.CONNECTION_KIND_AUTHORIZATION_CODE:
        return how_to_ask_anew(connection.connection_id)
    option = {
        pb.CONNECTION_KIND_STATIC_TOKEN: "--token-file -",
        pb.CONNECTION_KIND_API_KEY: "--api-key-file -",
    }.get(connection.kind, "--client-id … --client-secret-file -")
    return f"bulkhead connection update {connection.connection_id} {option}"


def how_to_ask_anew(connection_id: str) -> str:
    """Returns the command that asks a person once more."""
    return f"bulkhead connection authorize --connection {connection_id}"


def _wanting(connection: pb.Connection) -> list[str]:
    """Returns what is to be done about a connection that does not work, a line each."""
    named = connection.connection_id
    if connection.state == pb.CONNECTION_STATE_NEEDS_REAUTHORIZATION:
        return [f"mend: {how_to_mend(connection)}"]
    if connection.state != pb.CONNECTION_STATE_AUTHORIZING:
        return []
    if connection.HasField("authorization_expire_time"):
        until = _when(connection, "authorization_expire_time")
        return [f"{named}: allow it by {until}"]
    return [f"mend: {how_to_ask_anew(named)}", f"or end: bulkhead connection delete {named}"]


def _state(connection: pb.Connection) -> str:
    """Returns the state, with its reason where there is one."""
    state = enum_text(pb.ConnectionState.Name(connection.state), "CONNECTION_STATE_")
    if not connection.state_reason:
        return state
    reason = enum_text(pb.StateReason.Name(connection.state_reason), "STATE_REASON_")
    return f"{state}: {reason}"


def _last_vend(connection: pb.Connection) -> str:
    there = connection.HasField("last_vend_time")
    return minute_text(connection.last_vend_time) if there else ""


def _when(message: Message, name: str) -> str:
    return time_text(getattr(message, name)) if message.HasField(name) else ""
