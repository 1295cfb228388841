"""What credentials does, by subject."""

from dataclasses import dataclass

from services.credentials.authorizations import Authorizations
from services.credentials.bindings import Bindings
from services.credentials.completion import Completion
from services.credentials.connections import Connections
from services.credentials.deletion import Deletion
from services.credentials.erasure import Erasure
from services.credentials.providers.catalogue import Catalogue
from services.credentials.providers.clients import OperatorClients
from services.credentials.suspensions import Suspensions
from services.credentials.vending import Vending
from services.credentials.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class CredentialsService:
    """Connections, bindings and vends, over one database."""

    catalogue: Catalogue
    operators: OperatorClients
    connections: Connections
    deletion: Deletion
    authorizations: Authorizations
    completion: Completion
    bindings: Bindings
    suspensions: Suspensions
    webhooks: Webhooks
    erasure: Erasure
    vending: Vending
