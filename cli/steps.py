"""The steps of operations, in words."""

from collections.abc import Mapping
from types import MappingProxyType

# By the names that the provisioner gives them; `--json` has those.
_WORDS: Mapping[str, str] = MappingProxyType(
    {
        # Making.
        "registering": "preparing its keys",
        "route": "reserving its host name",
        "database": "making its database",
        "bucket": "making its bucket",
        "publishing": "opening its host",
        # Deleting.
        "retiring": "revoking its keys",
        "unrouting": "closing its host",
        "releasing": "ending what was lent to it",
        "uncounting": "removing its counters",
        "destroying": "destroying its database",
        "emptying": "destroying its bucket",
        "discarding": "destroying its backups",
        "shredding": "destroying its secrets",
        "verifying": "looking whether all of it is gone",
        "certifying": "signing the certificate",
        # Suspending, and resuming.
        "closing": "closing its host",
        "withdrawing": "withholding what was lent to it",
        "sleeping": "putting its database to sleep",
        "locking": "locking its bucket",
        "unlocking": "unlocking its bucket",
        "lending": "lending it again what was lent",
        "opening": "opening its host",
        # Rotating.
        "issuing": "making new passwords",
        "switching": "changing over to the new passwords",
        "telling": "telling the front door of the new passwords",
        "overlapping": "overlapping: old and new passwords both work",
        "ending": "ending the old passwords",
        # Backing up, branching and restoring.
        "copying": "copying the database",
        "keeping": "storing the copy",
        # Deleting a tenant.
        "cutting_off": "cutting off its keys, sessions and hosts",
        "deleting_deployments": "deleting its deployments",
    }
)


def step_text(step: str) -> str:
    """Returns the step in words; one that is not known here by its own name."""
    return _WORDS.get(step, step.replace("_", " "))
