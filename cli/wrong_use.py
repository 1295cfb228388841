"""Wrong use, found before anything is sent: told to scripts too, and never with a key in it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from cli.panels import ORDER
from cli.refusal import Refusal
from cli.rendering import as_json

# A key, or enough of one; services/shared/keyformat.py has the whole shape. A word in lower case
# may follow such a beginning in a name, random characters alone have digits and capitals.
_KEY = re.compile(r"[a-z]{2,}_1[otdcsj]_(?=[0-9A-Za-z]*[0-9A-Z])[0-9A-Za-z]{8,}", re.ASCII)


class Commands(TyperGroup):
    """The whole command line: refuses keys as arguments, and prints errors as `--json` wants."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Returns what is left for the command; refuses keys before anything repeats them."""
        with _told(json="--json" in args):
            refuse_keys(args)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the commands' names, those under one heading together."""
        return sorted(super().list_commands(ctx), key=self._place)

    def _place(self, name: str) -> int:
        heading = getattr(self.commands[name], "rich_help_panel", "")
        return ORDER.index(heading) if heading in ORDER else len(ORDER)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        with _told(json="--json" in ctx.args):
            return super().invoke(ctx)


def refuse_keys(arguments: Sequence[str]) -> None:
    """Refuses a key as, or in, an argument: other programs read arguments, and logs keep them.

    Raises:
        typer.BadParameter: there is one; it is not repeated.
    """
    if any(_KEY.search(argument) for argument in arguments):
        raise typer.BadParameter(
            "that is a key itself, not its id: give its id, `key_…`, from `bulkhead key list`"
        )


@contextmanager
def _told(*, json: bool) -> Iterator[None]:
    try:
        yield
    except typer.BadParameter as error:
        if json:
            refusal = Refusal("INVALID_ARGUMENT", "WRONG_USE", error.format_message())
            print(as_json(refusal.document))
        raise
