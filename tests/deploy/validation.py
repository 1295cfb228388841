"""Whether objects are what an API server takes: Kubernetes' own kinds, and those of operators."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import all_versions, major_minor

from tests.deploy.rendered import Manifest

_SCHEMAS = Path(__file__).parent / "schemas"
_NEWEST = 3
_METADATA = {
    "type": "object",
    "required": ["name", "namespace"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def newest_minors() -> list[str]:
    """Returns the newest minor versions of Kubernetes that the schemas are there for."""
    minors = {major_minor(each) for each in all_versions()}
    return sorted(minors, key=lambda minor: tuple(map(int, minor.split("."))))[-_NEWEST:]


def refused(objects: Iterable[Manifest], minor: str) -> Iterator[str]:
    """Yields what is wrong with Kubernetes' own kinds among `objects`.

    A list of a kind is looked at in one piece, since schemas are read anew for each look.
    """
    grouped: Mapping[tuple[str, str], list[Manifest]] = defaultdict(list)
    for each in objects:
        grouped[each["apiVersion"], each["kind"]].append(each)
    for (version, kind), items in grouped.items():
        whole = {"apiVersion": version, "kind": f"{kind}List", "items": items}
        try:
            kubernetes_validate.validate(whole, minor, strict=True)
        except kubernetes_validate.ValidationError as error:
            _, index, *path = error.path
            yield f"{kind} {items[index]['metadata']['name']}: {path}: {error.message}"


def custom_validators() -> Mapping[tuple[str, str], Draft202012Validator]:
    """Returns a validator for each kind of custom resource, by `apiVersion` and kind."""
    read = ((file.stem, yaml.safe_load(file.read_text())) for file in _SCHEMAS.glob("*.yaml"))
    return {(each["apiVersion"], kind): _validator(each["spec"]) for kind, each in read}


def _validator(spec: Mapping[str, Any]) -> Draft202012Validator:
    schema = {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {"apiVersion": {}, "kind": {}, "metadata": _METADATA, "spec": spec},
    }
    return Draft202012Validator(_closed(schema))


def _closed(schema: Any) -> Any:
    """Returns the schema with every object that lists its properties closed to others."""
    if isinstance(schema, list):
        return list(map(_closed, schema))
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    return {"additionalProperties": False, **closed} if "properties" in schema else closed
