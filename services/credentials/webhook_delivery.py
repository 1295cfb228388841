"""Telling tenants of their connections: signed, at least once, and no tenant at another's cost.

What to tell is written by the database itself, together with what it is about. Any replica takes a
report on for a while; if it dies, the report is due again. A receiver sees the same `webhook-id`
when it is told twice. Signatures are those of Standard Webhooks (standardwebhooks.com).
"""

import asyncio
import base64
import hashlib
import hmac
import json
import random
from datetime import datetime, timedelta

import httpx
import structlog

from services.credentials import webhook_store as store
from services.credentials.webhook_store import Due
from services.credentials.webhooks import secret_place, signing_key
from services.shared.crypto import UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import UnavailableError
from services.shared.ids import TenantId
from services.shared.postgres import Database

# How long a report is tried.
KEPT = timedelta(days=3)
MOST_AT_ONCE = 32
_MOST_DELAY = timedelta(hours=6)
_MOST_QUADRUPLINGS = 12
# How long a receiver that is away holds up what else there is for it.
_MOST_OTHERS_WAIT = timedelta(minutes=5)
# Longer than any delivery takes.
_LEASE = timedelta(minutes=2)
_GONE, _TOO_MANY, _FAULT = 410, 429, 500


class UndeliveredError(Exception):
    """A report did not arrive; its text is for the tenant, and never the receiver's own words."""

    def __init__(self, failure: str, *, receiver_away: bool = False, final: bool = False) -> None:
        super().__init__(failure)
        self.failure = failure
        # Whatever else is sent there now will not arrive either.
        self.receiver_away = receiver_away
        self.final = final


class Deliveries:
    """Delivers what is due, a few at once and of each tenant one."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        http: httpx.AsyncClient,
        *,
        first_retry: timedelta,
        poll_seconds: float,
        most_at_once: int = MOST_AT_ONCE,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._http = http
        self._first_retry = first_retry
        self._poll_seconds = poll_seconds
        self._most = most_at_once
        self._under_way: dict[asyncio.Task[None], TenantId] = {}

    async def run(self) -> None:
        """Delivers for ever; what is under way at the end is due again when its lease is over."""
        try:
            while True:
                if not await self._take_on():
                    await self._pause()
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _take_on(self) -> bool:
        """Begins what is due and has room; returns whether there was any."""
        room = self._most - len(self._under_way)
        if room <= 0:
            return False
        try:
            async with self._database.service() as connection:
                claimed = await store.claim_due(connection, self._under_way.values(), room, _LEASE)
        except UnavailableError:
            structlog.get_logger().warning("webhooks cannot be looked after")
            return False
        for due in claimed:
            task = asyncio.create_task(self._deliver(due))
            self._under_way[task] = due.tenant_id
            task.add_done_callback(self._under_way.pop)
        return bool(claimed)

    async def _pause(self) -> None:
        """Waits until there is room, or something may be due."""
        if self._under_way:
            await asyncio.wait(
                self._under_way, timeout=self._poll_seconds, return_when=asyncio.FIRST_COMPLETED
            )
        else:
            await asyncio.sleep(self._poll_seconds)

    async def _deliver(self, due: Due) -> None:
        try:
            try:
                await self._send(due)
            except UndeliveredError as error:
                await self._failed(due, error)
                return
            async with self._database.tenant(due.tenant_id) as connection:
                await store.set_delivered(connection, due)
        except Exception as error:  # noqa: BLE001 whatever it is, it is due again after its lease
            structlog.get_logger().warning(
                "webhook not looked after", event_id=due.event_id, error=type(error).__name__
            )

    async def _send(self, due: Due) -> None:
        secret = await self._secret(due)
        body = body_of(due.kind, due.created_at, due.body)
        headers = signed_headers(secret, due.event_id, due.at, body)
        try:
            answer = await self._http.post(due.url, content=body, headers=headers)
        except httpx.ConnectError as error:
            failure = "the receiver cannot be reached, or is not at a public address"
            raise UndeliveredError(failure, receiver_away=True) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UndeliveredError("the receiver did not answer", receiver_away=True) from error
        if not answer.is_success:
            raise _refused(answer.status_code)

    async def _secret(self, due: Due) -> str:
        try:
            cipher = await self._data_keys.existing(due.tenant_id)
            if cipher is None:
                raise UndeliveredError("the webhook is being ended")
            return cipher.open(secret_place(due.tenant_id), due.sealed_secret)
        except UnreadableError as error:
            failure = "the webhook's secret cannot be read: set the webhook anew"
            raise UndeliveredError(failure) from error

    async def _failed(self, due: Due, error: UndeliveredError) -> None:
        dropped = error.final or due.at - due.created_at >= KEPT
        log = structlog.get_logger().bind(
            event_id=due.event_id, tenant_id=due.tenant_id, tries=due.tries, failure=error.failure
        )
        async with self._database.tenant(due.tenant_id) as connection:
            if dropped:
                told = f"{error.failure}; it was given up"
                reports = await store.set_dropped(connection, due, told, KEPT)
                log.warning("webhook given up", reports=reports)
                return
            delay = retry_delay(self._first_retry, due.tries, random.random())  # noqa: S311
            others = min(delay, _MOST_OTHERS_WAIT) if error.receiver_away else timedelta(0)
            await store.set_failed(connection, due, error.failure, delay, others)
        log.info("webhook to be tried again")


def retry_delay(first: timedelta, tries: int, chance: float) -> timedelta:
    """Returns how long to wait after `tries` failures.

    It quadruples from `first` to at most six hours; `chance` (0 to 1) takes up to a half off, so
    that what failed together does not come back together.
    """
    grown = first * 4.0 ** min(tries - 1, _MOST_QUADRUPLINGS)
    return min(grown, _MOST_DELAY) * (1 - chance / 2)


def body_of(kind: str, created_at: datetime, content: str) -> bytes:
    """Returns the report as it is sent, the same each time."""
    report = {"type": kind, "timestamp": created_at.isoformat(), "data": json.loads(content)}
    return json.dumps(report, separators=(",", ":")).encode()


def signed_headers(secret: str, event_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Returns the headers of Standard Webhooks 1.0: id, time of sending, signature."""
    time = str(round(at.timestamp()))
    signed = b".".join((event_id.encode(), time.encode(), body))
    digest = hmac.new(signing_key(secret), signed, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "user-agent": "bulkhead-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": time,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def _refused(status: int) -> UndeliveredError:
    """Returns what an answer that is no success means; redirects are not followed."""
    return UndeliveredError(
        f"the receiver answered {status}",
        receiver_away=status >= _FAULT or status == _TOO_MANY,
        # "Gone" is a request to send it no more.
        final=status == _GONE,
    )
