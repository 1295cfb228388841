"""Looks for what is left of a tenant, wherever anything of it ever was (P-39).

It knows nothing of the provisioner's tables: it reads every row, key, object, name of a file,
process and port there is, and tells of each that names what is sought. What may stay is named in
`scan_rows`: that a tenant was, so that it is refused for ever, and what ends by itself.

Out of scope are logs, which say what was done, and what stores keep of things removed until they
write over them: write-ahead files, pages, segments.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.postgres import MeshPostgres
from deploy.local.s3 import S3Server
from deploy.local.valkey import ValkeyServer
from services.provisioner.drivers.postgres_process import reachable_home
from tests.mesh import Mesh
from tests.s3 import Storage
from tests.scan_machine import files_left, ports_left, processes_left
from tests.scan_rows import Names, keys_left, rows_left
from tests.scan_storage import storage_left

PATIENCE_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Scan:
    """An administrator's access to everything that a mesh keeps."""

    postgres: MeshPostgres
    # The name of each service's database.
    databases: dict[str, str]
    valkey: ValkeyServer
    storage: S3Server | None
    folders: Sequence[Path]

    async def findings(self, names: Names) -> list[str]:
        """Returns a sentence for each thing that is left; none when nothing is."""
        found = [
            *[await self._rows(service, names) for service in self.databases],
            await keys_left(self.valkey, names),
            await storage_left(self.storage, names.all) if self.storage else [],
            await asyncio.to_thread(files_left, self.folders, names.all),
            await asyncio.to_thread(processes_left, names.all),
            await asyncio.to_thread(ports_left, names.ports),
        ]
        return [sentence for part in found for sentence in part]

    async def settled(self, names: Names) -> list[str]:
        """Returns what is left when it was looked again and again for half a minute."""
        until = asyncio.get_running_loop().time() + PATIENCE_SECONDS
        while (left := await self.findings(names)) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_PAUSE_SECONDS)
        return left

    async def _rows(self, service: str, names: Names) -> list[str]:
        connection = await self.postgres.connect(self.databases[service])
        try:
            return await rows_left(connection, service, names)
        finally:
            await connection.close()


async def scan_of(
    mesh: Mesh, postgres: MeshPostgres, valkey: ValkeyServer, storage: Storage | None
) -> Scan:
    """Returns the scan of a mesh, whose stores these are."""
    settings: dict[str, Any] = dict(mesh.settings)
    return Scan(
        postgres,
        {service: each.postgres_database for service, each in settings.items()},
        valkey,
        await storage.server() if storage else None,
        [mesh.home, reachable_home(mesh.home)],
    )
