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
        *("GEM_HOME", "GEM_PATH", "BUNDLE_GEMFILE", "MONO_PATH", "DOTNET_STARTUP_HOOKS"),
        *("ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS", "ERL_LIBS", "ELIXIR_ERL_OPTIONS"),
        *("OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES"),
        *("GTK_MODULES", "GTK_PATH", "GIO_EXTRA_MODULES", "QT_PLUGIN_PATH"),
        *("SHELL", "EDITOR", "VISUAL", "PAGER", "MANPAGER", "BROWSER", "LESSOPEN", "LESSCLOSE"),
        # Not all that begin with GIT_: programs keep tokens for its servers under such names.
        *("GIT_EDITOR", "GIT_SEQUENCE_EDITOR", "GIT_PAGER", "GIT_EXEC_PATH", "GIT_EXTERNAL_DIFF"),
        *("GIT_DIR", "GIT_TEMPLATE_DIR", "GIT_PROXY_COMMAND", "GIT_SSH", "GIT_SSH_COMMAND"),
    }
)
_TAKE_OVER_BEGINNINGS = (
    *("BASH_FUNC_", "CORECLR_", "COR_ENABLE_PROFILING", "COR_PROFILER", "DYLD_", "GIT_CONFIG"),
    *("LD_", "LUA_", "MALLOC_", "NPM_CONFIG_", "PERL5", "PYTHON", "R_PROFILE"),
)
# What asks for a password: Git's, SSH's, sudo's.
_TAKE_OVER_ENDINGS = ("_ASKPASS",)


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
    if _takes_over(upper):
        raise InvalidFieldError("name", "is a variable that tells programs what to run")
    return name


def _takes_over(upper: str) -> bool:
    return (
        upper in _TAKES_OVER
        or upper.startswith(_TAKE_OVER_BEGINNINGS)
        or upper.endswith(_TAKE_OVER_ENDINGS)
    )


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
