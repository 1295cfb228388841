"""What a certificate of deletion says, in tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

_COLUMNS = ("resource", "cut off", "destroyed", "checked", "and found")
_TIMES = ("access_revoked_at", "destroyed_at", "verified_gone_at")


@dataclass(frozen=True, slots=True)
class Part:
    """One table, and of what it is; times are seconds after the deletion was requested."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def parts(said: Mapping[str, Any]) -> Iterator[Part]:
    """Yields a table of the whole, of each deployment's resources, and of the services."""
    began = datetime.fromisoformat(said["requested_at"])
    yield Part(
        f"It says of {said['sub']}, in seconds after the request:",
        ("requested", "keys and hosts cut off", "all shut", "certified"),
        [
            (
                said["requested_at"],
                _after(began, said["cut_off_at"]),
                _after(began, said["access_revoked_at"]),
                _after(began, said["issued_at"]),
            )
        ],
    )
    for deployment, resources in groupby(sorted(said["resources"], key=_deployment), _deployment):
        yield Part(deployment, _COLUMNS, [_row(began, each) for each in resources])
    if services := said.get("services", {}):
        erased = [(name, _after(began, services[name]["erased_at"])) for name in sorted(services)]
        yield Part("each service, of the tenant itself", ("service", "erased"), erased)


def retained(said: Mapping[str, Any]) -> list[str]:
    """Returns what is kept all the same."""
    return [str(kept["what"]) for kept in said.get("retained", [])]


def _row(began: datetime, resource: Mapping[str, Any]) -> Sequence[str]:
    times = [_after(began, resource[name]) for name in _TIMES]
    return (resource["kind"], *times, str(resource.get("details", {}).get("checked", "")))


def _deployment(resource: Mapping[str, Any]) -> str:
    return str(resource["deployment_id"])


def _after(began: datetime, moment: str) -> str:
    """Returns how many seconds after the beginning a moment is, as `+0.31`."""
    return f"{(datetime.fromisoformat(moment) - began).total_seconds():+.2f}"
