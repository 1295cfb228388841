"""Checks of request fields that every service shares; each failure names the field."""

from services.shared.errors import InvalidFieldError


def text(field: str, value: str, *, most: int, least: int = 1) -> str:
    """Returns `value` without surrounding space when it has `least` to `most` printable characters.

    Raises:
        InvalidFieldError: it has fewer, more, or control characters.
    """
    stripped = value.strip()
    if len(stripped) < least:
        raise InvalidFieldError(field, "must not be empty")
    if len(stripped) > most:
        raise InvalidFieldError(field, f"must have at most {most} characters")
    if not stripped.isprintable():
        raise InvalidFieldError(field, "must have printable characters only")
    return stripped
