"""The files that say which limits there are: read, checked, and refused with a reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from services.ratelimit.descriptors import Domains
from services.ratelimit.descriptors_model import FilePart
from services.shared.settings import UnusableFileError, read_file

_MOST_BYTES = 1 << 20
_TAG = "tag:yaml.org,2002:"
_RECOGNISED = (f"{_TAG}null", f"{_TAG}merge")
_CONSTRUCTED = (f"{_TAG}null", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map", None)

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
        part = _part(file, text)
        if part.domain in domains:
            raise UnusableFileError(f"{file}: domain: {part.domain} is another file's")
        domains[part.domain] = part.level()
    return domains


def _part(file: Path, text: bytes) -> FilePart:
    if len(text) > _MOST_BYTES:
        raise UnusableFileError(f"{file}: more than {_MOST_BYTES} bytes")
    try:
        return FilePart.model_validate(yaml.load(text, _Loader))  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        raise UnusableFileError(f"{file}: {_one_line(error)}") from error
    except (RecursionError, UnicodeError) as error:
        raise UnusableFileError(f"{file}: {type(error).__name__}") from error
    except ValidationError as error:
        raise UnusableFileError(f"{file}: {_first(error)}") from error


class _Loader(yaml.SafeLoader):
    """Leaves scalars as they are written, and refuses what is said twice.

    The version 1.10 is no number, and the value of `value: yes` is "yes"; the model reads numbers
    and truth where it expects them.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 as the base class has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _RECOGNISED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # The others fail in ways of their own, as at `!!int x`.
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _CONSTRUCTED}  # noqa: RUF012 the same

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Returns the mapping, before anything is merged into it."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"{key.value} is there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _first(error: ValidationError) -> str:
    problems = error.errors()
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in problems[0]["loc"]
    ).removeprefix(".")
    message = problems[0]["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"
