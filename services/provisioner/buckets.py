"""Which driver makes the buckets of this provisioner, by its settings."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.s3 import open_s3_driver
from services.provisioner.drivers.s3_client import S3Address
from services.provisioner.drivers.seaweed_identities import FilerAddress, open_seaweed_identities
from services.provisioner.master_secret import MasterSecret
from services.provisioner.settings import Settings
from services.shared.settings import UnusableFileError, secret_text


@asynccontextmanager
async def open_buckets(
    settings: Settings, secret: MasterSecret
) -> AsyncIterator[BucketDriver | None]:
    """Yields the driver, its connections ended after; None when no storage is set.

    Raises:
        UnusableFileError: a file that the settings name is not as it should be.
    """
    if not settings.s3_endpoint:
        yield None
        return
    address = S3Address(
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=secret_text(settings.s3_secret_file) or "",
    )
    filer = FilerAddress(
        url=settings.seaweed_filer,
        certificate=settings.seaweed_cert_file,
        key=settings.seaweed_key_file,
        authority=settings.seaweed_ca_file,
    )
    async with AsyncExitStack() as stack:
        try:
            identities = await stack.enter_async_context(open_seaweed_identities(filer))
        except (OSError, ssl.SSLError) as error:
            raise UnusableFileError(f"{filer.certificate}: {error.strerror}") from error
        yield await stack.enter_async_context(open_s3_driver(address, identities, secret))
