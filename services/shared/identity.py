"""A service's own certificate while it runs: its files are watched, and what is new is used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from pathlib import Path

import structlog
from opentelemetry import metrics

from services.shared.background import background
from services.shared.certificates import Life, UnusableCertificateError, checked_life
from services.shared.clock import Clock, utc_now
from services.shared.settings import ServiceSettings, UnusableFileError
from services.shared.tls import Identity, identity_files

# What files are like at a moment: a change of any shows here.
_Signature = tuple[tuple[int, int, int] | None, ...]


class _Age(IntEnum):
    FRESH = 0
    RENEWAL_DUE = 1
    EXPIRED = 2


class WatchedIdentity:
    """The identity in use, and the files that a new one will be in.

    New files are used once they are whole: the certificate is the key's, valid, and of one of the
    authorities. Until then the old identity stays in use, and what is wrong is logged once when it
    is still wrong at the second look, so that files in the middle of being written are waited for.
    """

    def __init__(self, settings: ServiceSettings, clock: Clock = utc_now) -> None:
        """Reads the files.

        Raises:
            UnusableFileError: one is missing or not ours to read, or they are of no use.
        """
        self._files = identity_files(settings)
        self._clock = clock
        self._settled: _Signature | None = self._signature()
        self.current = Identity.read(*self._files)
        try:
            self.life = self._checked(self.current)
        except UnusableCertificateError as error:
            raise UnusableFileError(f"{self._files[0]}: {error}") from error
        self._age = _Age.FRESH
        self._doubt: str | None = None
        self._told = False
        self._renewed = asyncio.Event()
        self._gauge = metrics.get_meter("bulkhead").create_gauge(
            "bulkhead.tls.certificate.expiry",
            "s",
            "Seconds until the service's own certificate expires; negative when it has.",
        )

    async def after(self, used: Identity) -> Identity:
        """Returns the identity in use, once it is another than `used`."""
        while self.current is used:
            await self._renewed.wait()
        return self.current

    async def watch(self, seconds: float) -> None:
        """Looks at the files for ever, every `seconds`."""
        while True:
            self.look()
            await asyncio.sleep(seconds)

    def look(self) -> None:
        """Uses what is in the files if it is new and of use, and warns of an end that is near."""
        signature = self._signature()
        if signature != self._settled:
            self._reconsider(signature)
        self._grow_old()

    def _reconsider(self, signature: _Signature) -> None:
        try:
            found = Identity.read(*self._files)
            life = self._of_us(self._checked(found))
        except (UnusableFileError, UnusableCertificateError) as error:
            self._hesitate(str(error))
            return
        # Else some is from before and some from after a change: the next look finds all of it.
        if self._signature() == signature:
            self._settled, self._doubt = signature, None
            if found != self.current:
                self._use(found, life)

    def _use(self, found: Identity, life: Life) -> None:
        self.current, self.life, self._age = found, life, _Age.FRESH
        renewed, self._renewed = self._renewed, asyncio.Event()
        renewed.set()
        structlog.get_logger().info(
            "certificate renewed", serial=life.serial, ends=life.ends.isoformat()
        )

    def _hesitate(self, problem: str) -> None:
        if problem != self._doubt:
            self._doubt, self._told = problem, False
        elif not self._told:
            self._told = True
            structlog.get_logger().warning(
                "new certificate of no use, the old one stays",
                problem=problem,
                file=str(self._files[0]),
                ends=self.life.ends.isoformat(),
            )

    def _grow_old(self) -> None:
        now = self._clock()
        self._gauge.set((self.life.ends - now).total_seconds())
        age = _Age((now >= self.life.renewal_due) + (now >= self.life.ends))
        if age > self._age:
            self._age = age
            told = "certificate expired" if age is _Age.EXPIRED else "certificate near its end"
            structlog.get_logger().warning(
                told, file=str(self._files[0]), ends=self.life.ends.isoformat()
            )

    def _of_us(self, life: Life) -> Life:
        if life.names != self.life.names:
            raise UnusableCertificateError("the certificate is of another service")
        return life

    def _checked(self, identity: Identity) -> Life:
        return checked_life(identity.certificate, identity.key, identity.authority, self._clock())

    def _signature(self) -> _Signature:
        return tuple(map(_signature_of, self._files))


@asynccontextmanager
async def open_identity(settings: ServiceSettings) -> AsyncIterator[WatchedIdentity]:
    """Yields the identity that the settings name, its files watched meanwhile.

    Raises:
        UnusableFileError: a file is missing or not ours to read, or they are of no use.
    """
    identity = WatchedIdentity(settings)
    async with background(identity.watch(settings.tls_reload_seconds)):
        yield identity


def _signature_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
