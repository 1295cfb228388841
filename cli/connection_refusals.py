"""Refusals of connections and bindings, in the words of the commands."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType

import grpc
import typer
from bulkhead.credentials.v1 import credentials_service_pb2 as pb

from cli.connection_table import how_to_mend
from cli.refusal import Refusal, refusal_of
from cli.session import Session

_PARAMETERS = "parameters."
_GIVEN_BY: Mapping["pb.ConnectionKind.ValueType", str] = MappingProxyType(
    {
        pb.CONNECTION_KIND_STATIC_TOKEN: "--token-file",
        pb.CONNECTION_KIND_API_KEY: "--api-key-file",
        pb.CONNECTION_KIND_CLIENT_CREDENTIALS: "--client-id with --client-secret-file",
        pb.CONNECTION_KIND_AUTHORIZATION_CODE: "`bulkhead connection authorize`",
    }
)
_IDS = MappingProxyType(
    {
        "bak": "backup",
        "bnd": "binding",
        "con": "connection",
        "dep": "deployment",
        "key": "key",
        "ten": "tenant",
    }
)


@asynccontextmanager
async def in_own_words(session: Session, provider: str) -> AsyncIterator[None]:
    """Lets the call within be refused with what the provider takes, as options.

    Raises:
        Refusal: instead of the call's own error, where the catalogue explains it.
        grpc.aio.AioRpcError: the call's own error.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error, "")
        about = refusal.field_name
        if about not in ("provider", "credential") and not about.startswith(_PARAMETERS):
            raise
        explained = await _explained(session, provider, refusal)
        if explained is None:
            raise
        raise explained from error


@asynccontextmanager
async def of_the_kind_there(session: Session, connection_id: str) -> AsyncIterator[None]:
    """Lets an update with another kind of credential be refused with the option that fits.

    Raises:
        Refusal: instead of the call's own error.
        grpc.aio.AioRpcError: the call's own error.
    """

    async def fitting(refusal: Refusal) -> str:
        asked = pb.GetConnectionRequest(connection_id=connection_id)
        connection = (await session.credentials.GetConnection(asked)).connection
        return f"{refusal.message}: {how_to_mend(connection)}"

    async with _explained_by("CONNECTION_KIND", fitting):
        yield


@asynccontextmanager
async def alias_named(alias: str) -> AsyncIterator[None]:
    """Lets a call that finds an alias taken be refused with what holds it.

    Raises:
        Refusal: instead of the call's own error.
        grpc.aio.AioRpcError: the call's own error.
    """

    async def holding(refusal: Refusal) -> str:
        holder = refusal.metadata.get("binding_id", "")
        return (
            f"{alias or 'the alias'} is the binding {holder} already; --replace swaps it,"
            f" --alias makes another beside it, and bulkhead binding delete {holder} ends it"
        )

    async with _explained_by("ALIAS_TAKEN", holding):
        yield


@asynccontextmanager
async def _explained_by(
    reason: str, message: Callable[[Refusal], Awaitable[str]]
) -> AsyncIterator[None]:
    """Lets a call that is refused for the reason be refused with another message."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error, "")
        if refusal.reason != reason:
            raise
        raise replace(refusal, message=await message(refusal)) from error


def checked_id(text: str, prefix: str) -> str:
    """Returns `text` when it begins as ids with the prefix do.

    Raises:
        typer.BadParameter: it is the id of something else, or none at all.
    """
    wanted, given = _IDS[prefix], text.partition("_")[0]
    if given == prefix:
        return text
    if given in _IDS and "_" in text:
        raise typer.BadParameter(
            f"{text}: that is a {_IDS[given]}'s id; here goes a {wanted}'s, `{prefix}_…`"
        )
    raise typer.BadParameter(
        f"{text}: that is no id; here goes a {wanted}'s, `{prefix}_…`, as"
        f" `bulkhead {wanted} list` shows it"
    )


async def _explained(session: Session, provider: str, refusal: Refusal) -> Refusal | None:
    """Returns the refusal with what the catalogue says; None where that says nothing."""
    try:
        answer = await session.credentials.ListProviders(pb.ListProvidersRequest())
    except grpc.aio.AioRpcError:
        # It was refused all the same, and with a reason.
        return None
    known = {one.name: one for one in answer.providers}.get(provider)
    if known is None:
        there = f"PROVIDER: there is no {provider!r}; see: bulkhead provider list"
        return replace(refusal, message=there) if provider else None
    if refusal.field_name.startswith(_PARAMETERS):
        return replace(refusal, message=_parameters(known, refusal))
    takes = " or ".join(_GIVEN_BY[kind] for kind in known.kinds if kind in _GIVEN_BY)
    return replace(refusal, field_name="", message=f"{provider} takes {takes}")


def _parameters(provider: pb.Provider, refusal: Refusal) -> str:
    wanted = " ".join(f"--parameter {name}=…" for name in provider.parameters)
    name = refusal.field_name.removeprefix(_PARAMETERS)
    what = refusal.message.partition(": ")[2]
    return f"--parameter {name}: {what}; {provider.name} takes {wanted or 'none'}"
