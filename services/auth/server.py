"""Composition of auth."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import add_AuthServiceServicer_to_server
from opentelemetry import metrics

from services.auth.audit import AuditLog
from services.auth.audit_intake import AuditIntake
from services.auth.authenticator import LocalAuditor, LocalAuthenticator
from services.auth.domain import JobLifetimes
from services.auth.effects import Effects
from services.auth.endings import Endings
from services.auth.erasure import Erasure
from services.auth.keys import Keys
from services.auth.last_uses import LastUses
from services.auth.minting import Mint
from services.auth.owned import OwnedIds
from services.auth.pepper import Keyring, Pepper
from services.auth.pepper_census import PepperCensus
from services.auth.revocations import RevocationFeed
from services.auth.rpc import AuthRpc
from services.auth.service import AuthService
from services.auth.settings import Settings
from services.auth.support import SupportKeys
from services.auth.tenants import Tenants
from services.auth.upkeep import keep_tidy
from services.auth.watchers import Watchers
from services.shared.background import background
from services.shared.clock import utc_now
from services.shared.identity import open_identity
from services.shared.postgres import Database, open_database
from services.shared.server import Registration, Service
from services.shared.settings import UnusableFileError, read_file, secret_text

MIGRATIONS = Path(__file__).parent / "migrations"


@asynccontextmanager
async def compose(settings: Settings) -> AsyncIterator[Service]:
    """Yields auth, ready to be served."""
    async with (
        open_identity(settings) as identity,
        open_database(settings, "auth", MIGRATIONS) as database,
    ):
        effects = Effects(database, settings.fence)
        keyring = _keyring(settings)
        service = _service(settings, database, effects, keyring)
        census = PepperCensus(database, keyring, metrics.get_meter("bulkhead"))
        operator_key = secret_text(settings.bootstrap_operator_key_file)
        if operator_key is not None:
            await service.keys.put_operator_key(operator_key)
        await census.tell()
        loops = (service.feed.run(), effects.run(), service.uses.run(), keep_tidy(database))
        async with background(*loops, census.run()):
            yield Service(
                registrations=[
                    Registration(
                        pb2.DESCRIPTOR.services_by_name["AuthService"],
                        AuthRpc(service),
                        add_AuthServiceServicer_to_server,
                    )
                ],
                authenticator=LocalAuthenticator(service, settings.key_prefix),
                auditor=LocalAuditor(service),
                checks={"postgres": database.check},
                identity=identity,
            )


def _service(
    settings: Settings, database: Database, effects: Effects, keyring: Keyring
) -> AuthService:
    mint = Mint(keyring.current, settings.key_prefix)
    jobs = JobLifetimes(settings.job_key_lifetime, settings.closing_key_lifetime)
    keys = Keys(database, mint, keyring, utc_now, jobs)
    audit = AuditLog(database)
    return AuthService(
        Tenants(database, mint, effects, utc_now, jobs),
        keys,
        Endings(database, mint, effects),
        Erasure(database, effects),
        OwnedIds(database, effects),
        audit,
        AuditIntake(keys, audit),
        RevocationFeed(database),
        Watchers(database, settings.fence),
        LastUses(database, utc_now),
        SupportKeys(database, mint),
    )


def _keyring(settings: Settings) -> Keyring:
    upcoming = settings.next_pepper_file
    try:
        return Keyring(
            read_pepper(settings.pepper_file),
            [read_pepper(file) for file in settings.previous_pepper_files],
            read_pepper(upcoming) if upcoming is not None else None,
        )
    except ValueError as error:
        raise UnusableFileError(f"peppers: {error}") from error


def read_pepper(file: Path) -> Pepper:
    """Returns the pepper in `file`.

    Raises:
        UnusableFileError: it is not there, or too short.
    """
    try:
        return Pepper(read_file(file).strip())
    except ValueError as error:
        raise UnusableFileError(f"{file}: {error}") from error
