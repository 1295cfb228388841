"""What texts in a provider's file may be."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field


def _printable(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ValueError("must be printable ASCII")
    return text


def _path(text: str) -> str:
    if not all(text.split(".")):
        raise ValueError("must be names joined by dots")
    return text


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error.msg}") from error
    return pattern


Text = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Title = Annotated[str, Field(min_length=1, max_length=63)]
# In a JSON answer, names joined by dots, as `authed_user.access_token`.
AnswerPath = Annotated[Text, AfterValidator(_path)]
Pattern = Annotated[Text, AfterValidator(_compiles)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
HeaderName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z][A-Za-z0-9-]*$")]
Scope = Annotated[str, Field(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]{1,500}$")]  # RFC 6749, 3.3
TokenHint = Literal["refresh_token", "access_token"]
