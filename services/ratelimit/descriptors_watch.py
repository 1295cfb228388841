"""The limits that hold now: read at the start, and again whenever their files change."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from opentelemetry import metrics

from services.ratelimit.descriptors import Domains
from services.ratelimit.descriptors_file import Texts, parsed, read_texts
from services.shared.background import background
from services.shared.settings import UnusableFileError


class DescriptorFiles:
    """The domains in the files of one place; what cannot be used never replaces what can."""

    def __init__(self, place: Path, texts: Texts, domains: Domains) -> None:
        self._place = place
        self._texts = texts
        self._refused = ""
        self.domains = domains
        self._loads = metrics.get_meter("bulkhead").create_counter(
            "bulkhead.ratelimit.config_loads", unit="{load}"
        )

    @classmethod
    def read(cls, place: Path) -> "DescriptorFiles":
        """Returns the files with their domains.

        Raises:
            UnusableFileError: something is wrong with them.
        """
        texts = read_texts(place)
        return cls(place, texts, parsed(texts))

    async def refresh(self) -> None:
        """Takes over what the files say now; if that cannot be used, what was read before stays.

        Their whole content is compared, since times and inodes of a mounted ConfigMap tell little.
        """
        try:
            texts = await asyncio.to_thread(read_texts, self._place)
            if texts != self._texts:
                self.domains = await asyncio.to_thread(parsed, texts)
                self._took_over(texts)
            self._refused = ""
        except (UnusableFileError, OSError) as error:
            self._refuse(str(error))

    def _took_over(self, texts: Texts) -> None:
        self._texts = texts
        self._loads.add(1, {"result": "loaded"})
        structlog.get_logger().info("limits read again", place=str(self._place))

    def _refuse(self, why: str) -> None:
        if why == self._refused:
            return
        self._refused = why
        self._loads.add(1, {"result": "refused"})
        structlog.get_logger().error("limits not read again, those before stay", why=why)


@asynccontextmanager
async def watched(place: Path | None, seconds: float) -> AsyncIterator[DescriptorFiles | None]:
    """Yields the files of `place`, looked at again every so many seconds; None without a place.

    Raises:
        UnusableFileError: something is wrong with them now.
    """
    if place is None:
        yield None
        return
    files = DescriptorFiles.read(place)
    async with background(_watch(files, seconds)):
        yield files


async def _watch(files: DescriptorFiles, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await files.refresh()
