"""Sizes as people write them, and as they read them."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer

_STEP = 1_024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_BYTES: Mapping[str, int] = MappingProxyType(
    {unit.lower(): _STEP**power for power, unit in enumerate(_UNITS)}
)
_SIZE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?([A-Za-z]{0,3})", re.ASCII)
_MOST = 1 << 62

Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="SIZE",
        help="How much its database may hold: 512MiB, 2GiB. \\[default: as the platform says]",
        show_default=False,
    ),
]


def size(text: str, option: str) -> int:
    """Returns how many bytes `512MiB`, `2GiB` or `1000000B` are.

    Raises:
        typer.BadParameter: it is no size, or none of any use; it names the option.
    """
    found = _SIZE.fullmatch(text)
    if found and not found[2]:
        # Whoever writes 5 hardly means bytes.
        raise typer.BadParameter(f"{option}: {text!r} has no unit; say one, as 500MiB")
    unit = _BYTES.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"{option}: {text!r} is not a size; write 512MiB or 2GiB")
    count = round(float(found[1]) * unit)
    if not 1 <= count <= _MOST:
        raise typer.BadParameter(f"{option}: {text!r} is out of reach")
    return count


def size_text(count: int) -> str:
    """Returns the size in the largest unit of which it is at least one, as `1.5 GiB`."""
    amount, power = float(count), 0
    while amount >= _STEP and power < len(_UNITS) - 1:
        amount, power = amount / _STEP, power + 1
    return f"{amount:.1f}".removesuffix(".0") + f" {_UNITS[power]}"
