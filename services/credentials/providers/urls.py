"""URLs with places for what a connection says beside, as `https://{subdomain}.zendesk.com`.

Whatever a tenant says there, the request goes to the provider: the last two labels of the host are
the catalogue's, and a value is a name, not a piece of a URL (P-33).
"""

import re
from collections.abc import Collection, Mapping

from services.shared.errors import InvalidFieldError

MOST_VALUE_LENGTH = 200
_PLACE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._~-]*[A-Za-z0-9])?")
_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_PUBLIC = re.compile(
    rf"https://(?:\{{[a-z0-9_]+\}}\.)?(?:{_LABEL}\.)+[a-z]{{2,}}(?::\d+)?(?=[/?]|$)"
)
_PRIVATE = re.compile(
    rf"https?://(?:{_LABEL}\.)*{_LABEL}(?::\d+)?(?=[/?]|$)|https?://\[[0-9a-f:]+\](?::\d+)?(?=[/?]|$)"
)
_BEHIND_HOST = re.compile(r"[A-Za-z0-9/?&=._~:,+%{}-]*")


def places(template: str) -> set[str]:
    """Returns the names between braces.

    Raises:
        ValueError: a brace that is no part of a name.
    """
    if set("{}") & set(_PLACE.sub("", template)):
        raise ValueError("a brace that is no part of a {name}")
    return set(_PLACE.findall(template))


def check_url(url: str, names: Collection[str], *, private: bool) -> str:
    """Returns `url` when it can be asked, with `names` to be filled in.

    Raises:
        ValueError: it is no https URL with a host of the catalogue's own, or holds unknown names.
    """
    unknown = places(url) - set(names)
    if unknown:
        raise ValueError(f"{{{min(unknown)}}} is not declared in parameters")
    origin = _PUBLIC.match(url) or (_PRIVATE.match(url) if private else None)
    if origin is None:
        raise ValueError("must be https://, at a host whose last two labels are written out")
    if not _BEHIND_HOST.fullmatch(url[origin.end() :]):
        raise ValueError("holds what belongs into no path or query")
    return url


def filled(template: str, values: Mapping[str, str]) -> str:
    """Returns the template with each place filled.

    Raises:
        ValueError: a value is missing, or is not a plain name.
    """

    def value(place: re.Match[str]) -> str:
        text = values.get(place[1], "")
        if not is_plain(text):
            raise ValueError(f"{place[1]} is missing or no plain name")
        return text

    return _PLACE.sub(value, template)


def is_plain(value: str) -> bool:
    """Returns whether a value can stand in a URL without reaching beyond its place."""
    return (
        len(value) <= MOST_VALUE_LENGTH
        and _VALUE.fullmatch(value) is not None
        and ".." not in value
    )


def check_values(patterns: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Returns when `values` are what the patterns of a provider ask for, no more and no less.

    Raises:
        InvalidFieldError: one is missing, one is too many, or one does not match.
    """
    for name in sorted(patterns.keys() | values.keys()):
        if name not in patterns:
            raise InvalidFieldError(f"parameters.{name}", "the provider has no such parameter")
        value = values.get(name, "")
        if not (is_plain(value) and re.fullmatch(patterns[name], value)):
            raise InvalidFieldError(f"parameters.{name}", f"must match {patterns[name]}")
