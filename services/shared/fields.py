"""Checks of request fields that every service shares; each failure names the field."""

from services.shared.errors import InvalidFieldError

# What `str.isprintable` lets through and nobody sees: Unicode's Default_Ignorable_Code_Point as far
# as they are letters or marks, which Hangul's fillers and variation selectors are, and the Braille
# pattern without a dot.
_INVISIBLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F),
            *(0x2800, 0x3164, *range(0xFE00, 0xFE10), 0xFFA0, *range(0xE0100, 0xE01F0)),
        ),
    )
)


def text(field: str, value: str, *, most: int, least: int = 1) -> str:
    """Returns `value` without surrounding space when it has `least` to `most` printable characters.

    Unless it may be empty, one of them at least can be seen.

    Raises:
        InvalidFieldError: it has fewer, more, or control characters.
    """
    stripped = value.strip()
    if len(stripped) < least or (least and _is_invisible(stripped)):
        raise InvalidFieldError(field, "must not be empty")
    if len(stripped) > most:
        raise InvalidFieldError(field, f"must have at most {most} characters")
    if not stripped.isprintable():
        raise InvalidFieldError(field, "must have printable characters only")
    return stripped


def _is_invisible(value: str) -> bool:
    return all(character in _INVISIBLE or character == " " for character in value)
