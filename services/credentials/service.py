"""What credentials does, by subject."""

from dataclasses import dataclass

from services.credentials.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class CredentialsService:
    """Connections, bindings and vends, over one database."""

    webhooks: Webhooks
