"""Waiting at a terminal until a person has allowed a connection, or cannot any more."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_table import how_to_ask_anew
from cli.refusal import Refusal
from cli.rendering import time_text
from cli.session import Session

# The first looks come sooner: whoever has allowed it before may be led back at once.
_FIRST_SECONDS, _POLL_SECONDS = 0.25, 1.0
_SETTLE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long it is waited, in seconds."""

    # For the person.
    person: float
    # For the provider, once the link was used.
    provider: float = _SETTLE_SECONDS


async def allowed(
    session: Session, started: pb.StartAuthorizationResponse, patience: Patience
) -> pb.Connection:
    """Returns the connection once it was allowed.

    Raises:
        Refusal: nobody did in time, or nobody can any more.
    """
    try:
        async with asyncio.timeout(patience.person):
            return await _allowed(session, started, patience.provider)
    except TimeoutError:
        raise _not_yet(started.connection, patience.person) from None
    except asyncio.CancelledError:
        session.tell(_left(started))
        raise


async def _allowed(
    session: Session, started: pb.StartAuthorizationResponse, settle: float
) -> pb.Connection:
    request = pb.GetConnectionRequest(connection_id=started.connection.connection_id)
    connection = await _once(session, request, lambda one: _works(one) or not _is_open(one))
    if _works(connection):
        return connection
    # A link is used up before the provider is asked for what the person allowed.
    session.tell("the link is used up or over; looking whether the provider has granted it")
    try:
        async with asyncio.timeout(settle):
            return await _once(session, request, _works)
    except TimeoutError:
        raise _not_allowed(connection) from None


async def _once(
    session: Session, request: pb.GetConnectionRequest, awaited: Callable[[pb.Connection], bool]
) -> pb.Connection:
    """Returns the connection when it is as it is awaited."""
    pause = _FIRST_SECONDS
    while True:
        connection = await _seen(session, request)
        if connection is not None and awaited(connection):
            return connection
        await asyncio.sleep(pause)
        pause = min(2 * pause, _POLL_SECONDS)


async def _seen(session: Session, request: pb.GetConnectionRequest) -> pb.Connection | None:
    """Returns the connection; None while nobody can say how it is."""
    try:
        return (await session.credentials.GetConnection(request)).connection
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
    return None


def _works(connection: pb.Connection) -> bool:
    return connection.state == pb.CONNECTION_STATE_ACTIVE


def _is_open(connection: pb.Connection) -> bool:
    return connection.HasField("authorization_expire_time")


def _not_allowed(connection: pb.Connection) -> Refusal:
    found = connection.connection_id
    return Refusal(
        "FAILED_PRECONDITION",
        "AUTHORIZATION_ENDED",
        f"they did not allow it, or the link was used up; begin anew: {how_to_ask_anew(found)}",
        metadata={"connection_id": found},
    )


def _not_yet(connection: pb.Connection, seconds: float) -> Refusal:
    found = connection.connection_id
    return Refusal(
        "DEADLINE_EXCEEDED",
        "AUTHORIZATION_PENDING",
        f"nobody has allowed it after {seconds:g} s; see: bulkhead connection get {found}, or ask"
        f" again: {how_to_ask_anew(found)}",
        metadata={"connection_id": found},
    )


def _left(started: pb.StartAuthorizationResponse) -> str:
    """Returns what is told to who does not wait any longer."""
    found = started.connection.connection_id
    return "\n".join(
        [
            "",
            f"the link works on until {time_text(started.expire_time)}",
            f"see:    bulkhead connection get {found}",
            f"anew:   {how_to_ask_anew(found)}",
            f"or end: bulkhead connection delete {found}",
        ]
    )
