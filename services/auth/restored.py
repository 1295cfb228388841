"""To be run when auth's database was restored, before auth is started: keys that ended since end.

`python -m services.auth.restored --ended auth.log` ends again what auth's log says has ended since
the backup; `--every-key` ends every key of every tenant, for whoever has no log. `--keys-to FOLDER`
then makes a key for each tenant that has none left. Settings are those of auth.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from services.auth.domain import IssuedKey
from services.auth.minting import Mint
from services.auth.restoration import Restoration, UnreadableLineError, ended_keys
from services.auth.server import MIGRATIONS, read_pepper
from services.auth.settings import Settings
from services.shared.errors import UnavailableError
from services.shared.ids import KeyId, TenantId
from services.shared.keyring.private_files import ensure_private
from services.shared.logging import configure_logging
from services.shared.postgres import open_database
from services.shared.runtime import CANNOT_START, WRONG_SETTINGS, read_settings
from services.shared.settings import UnusableFileError

_PRIVATE_FOLDER = 0o700


async def restored(
    settings: Settings, ends: Mapping[KeyId, datetime] | None, folder: Path | None
) -> str:
    """Returns what was done, for a person; see `Restoration`.

    Raises:
        UnavailableError: the database is away.
        UnusableFileError: a file cannot be read or written.
    """
    mint = Mint(read_pepper(settings.pepper_file), settings.key_prefix)
    async with open_database(settings, "auth", MIGRATIONS) as database:
        restoration = Restoration(database, mint)
        ended = await restoration.end(ends)
        without = await restoration.without_key()
        if folder is None or not without:
            return f"{ended} keys ended; {len(without)} tenants have no key left"
        made = restoration.minted(without)
        # First the files: a key that is valid and that nobody has would be of no use.
        _write(folder, {tenant_id: issued for tenant_id, (issued, _) in made.items()})
        await restoration.admit({tenant_id: key for tenant_id, (_, key) in made.items()})
    return f"{ended} keys ended; keys of {len(made)} tenants are in {folder}"


def _write(folder: Path, keys: Mapping[TenantId, IssuedKey]) -> None:
    folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    for tenant_id, issued in keys.items():
        file = folder / f"{tenant_id}.key"
        # What a run before wrote that ended too early was never valid.
        file.unlink(missing_ok=True)
        ensure_private(file, issued.key.encode())


def _ends(files: Sequence[Path]) -> dict[KeyId, datetime]:
    ends: dict[KeyId, datetime] = {}
    for file in files:
        try:
            told = ended_keys(file.read_text().splitlines())
        except OSError as error:
            raise UnusableFileError(f"{file}: {error.strerror}") from error
        except UnreadableLineError as error:
            raise UnusableFileError(
                f"{file}, line {error}: it does not say which keys ended;"
                " mend it, or use --every-key"
            ) from error
        for key_id, at in told.items():
            ends[key_id] = min(at, ends.get(key_id, at))
    return ends


def main() -> None:
    """Says in one line what was done; exits with 1 or 2 when nothing was, as a service does."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m services.auth.restored")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--ended", type=Path, nargs="+", metavar="LOG", help="logs of auth")
    which.add_argument("--every-key", action="store_true", help="end every key of every tenant")
    parser.add_argument(
        "--keys-to", type=Path, metavar="FOLDER", help="make keys for tenants that have none left"
    )
    given = parser.parse_args()
    settings = read_settings(Settings)
    configure_logging("auth", settings.log_level)
    try:
        ends = None if given.every_key else _ends(given.ended)
        print(asyncio.run(restored(settings, ends, given.keys_to)))  # noqa: T201 for the operator
    except UnusableFileError as error:
        print(error, file=sys.stderr)  # noqa: T201 the same
        raise SystemExit(WRONG_SETTINGS) from None
    except UnavailableError as error:
        print(f"nothing is known to be done: {error.message}", file=sys.stderr)  # noqa: T201 the same
        raise SystemExit(CANNOT_START) from None


if __name__ == "__main__":
    main()
