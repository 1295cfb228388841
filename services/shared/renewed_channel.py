"""A channel whose certificate can change: gRPC's own keep the one that they were made with.

What it offers is grpc.aio.Channel's. Underneath, a new channel takes the place of the old one when
the identity is renewed: calls that begin from then on are made on it, those in flight and open
streams end where they began.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import grpc
import structlog
from grpc import ChannelConnectivity

from services.shared.identity import WatchedIdentity
from services.shared.tls import Identity

Connect = Callable[[Identity], grpc.aio.Channel]

_LOOK_SECONDS = 0.05
# Looks until it is said that nobody lets the new certificate in.
_PATIENCE_LOOKS = 200
# Looks until the new one is used all the same: after five minutes and a half nothing is left that
# an old certificate, or an authority that was withdrawn, has proved.
_MOST_LOOKS = 6_600
# For calls that were begun on the old channel and have not reached its core yet.
_DEPARTURE_SECONDS = 1.0
# For streams: servers of ours end a connection, and what is on it, after five minutes and a half.
_LONGEST_SECONDS = 3_600.0
# The old channel does not work, or nobody has called over it: nothing is lost with it.
_EXPENDABLE = (
    ChannelConnectivity.IDLE,
    ChannelConnectivity.TRANSIENT_FAILURE,
    ChannelConnectivity.SHUTDOWN,
)


class _Method:
    """One method's callable, made anew for each channel when it is first called over it."""

    __slots__ = ("_call", "_channel", "_make", "_owner")

    def __init__(
        self, owner: "RenewedChannel", make: Callable[[grpc.aio.Channel], Callable[..., Any]]
    ) -> None:
        self._owner = owner
        self._make = make
        self._channel = owner.current
        self._call = make(self._channel)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        channel = self._owner.current
        if channel is not self._channel:
            self._call, self._channel = self._make(channel), channel
        return self._call(*arguments, **options)


class RenewedChannel(grpc.aio.Channel):
    """Calls over the channel of the moment; `follow` must run beside."""

    def __init__(self, identity: WatchedIdentity, connect: Connect, name: str) -> None:
        self._identity = identity
        self._connect = connect
        self._name = name
        self._presented = identity.current
        self.current = connect(self._presented)

    async def follow(self) -> None:
        """Presents for ever the identity that is in use."""
        async with asyncio.TaskGroup() as endings:
            while True:
                self._presented = await self._identity.after(self._presented)
                upcoming = self._connect(self._presented)
                if await self._let_in(upcoming):
                    former, self.current = self.current, upcoming
                    endings.create_task(_ended(former))
                else:
                    await upcoming.close()

    async def _let_in(self, upcoming: grpc.aio.Channel) -> bool:
        """Waits until `upcoming` is to be used; False if the identity was renewed meanwhile.

        While the old channel works it stays in use until the new one does: so no call waits for a
        handshake, and none fails when the other side does not know the new authority yet.
        """
        looks = 0
        try:
            while self._identity.current is self._presented:
                if self.current.get_state() in _EXPENDABLE or _connected(upcoming):
                    return True
                looks += 1
                if looks >= _MOST_LOOKS:
                    return True
                if looks == _PATIENCE_LOOKS:
                    structlog.get_logger().warning(
                        "new certificate not let in, the old connection stays", service=self._name
                    )
                await asyncio.sleep(_LOOK_SECONDS)
        except asyncio.CancelledError:
            await upcoming.close()
            raise
        return False

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """Returns a callable that stays of use; see grpc.aio.Channel, as for all below."""
        return _Method(self, lambda channel: channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """Returns a callable that stays of use."""
        return _Method(self, lambda channel: channel.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """Returns a callable that stays of use."""
        return _Method(self, lambda channel: channel.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """Returns a callable that stays of use."""
        return _Method(self, lambda channel: channel.stream_stream(*method, **options))

    def get_state(self, try_to_connect: bool = False) -> ChannelConnectivity:
        """Returns the state of the channel of the moment."""
        return self.current.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: ChannelConnectivity) -> None:
        """Returns when the channel of the moment is in another state."""
        await self.current.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns when the channel of the moment is connected."""
        await self.current.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Ends the channel of the moment; its calls may take `grace` seconds to end."""
        await self.current.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _connected(channel: grpc.aio.Channel) -> bool:
    return channel.get_state(try_to_connect=True) is ChannelConnectivity.READY


async def _ended(channel: grpc.aio.Channel) -> None:
    """Closes the channel when its last call has ended."""
    try:
        await asyncio.sleep(_DEPARTURE_SECONDS)
        await channel.close(_LONGEST_SECONDS)
    finally:
        await channel.close()
