"""What a person sees who was led back from a provider: small pages that load nothing.

Each is whole in itself, for a phone as for a desk, in light and in dark. Nothing that comes from
outside reaches one unescaped, and a page names no token, no id and no fault of ours.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

PATH = "/oauth/callback"
ALLOW, CANCEL = "allow", "cancel"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #f4f5f7; --card: #fff; --line: #d4d9e0;
  --quiet: #566072; --act: #1552b8; --on-act: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --paper: #12161c; --card: #1b212a;
  --line: #384252; --quiet: #a8b2c2; --act: #8ab4ff; --on-act: #0d1a30; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 32rem; margin: 8vh auto 2rem; padding: 1.5rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 0.75rem; }
h1 { margin: 0 0 0.75rem; font-size: 1.4rem; line-height: 1.3; }
p, ul { margin: 0 0 1rem; }
ul { padding-left: 1.25rem; }
code { font: 0.9em ui-monospace, monospace; }
.care { padding-left: 0.75rem; border-left: 0.25rem solid var(--line); color: var(--quiet); }
form { display: flex; flex-wrap: wrap; gap: 0.75rem; }
button { flex: 1 1 8rem; min-height: 3rem; padding: 0.5rem 1rem; border: 1px solid var(--act);
  border-radius: 0.5rem; background: transparent; color: var(--act); font: inherit;
  font-weight: 600; cursor: pointer; }
button.act { background: var(--act); color: var(--on-act); }
button:focus-visible { outline: 3px solid var(--ink); outline-offset: 2px; }
"""
_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$heading</h1>
$body
</main>
</body>
</html>
""")
_ASK = Template("""<p>If you allow it, <b><bdi>$who</bdi></b> and the programs that it runs can act
at <b>$provider</b> as you, through the connection <b><bdi>$connection</bdi></b>, until you withdraw
that at $provider.</p>
$scopes
<p class="care">Whoever sent you here may be someone else than you think: “<bdi>$who</bdi>” is a
name that this account chose for itself. Allow it only if you began this yourself, or know who did
and trust them with this access.</p>
""")
_FORM = Template("""<form method="post" action="$path">
$hidden
$buttons
</form>
""")


@dataclass(frozen=True, slots=True)
class Page:
    """A whole HTTP answer for a person."""

    status: int
    html: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person is asked to allow, and to whom."""

    provider_title: str
    connection_name: str
    beneficiary: str
    scopes: Sequence[str]


def ask(asked: Asked, state: str, code: str) -> Page:
    """Returns the question; only its buttons have an effect, so that no scanner decides."""
    names = {"who": asked.beneficiary, "provider": asked.provider_title}
    told = _ASK.substitute(
        _escaped(names | {"connection": asked.connection_name}), scopes=_scopes(asked.scopes)
    )
    buttons = _button(ALLOW, "Allow", primary=True) + _button(CANCEL, "Cancel")
    heading = Template("Let <bdi>$who</bdi> act at $provider?").substitute(_escaped(names))
    form = _form({"state": state, "code": code}, buttons)
    return _page(200, f"Connect {asked.provider_title}?", told + form, heading)


def turned_down(asked: Asked, state: str, *, by_person: bool) -> Page:
    """Returns that the provider led back with a no; the button ends the request for good."""
    title = "You did not allow it" if by_person else f"{asked.provider_title} did not allow it"
    body = (
        "<p>Nothing was connected, and nobody can act for you because of this. The request ends by"
        " itself in a few minutes; you can also end it now.</p>"
    )
    return _page(200, title, body + _form({"state": state}, _button(CANCEL, "End the request")))


def connected(provider_title: str, connection_name: str) -> Page:
    """Returns that it is done."""
    body = Template(
        "<p>The connection <b><bdi>$connection</bdi></b> to $provider is ready. You can close this"
        " window.</p><p>To end it one day, withdraw the access in your settings at $provider.</p>"
    )
    told = body.substitute(_escaped({"connection": connection_name, "provider": provider_title}))
    return _page(200, "Connected", told)


def cancelled() -> Page:
    """Returns that the person, or the provider, said no, and that this is the end of it."""
    return _message(200, "Not connected", "Nothing was connected. You can close this window.")


def unknown_link() -> Page:
    """Returns that the state is of no use: unknown, used and expired look alike."""
    return _message(
        404,
        "This link does not work any more",
        "It has expired, was used before, or is not complete. Go back to where you began and start"
        " again from there.",
    )


def refused() -> Page:
    """Returns that the provider did not take what it had given itself."""
    return _message(
        400,
        "The provider refused",
        "It did not accept its own confirmation any more, so nothing was connected. Go back to"
        " where you began and start again from there.",
    )


def not_connected() -> Page:
    """Returns that it cannot be connected as things are with us."""
    return _message(
        409,
        "Not connected",
        "This connection cannot be made as things are now. Go back to where you began and start"
        " again from there.",
    )


def provider_away() -> Page:
    """Returns that the provider cannot be asked; the confirmation is used up all the same."""
    return _message(
        502,
        "The provider cannot be reached",
        "It did not answer as it should, so nothing was connected. Go back to where you began and"
        " start again in a few minutes.",
    )


def no_answer() -> Page:
    """Returns that nobody knows how it ended."""
    return _message(
        504,
        "This took too long",
        "We do not know whether it was connected. Look at the connection where you began, and start"
        " again if it is not active.",
    )


def away(seconds: int) -> Page:
    """Returns that we cannot go on now."""
    told = "Something that is needed is away. Wait a moment, then go back and load the page again."
    return _message(503, "Not available right now", told, {"retry-after": str(seconds)})


def malformed() -> Page:
    """Returns that the request is none that a provider or our own page would send."""
    return _message(
        400,
        "This link is not complete",
        "It is not as the provider sends it. Go back to where you began and start again from"
        " there.",
    )


def foreign() -> Page:
    """Returns that the answer came from another site's page, and so from nobody who was asked."""
    return _message(
        403,
        "This did not come from our page",
        "Another site sent it, so nothing was done. If you meant to answer, go back to where you"
        " began and open the link from there.",
    )


def wrong_method() -> Page:
    """Returns that a page is read or sent, and nothing else."""
    told = "This page can be opened and confirmed, nothing else."
    return _message(405, "Not possible here", told, {"allow": "GET, HEAD, POST"})


def _message(status: int, title: str, told: str, headers: Mapping[str, str] | None = None) -> Page:
    return _page(status, title, f"<p>{escape(told)}</p>", headers=headers or {})


def _page(
    status: int,
    title: str,
    body: str,
    heading: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Page:
    html = _PAGE.substitute(
        title=escape(title), style=_STYLE, heading=heading or escape(title), body=body
    )
    return Page(status, html, _guards() | dict(headers or {}))


def _guards() -> dict[str, str]:
    """Returns the headers by which a browser keeps the page to itself."""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    )
    return {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "x-robots-tag": "noindex",
    }


def _scopes(scopes: Sequence[str]) -> str:
    if not scopes:
        return "<p>What it may do there is what the provider grants by default.</p>"
    items = "".join(f"<li><code>{escape(scope)}</code></li>" for scope in scopes)
    return f"<p>What it may do there, in the words of the provider:</p><ul>{items}</ul>"


def _form(hidden: Mapping[str, str], buttons: str) -> str:
    fields = "\n".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">'
        for name, value in hidden.items()
    )
    return _FORM.substitute(path=PATH, hidden=fields, buttons=buttons)


def _button(decision: str, text: str, *, primary: bool = False) -> str:
    kind = ' class="act"' if primary else ""
    return f'<button{kind} type="submit" name="decision" value="{decision}">{text}</button>\n'


def _escaped(names: Mapping[str, str]) -> dict[str, str]:
    return {name: escape(value) for name, value in names.items()}
