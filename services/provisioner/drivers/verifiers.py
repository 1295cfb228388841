"""The logins of a deployment's database: their passwords, and what a server keeps of them."""

from collections.abc import Sequence

from services.provisioner.domain import DatabaseRole
from services.provisioner.drivers import local_database
from services.provisioner.drivers.protocol import Login
from services.provisioner.drivers.scram import verifier
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId


def login(
    secret: MasterSecret, deployment: DeploymentId, role: DatabaseRole, generation: int
) -> Login:
    """Returns who acts as `role` by that generation's password; nothing stores it (P-02)."""
    user = local_database.login(role, generation)
    return Login(user, secret.password(deployment, user, str(generation)))


def verifiers(
    secret: MasterSecret, deployment: DeploymentId, open_generations: Sequence[int]
) -> dict[str, str | None]:
    """Returns what the server keeps of each password, so that no log holds one; None of none."""
    wanted: dict[str, str | None] = dict.fromkeys(local_database.LOGINS)
    for generation in sorted(open_generations):
        for role in DatabaseRole:
            user = local_database.login(role, generation)
            wanted[user] = verifier_of(secret, deployment, user, str(generation))
    for user in (local_database.GUARD, local_database.SUPERUSER):
        wanted[user] = verifier_of(secret, deployment, user)
    return wanted


def verifier_of(secret: MasterSecret, *use: str) -> str:
    """Returns the verifier of one password; the same each time."""
    return verifier(secret.password(*use), secret.salt(*use))
