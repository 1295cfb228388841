"""YAML files of operators: read strictly, and refused in one line that says where and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from services.shared.settings import UnusableFileError

_MOST_BYTES = 1 << 20
# How pydantic calls a field that the model does not have.
_UNKNOWN = "extra_forbidden"
_TAG = "tag:yaml.org,2002:"
_RECOGNISED = (f"{_TAG}null", f"{_TAG}merge")
_CONSTRUCTED = (f"{_TAG}null", f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map", None)

Model = TypeVar("Model", bound=BaseModel)


def parsed_as(
    model: type[Model], file: Path, text: bytes, context: Mapping[str, Any] | None = None
) -> Model:
    """Returns the text of `file` as `model` has it; `context` is for the model's own checks.

    Raises:
        UnusableFileError: the first thing that is wrong, with the file and where in it.
    """
    if len(text) > _MOST_BYTES:
        raise UnusableFileError(f"{file}: more than {_MOST_BYTES} bytes")
    try:
        written = yaml.load(text, _Loader)  # noqa: S506 a SafeLoader
        return model.model_validate(written, context=dict(context or {}))
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
    # What a misspelt field leaves out is told after it: the typing error is the cause.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != _UNKNOWN)
    first = problems[0]
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).removeprefix(".")
    unknown = first["type"] == _UNKNOWN
    message = "no such field" if unknown else first["msg"].removeprefix("Value error, ")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where}: {message}{more}" if where else f"{message}{more}"
