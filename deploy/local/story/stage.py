"""How the story is told: numbered steps, commands as one would type them, checks, times."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

COLUMNS = 100
_INDENT = "    "
_WHAT_COLUMNS = 40
_KEY = re.compile(r"\b(smcp_\w{2}_\w{4})\w+")
# Of OAuth: what works once.
_ONCE = re.compile(r"\b((?:state|code|code_challenge)=)[^&\s]+")
_PASSWORD = re.compile(r"(://[^:/@\s]+:)[^@\s]+@")


class Surprise(Exception):  # noqa: N818 what the story did not expect, whoever is at fault
    """Something did not happen as it must; the message says what, and what was expected."""


def masked(text: str) -> str:
    """Returns `text` with every key cut to its readable beginning, no password, and no state."""
    return _PASSWORD.sub(r"\1…@", _ONCE.sub(r"\1…", _KEY.sub(r"\1…", text)))


class Stage:
    """Writes the story to a terminal, or without colours to anything else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(width=COLUMNS, highlight=False)
        self._started = perf_counter()
        self._steps = 0
        self._checks = 0

    def open(self, title: str, *lines: str) -> None:
        """Begins the story."""
        self._console.print(Rule(Text(title, style="bold"), style="dim", align="left"))
        for line in lines:
            self._console.print(Text(line))

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Surrounds one step; its number and title come first, how long it took comes last."""
        self._steps += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._steps:>2}  ", "bold cyan"), (title, "bold")))
        started = perf_counter()
        with self._busy(title):
            yield
        took = f"{perf_counter() - started:.1f} s"
        self._console.print(Text(took.rjust(COLUMNS), style="dim"))

    def command(self, who: str, line: str) -> None:
        """Shows what someone typed; keys are masked."""
        self._say(Text.assemble((f"{who} $ ", "dim"), (masked(line), "green")), hang=6)

    def result(self, text: str) -> None:
        """Shows what came back, one line or several; keys and passwords are masked."""
        for line in masked(text).splitlines():
            self._say(Text(f"  {line}"), hang=4)

    def say(self, text: str) -> None:
        """Says a sentence."""
        self._say(Text(masked(text)))

    def aside(self, text: str) -> None:
        """Says something that matters less."""
        self._say(Text(masked(text), style="dim"), hang=2)

    def drawing(self, text: str, words: Iterable[str] = ()) -> None:
        """Shows lines as they are; `words` stand out."""
        for line in text.splitlines():
            shown = Text(line, no_wrap=True)
            shown.highlight_words(list(words), style="cyan")
            self._console.print(shown, soft_wrap=True)

    def check(self, what: str, expected: object, found: object, detail: str = "") -> None:
        """Shows that `found` is what was expected.

        Raises:
            Surprise: it is not.
        """
        if expected != found:
            raise Surprise(masked(f"{what}: expected {expected}, got {found}. {detail}".strip()))
        self._checks += 1
        shown = Text.assemble(("✓ ", "green"), f"{what:<{_WHAT_COLUMNS}} ", (f"{found}", "bold"))
        self._say(shown.append(f"  {masked(detail)}", style="dim") if detail else shown, hang=4)

    def rows(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Shows a small table."""
        lines = [tuple(header), *(tuple(map(str, row)) for row in rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(header))]
        for number, line in enumerate(lines):
            cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
            text = masked("   ".join(cells)).rstrip()
            self._say(Text(f"  {text}", style="" if number else "dim"))

    def close(self) -> None:
        """Ends a story that went well."""
        total = perf_counter() - self._started
        self._console.print()
        self._console.print(Rule(style="dim"))
        summary = f"{self._checks} checks held, nothing surprised, {total:.1f} s in all"
        self._console.print(Text.assemble(("✓ ", "green"), (summary, "bold")))

    def fail(self, why: str) -> None:
        """Ends a story that did not."""
        self._console.print()
        self._console.print(Text.assemble(("✗ ", "bold red"), (masked(why), "bold")))

    @contextmanager
    def _busy(self, title: str) -> Iterator[None]:
        """Turns a small wheel while a step lasts, where there is a terminal to turn it on."""
        if not self._console.is_terminal:
            yield
            return
        with self._console.status(Text(f"{title} …", style="dim"), spinner="dots"):
            yield

    def _say(self, text: Text, hang: int = 0) -> None:
        """Writes `text` indented, wrapped at words; lines after the first hang further in."""
        width = COLUMNS - len(_INDENT) - hang
        for number, line in enumerate(text.wrap(self._console, width)):
            line.rstrip()
            self._console.print(Text(_INDENT + " " * (hang if number else 0)).append_text(line))
