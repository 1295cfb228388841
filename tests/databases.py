"""A database per service and mesh, cloned from a template that was migrated once."""

import itertools
from pathlib import Path

from deploy.local.postgres import MeshPostgres
from services.shared.postgres import connect
from services.shared.schema import migrate
from services.shared.settings import PostgresSettings

SERVICES = Path(__file__).parent.parent / "services"


class Databases:
    """Hands out fresh, migrated databases."""

    def __init__(self, postgres: MeshPostgres) -> None:
        self.postgres = postgres
        self._templates: dict[str, str] = {}
        self._number = itertools.count()

    async def fresh(self, service: str) -> PostgresSettings:
        """Returns how `service` reaches a new database of its own."""
        password_file = await self.postgres.create_service(service)
        if service not in self._templates:
            self._templates[service] = service
            await self._migrate(self._settings(service, service, password_file), service)
        name = f"{service}_{next(self._number)}"
        await self._superuser(f'CREATE DATABASE "{name}" TEMPLATE "{service}" OWNER "{service}"')
        return self._settings(service, name, password_file)

    def _settings(self, service: str, database: str, password_file: Path) -> PostgresSettings:
        return PostgresSettings(
            postgres_host=self.postgres.host,
            postgres_port=self.postgres.port,
            postgres_database=database,
            postgres_user=service,
            postgres_password_file=password_file,
        )

    async def _migrate(self, settings: PostgresSettings, service: str) -> None:
        connection = await connect(settings)
        try:
            await migrate(connection, SERVICES / service / "migrations")
        finally:
            await connection.close()

    async def _superuser(self, statement: str) -> None:
        connection = await self.postgres.connect()
        try:
            await connection.execute(statement)
        finally:
            await connection.close()
