"""What the command line refuses by itself, and how it says what the API refused."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from google.rpc.code_pb2 import Code
from typer.main import get_command
from typer.testing import CliRunner

from cli.panels import ORDER
from cli.program import build
from cli.refusal import Refusal
from cli.wrong_use import refuse_keys
from services.shared.errors import BulkheadError, InvalidFieldError, UnavailableError
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.scripted_api import ScriptedApi, bulkhead


def unwrapped(text: str) -> str:
    """Returns what is in the frame that errors are printed in, on one line."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "rotate", "KEY"),
        ("key", "revoke", "KEY", "--json"),
        ("key", "issue", "--deployment", "KEY"),
        ("key", "issue", "--name", "in place of KEY"),
        ("deployment", "get", "KEY"),
        ("usage", "--deployment=KEY"),
        ("audit", "list", "--by", "KEY"),
        ("support-key", "issue", "--tenant", "ten_1", "--reason", "KEY does not work"),
        ("key", "list", "KEY"),
        ("KEY",),
    ],
)
async def test_a_key_as_an_argument_is_refused_before_anything_is_sent_or_repeated(
    api: ScriptedApi, arguments: tuple[str, ...]
) -> None:
    secret = new_key(KeyKind.DEPLOYMENT)
    outcome = await bulkhead(api.port, *(part.replace("KEY", secret) for part in arguments))
    assert (outcome.code, api.asked) == (2, []), outcome.err
    said = "that is a key itself, not its id: give its id, `key_…`, from `bulkhead key list`"
    assert said in unwrapped(outcome.err)
    assert secret[8:20] not in unwrapped(outcome.err + outcome.out).replace(" ", "")


@pytest.mark.parametrize(
    "argument",
    [
        "key_0123456789abcdefghjkmnpqrs",
        "dep_1d0000000000000000000000",
        "my_1d_production",
        "smcp_1t_",
    ],
)
def test_what_is_no_key_is_let_through(argument: str) -> None:
    refuse_keys(["key", "revoke", argument])


@pytest.mark.parametrize("kind", KeyKind)
def test_every_kind_of_key_is_refused(kind: KeyKind) -> None:
    whole = new_key(kind, "acme")
    for argument in (whole, whole[:20], f"--by={whole}", f"the key '{whole}'"):
        with pytest.raises(typer.BadParameter, match="not its id"):
            refuse_keys(["key", "list", argument])


@pytest.mark.parametrize(
    "arguments",
    [
        ("key", "rotate", "key_1", "--grace", "1w"),
        ("audit", "verify", "--expect-head", "42"),
        ("deployment", "get", "smcp_1d_0000000000000000"),
        ("key", "revoke"),
    ],
)
async def test_wrong_use_is_told_to_scripts_too(
    api: ScriptedApi, arguments: tuple[str, ...]
) -> None:
    outcome = await bulkhead(api.port, *arguments, "--json")
    assert (outcome.code, api.asked) == (2, [])
    error = outcome.json["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "WRONG_USE")
    assert error["message"]


@pytest.mark.parametrize("address", ["nonsense", "http://nonsense", "a b:1", "host:port", "h:1/x"])
async def test_an_address_that_is_none_is_wrong_use(address: str) -> None:
    outcome = await bulkhead(0, "tenant", "get", "--api", address)
    assert outcome.code == 2
    assert "is not HOST:PORT, as `bulkhead up` prints it" in unwrapped(outcome.err)


async def test_a_host_that_does_not_exist_is_one_plain_line() -> None:
    outcome = await bulkhead(0, "tenant", "get", "--api", "nonsense.invalid:80")
    assert outcome.code == 1
    assert outcome.err == (
        "refused: UNAVAILABLE UNREACHABLE: nobody answers at nonsense.invalid:80; is the stack up?"
        " try: bulkhead up\n"
    )


async def test_an_empty_key_file_is_said_to_be_empty(api: ScriptedApi, tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_text("\n")
    outcome = await bulkhead(api.port, "tenant", "get", "--key-file", str(file))
    assert (outcome.code, api.asked) == (2, [])
    assert "is empty" in unwrapped(outcome.err)


@pytest.mark.parametrize(
    ("method", "arguments", "error", "line"),
    [
        (
            "RotateKey",
            ("key", "rotate", "key_1", "--grace", "8d"),
            InvalidFieldError("grace_period", "must be 0 to 7 days"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: --grace: must be 0 to 7 days",
        ),
        (
            "IssueSupportKey",
            ("support-key", "issue", "--tenant", "ten_1", "--reason", "r", "--for", "2h"),
            InvalidFieldError("lifetime", "must be a second to an hour"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: --for: must be a second to an hour",
        ),
        (
            "GetUsage",
            ("usage",),
            InvalidFieldError("deployment_id", "is needed with a tenant's key"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: --deployment: is needed with a tenant's key",
        ),
        (
            "GetDeployment",
            ("deployment", "get"),
            InvalidFieldError("deployment_id", "must not be empty"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: ID: must not be empty",
        ),
        (
            "CreateDeployment",
            ("deployment", "create", "notes", "--mcp"),
            InvalidFieldError("mcp", "needs database"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: --mcp: needs database",
        ),
        (
            "GetTenant",
            ("tenant", "get"),
            UnavailableError("away"),
            "refused: UNAVAILABLE DEPENDENCY_UNAVAILABLE: away; try again in 1 s",
        ),
    ],
)
async def test_a_refusal_speaks_of_options_and_not_of_fields(
    api: ScriptedApi, method: str, arguments: tuple[str, ...], error: BulkheadError, line: str
) -> None:
    api.answers[method] = error
    outcome = await bulkhead(api.port, *arguments)
    assert (outcome.code, outcome.err) == (1, f"{line}\n")


def test_without_a_time_to_wait_an_unavailability_says_to_try_again() -> None:
    away = Refusal(Code.Name(Code.UNAVAILABLE), "", "away")
    assert away.line({}) == "refused: UNAVAILABLE: away; try again"


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("parameters.subdomain", "--parameter subdomain: must match"),
        ("items[3].purpose", "--purpose: must match"),
        ("items[3].other", "ALIAS other: must match"),
        ("unheard.of", "unheard.of: must match"),
    ],
)
def test_a_field_within_another_is_called_by_its_option(field: str, line: str) -> None:
    refused = Refusal("INVALID_ARGUMENT", "", f"{field}: must match", field)
    options = {"parameters": "--parameter", "items": "ALIAS", "items.purpose": "--purpose"}
    assert refused.line(options) == f"refused: INVALID_ARGUMENT: {line}"


def test_a_field_that_the_message_does_not_name_is_named_after_it() -> None:
    refused = Refusal("INVALID_ARGUMENT", "", "that is too long", "reason")
    assert refused.line({}) == "refused: INVALID_ARGUMENT: that is too long (--reason)"


def test_help_keeps_what_belongs_together_in_the_order_of_a_first_day() -> None:
    shown = CliRunner().invoke(build(), ["--help"]).output
    places = [shown.index(f"─ {heading} ─") for heading in ORDER]
    assert places == sorted(places)
    # Nothing stands under no heading.
    assert "─ Commands ─" not in shown


def test_help_has_no_ragged_lines() -> None:
    """A line that a terminal breaks anew must not go on in another of the same paragraph."""
    texts = [text for command in commands(get_command(build())) for text in spoken(command)]
    ragged = [
        line
        for text in texts
        for line, following in pairwise(text.splitlines())
        if len(line) > 78 and following.strip()
    ]
    assert len(texts) > 40
    assert ragged == []


def commands(group: Any) -> Iterator[Any]:
    yield group
    for each in getattr(group, "commands", {}).values():
        yield from commands(each)


def spoken(command: Any) -> Iterator[str]:
    yield from (text for text in (command.help, command.epilog) if text)
