"""The files that say which limits there are: read, checked, and refused with a reason."""

from collections.abc import Mapping
from pathlib import Path

from services.ratelimit.descriptors import Domains
from services.ratelimit.descriptors_model import FilePart
from services.shared.settings import UnusableFileError, read_file
from services.shared.yaml_files import parsed_as

Texts = Mapping[Path, bytes]


def read_texts(place: Path) -> Texts:
    """Returns what is in the file `place`, or in each `*.yaml` of the folder.

    Hidden files are left out: a mounted ConfigMap keeps its versions in hidden folders.

    Raises:
        UnusableFileError: it cannot be read, or the folder holds no such file.
    """
    if not place.is_dir():
        return {place: read_file(place)}
    files = sorted(file for file in place.glob("*.yaml") if not file.name.startswith("."))
    if not files:
        raise UnusableFileError(f"{place}: the folder holds no *.yaml")
    return {file: read_file(file) for file in files}


def parsed(texts: Texts) -> Domains:
    """Returns the domains that the files describe, each in one file.

    Raises:
        UnusableFileError: the first thing that is wrong, with its file and where in it.
    """
    domains = {}
    for file, text in texts.items():
        part = parsed_as(FilePart, file, text)
        if part.domain in domains:
            raise UnusableFileError(f"{file}: domain: {part.domain} is another file's")
        domains[part.domain] = part.level()
    return domains
