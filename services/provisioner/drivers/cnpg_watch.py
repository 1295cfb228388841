"""Waits until an object of a cluster is as it should be, by a watch that outlives its breaks."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from time import monotonic

import aiohttp

from services.provisioner.drivers.cnpg_api import ApiError, Kind, KubernetesApi, Object

_GONE = 410
_LONGEST_WATCH_SECONDS = 120.0
_PAUSE_SECONDS = 0.2

Condition = Callable[[Object | None], bool]


class NotInTimeError(Exception):
    """It is not as it should be in time."""


async def until(
    api: KubernetesApi,
    kind: Kind,
    name: str,
    namespace: str,
    condition: Condition,
    patience: float,
) -> Object | None:
    """Returns the object as soon as it meets the condition; None is one that is not there.

    Each break of the watch, and a version that the API has forgotten (410), begins with a look
    anew: no event can be missed for good.

    Raises:
        NotInTimeError: it does not within `patience` seconds.
        ApiError: it cannot be looked at.
    """
    end = monotonic() + patience
    while True:
        found, version = await api.look(kind, name, namespace)
        if condition(found):
            return found
        left = end - monotonic()
        if left <= 0:
            raise NotInTimeError(f"{kind.plural} {name}")
        try:
            # Its own end is ours; a watch of the API's ends by itself as well.
            async with asyncio.timeout(min(left, _LONGEST_WATCH_SECONDS)):
                async for changed in _events(api, kind, name, namespace, version, left):
                    if condition(changed):
                        return changed
        except TimeoutError:
            continue
        # A watch that ends at once must not become a storm of them.
        await asyncio.sleep(random.uniform(0, _PAUSE_SECONDS))  # noqa: S311 no secret


async def _events(
    api: KubernetesApi, kind: Kind, name: str, namespace: str, version: str, seconds: float
) -> AsyncIterator[Object | None]:
    """Yields the object at each change, None when it is gone; ends when the watch breaks."""
    longest = min(seconds, _LONGEST_WATCH_SECONDS)
    try:
        async with api.watch(kind, name, namespace, version, longest) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "DELETED":
                    yield None
                elif event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"]
                elif event["type"] == "ERROR":
                    return
    except (aiohttp.ClientError, ValueError, KeyError):
        return
    except ApiError as error:
        if error.status is not None and error.status < _GONE:
            raise
