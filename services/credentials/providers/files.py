"""The catalogue's files: ours beside this module, and the operator's own."""

from collections.abc import Mapping
from pathlib import Path

from services.credentials.providers.catalogue import Catalogue, Provider
from services.shared.settings import UnusableFileError, read_file
from services.shared.yaml_files import parsed_as

_OURS = Path(__file__).parent


def load_catalogue(folder: Path | None, *, private_targets: bool = False) -> Catalogue:
    """Returns our providers and those of `folder`; one of the same name replaces ours.

    `private_targets` lets the operator's be in plaintext and at private addresses.

    Raises:
        UnusableFileError: the first file that cannot be used, and why.
    """
    if folder is not None and not folder.is_dir():
        raise UnusableFileError(f"{folder}: is no folder")
    theirs = {} if folder is None else _providers(folder, private=private_targets)
    return Catalogue({**_providers(_OURS, private=False), **theirs})


def _providers(folder: Path, *, private: bool) -> Mapping[str, Provider]:
    # Hidden files are left out: a mounted ConfigMap keeps its versions in hidden folders.
    files = sorted(file for file in folder.glob("*.yaml") if not file.name.startswith("."))
    return {file.stem: _provider(file, private=private) for file in files}


def _provider(file: Path, *, private: bool) -> Provider:
    provider = parsed_as(Provider, file, read_file(file), {"private_targets": private})
    if provider.name != file.stem:
        raise UnusableFileError(f"{file}: name: must be {file.stem}, as the file is called")
    return provider
