"""What a kind of database has to do to be one, each of it safe to repeat."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.shared.ids import BackupId, DeploymentId


class DriverError(Exception):
    """The database is not as it should be, and trying again may help. Names no secret."""


class DamagedError(DriverError):
    """A backup is not what was written; no later try will do better."""


class UnsupportedError(DriverError):
    """This kind of database cannot do it; no later try will do better."""


class MissingError(DriverError):
    """What was kept is not there any more; no later try will find it."""


@dataclass(frozen=True, slots=True)
class WantedDatabase:
    """How a deployment's database should be."""

    deployment_id: DeploymentId
    # Of its passwords now.
    generation: int
    # Whose passwords open it: now's, and during a rotation's overlap those before.
    open_generations: tuple[int, ...]
    quota_bytes: int
    # Where it was last.
    server_port: int | None


@dataclass(frozen=True, slots=True)
class Login:
    """Who to come in as."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """How a running database is."""

    used_bytes: int
    # It is refused to hold more.
    over_quota: bool
    # A statement of a tenant's session runs, or a transaction of one is open.
    busy: bool
    # Grows whenever a tenant's session does anything; for one that came and went within seconds.
    # It may begin anew when the server does.
    statements: int


class DatabaseDriver(Protocol):
    """Makes databases, one per deployment, and takes them away."""

    @property
    def backs_up(self) -> bool:
        """Whether `back_up` and `restore` are supported; they raise UnsupportedError if not."""
        ...

    async def ensure(self, wanted: WantedDatabase) -> DatabaseAddress:
        """Returns where the deployment's database is, made and started as far as it was not.

        Idempotent from every state that an earlier try can have left. The port is the wanted one
        when that is free. The passwords of the open generations alone open it, and its quota holds.

        Raises:
            DriverError: it is not ready; a later try may succeed.
        """
        ...

    async def exists(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database is when it is whole and running; changes nothing.

        Raises:
            DriverError: that cannot be told now.
        """
        ...

    async def sleep(self, deployment: DeploymentId) -> None:
        """Ends the database's server; its data stay. Does nothing if there is none.

        Raises:
            DriverError: it does not end; a later try may succeed.
        """
        ...

    async def kept(self, deployment: DeploymentId) -> bool:
        """Returns whether the database's data are here, its server running or not.

        Raises:
            DriverError: that cannot be told now.
        """
        ...

    async def destroy(self, deployment: DeploymentId) -> None:
        """Ends the database and removes its data; does nothing if there is none.

        Raises:
            DriverError: something of it is left; a later try may succeed.
        """
        ...

    def login(self, deployment: DeploymentId, role: DatabaseRole, generation: int) -> Login:
        """Returns who acts as `role` in the deployment's database, by that generation's password.

        Two generations that follow each other have different users.
        """
        ...

    async def open_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Lets a generation's passwords open the database, beside those of the one before.

        Does nothing when it does not run.

        Raises:
            DriverError: they may not open it; a later try may succeed.
        """
        ...

    async def close_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Ends a generation's passwords and every session that came in by them, and no other's.

        Does nothing when the database does not run.

        Raises:
            DriverError: something of it may be left; a later try may succeed.
        """
        ...

    async def set_quota(self, deployment: DeploymentId, quota_bytes: int) -> None:
        """Lets the database hold so much from now on (P-03); does nothing when it does not run.

        Raises:
            DriverError: it may not be in force; a later try may succeed.
        """
        ...

    async def measure(self, deployment: DeploymentId) -> Measured | None:
        """Returns how the database is; None when it does not run.

        Raises:
            DriverError: it does not answer.
        """
        ...

    async def branch(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the target's database a copy of the source's as it is at one moment.

        Whole or not at all; does nothing if the target's data are there. The source may be in use,
        or asleep, and stays as it is. No password of the source ever opens the target, which runs
        only once `ensure` has started it.

        Raises:
            DriverError: there is no copy; a later try may succeed, unless the source is gone.
        """
        ...

    async def back_up(self, deployment: DeploymentId, file: Path, backup: BackupId) -> int:
        """Writes the database, as it is at one moment, into a new file, and returns its bytes.

        Whole and proven to be readable, or not at all; does nothing if the file is there. Nobody
        but this driver can read what it holds, or change it unseen, or pass it for another backup.

        Raises:
            DriverError: there is no file; a later try may succeed, unless the database is gone.
        """
        ...

    async def restore(
        self, file: Path, target: DeploymentId, source: DeploymentId, backup: BackupId
    ) -> None:
        """Makes the target's database what `file` holds, a backup of the source's; as `branch`.

        Raises:
            DamagedError: the file is not that very backup of the source, or not all of it.
            DriverError: there is no copy; a later try may succeed.
        """
        ...

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment of which anything is left here, wanted or not.

        Raises:
            DriverError: that cannot be told now.
        """
        ...

    async def keep_spare(self) -> None:
        """Keeps ready what the next database is made from, for ever; most need not do anything."""
        ...


class DatabaseListeners(Protocol):
    """Listens at databases' public ports, and relays to their servers, which it wakes."""

    @property
    def host(self) -> str:
        """Where they listen."""
        ...

    @property
    def opened(self) -> frozenset[DeploymentId]:
        """Whom this process listens for."""
        ...

    async def open(self, deployment: DeploymentId, port: int | None) -> int | None:
        """Returns the port on which the deployment's database is to be reached from now on.

        That is `port`, or a free one when that is None; None when someone else listens there, as
        another replica on this machine does.

        Raises:
            DriverError: no port is free.
        """
        ...

    async def close(self, deployment: DeploymentId) -> None:
        """Listens for the deployment no more, and cuts off whoever came that way."""
        ...
