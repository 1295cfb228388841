"""What a deployment's secrets may be called and hold."""

import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from services.shared.errors import FailedPreconditionError, InvalidFieldError, Reason

# What begins so is ours to set.
OWN_PREFIX: Final = "BULKHEAD_"
USUAL_LENGTH: Final = 43
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MOST_BYTES = 32_768
_LEAST_LENGTH, _MOST_LENGTH = 16, 256

# Variables by which a loader, a shell or a language's runtime is told what to run: whoever may keep
# a secret may not thereby choose the program.
_TAKES_OVER = frozenset(
    {
        *("PATH", "ENV", "IFS", "PS4", "SHELLOPTS", "BASHOPTS", "BASH_ENV", "PROMPT_COMMAND"),
        *("GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "HOSTALIASES", "LOCPATH", "NLSPATH"),
        *("RES_OPTIONS", "LOCALDOMAIN", "RESOLV_HOST_CONF", "TZDIR"),
        *("CLASSPATH", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"),
        *("NODE_OPTIONS", "NODE_PATH", "RUBYLIB", "RUBYOPT", "PHPRC", "PHP_INI_SCAN_DIR"),
        *("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES"),
    }
)
_TAKE_OVER_BEGINNINGS = ("BASH_FUNC_", "DYLD_", "LD_", "LUA_", "MALLOC_", "PERL5", "PYTHON")


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret without its value."""

    name: str
    generated: bool
    update_time: datetime


@dataclass(frozen=True, slots=True)
class WantedSecret:
    """A secret as it is to be kept."""

    name: str
    generated: bool
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Administrator:
    """The first one of a deployment's own program, as that program is told of it."""

    user: str
    password_hash: str = field(repr=False)


def checked_name(name: str) -> str:
    """Returns `name` when a secret can have it.

    Raises:
        InvalidFieldError: it is no name of a variable, is ours, or would take over a process.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidFieldError(
            "name", "must be 1 to 128 letters, digits and `_`, not beginning with a digit"
        )
    upper = name.upper()
    if upper.startswith(OWN_PREFIX):
        raise InvalidFieldError("name", f"must not begin with {OWN_PREFIX}")
    if upper in _TAKES_OVER or upper.startswith(_TAKE_OVER_BEGINNINGS):
        raise InvalidFieldError("name", "is a variable that tells programs what to run")
    return name


def checked_value(value: str) -> str:
    """Returns `value` when an environment variable can hold it.

    Raises:
        InvalidFieldError: it is empty, too long, or has a NUL.
    """
    if not value:
        raise InvalidFieldError("value", "must not be empty")
    if len(value.encode()) > _MOST_BYTES:
        raise InvalidFieldError("value", f"must have at most {_MOST_BYTES} bytes")
    if "\0" in value:
        raise InvalidFieldError("value", "must not have a NUL character")
    return value


def generated(length: int) -> str:
    """Returns `length` random characters, 6 bits each; 0 stands for 43.

    Raises:
        InvalidFieldError: it is too short, or too long.
    """
    length = length or USUAL_LENGTH
    if not _LEAST_LENGTH <= length <= _MOST_LENGTH:
        raise InvalidFieldError("generate_length", f"must be {_LEAST_LENGTH} to {_MOST_LENGTH}")
    return secrets.token_urlsafe(length)[:length]


def unreadable() -> FailedPreconditionError:
    """Returns the refusal of what would need something that cannot be decrypted."""
    return FailedPreconditionError("what is kept cannot be decrypted", Reason.SECRET_UNREADABLE)
