"""Which tests run in one process, and in which order: what takes long begins first."""

from pathlib import PurePath

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

# Files that use one stack, which is ended after the last of them.
_OF_ONE_STACK = frozenset(
    {
        "tests/e2e/test_canaries.py",
        "tests/e2e/test_faults.py",
        "tests/e2e/test_story.py",
    }
)
# The longest. Those with a whole stack and those without take turns: two cores bear few stacks.
_FIRST = (
    "tests/e2e/test_canaries.py",
    "tests/e2e/test_faults.py",
    "tests/e2e/test_story.py",
    "tests/isolation/test_database_server.py",
    "tests/lifecycle/test_rolling_restart.py",
    "tests/lifecycle/test_stack.py",
    "tests/lifecycle/test_provisioner.py",
    "tests/isolation/test_revocation_guarantee.py",
    "tests/e2e/test_demo.py",
    "tests/e2e/test_restore.py",
    "tests/isolation/test_audit_before.py",
    "tests/lifecycle/test_sleep.py",
)
# Then folder after folder, the shortest files at the end, when some processes have no more to do.
_FOLDERS = ("e2e", "lifecycle", "isolation", "conformance", "stores", "contract")


class OneStackScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Gives a process whole files, and those that share a stack to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/e2e" if file in _OF_ONE_STACK else file


def rank(file: str) -> tuple[int, int]:
    """Returns how early the tests of `file`, relative to the project, begin."""
    folder = PurePath(file).parts[1]
    named = _FIRST.index(file) if file in _FIRST else len(_FIRST)
    return named, _FOLDERS.index(folder) if folder in _FOLDERS else -1


def named_files() -> set[str]:
    """Returns the files that are named here."""
    return {*_FIRST, *_OF_ONE_STACK}
