"""The tools of a deployment: what they are called, what they take, and who may call them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from services.app_proxy.door import Guest

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answers: a JSON object, and sentences to add to its text form."""

    content: Mapping[str, Any]
    notes: Sequence[str] = ()


class ToolFailure(Exception):  # noqa: N818 an answer for the caller, not a fault of ours
    """The tool could not do what was asked; `content` says why, for whoever asked."""

    def __init__(self, message: str, content: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.message = message
        self.content = content


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, as it is listed and called."""

    name: str
    title: str
    description: str
    # The scope that the key needs; without it the tool is neither listed nor run.
    scope: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    run: Callable[[Guest, Arguments], Awaitable[ToolAnswer]] = field(repr=False)
    # It changes something, perhaps for good.
    changes: bool = False

    def as_json(self) -> dict[str, Any]:
        """Returns how the tool is listed."""
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": self.input_schema,
            "outputSchema": self.output_schema,
            "annotations": {
                "readOnlyHint": not self.changes,
                "destructiveHint": self.changes,
                "openWorldHint": False,
            },
        }


class ToolSource(Protocol):
    """Gives tools to a deployment: the same to all, or made from what the deployment holds."""

    async def tools(self, guest: Guest) -> Sequence[Tool]:
        """Returns the tools for the guest's deployment."""
        ...


class Toolbox:
    """All tools of a deployment, from every source in order; of two with one name the first."""

    def __init__(self, sources: Sequence[ToolSource]) -> None:
        self._sources = sources

    async def listed(self, guest: Guest) -> list[Tool]:
        """Returns the tools that the guest's key may use."""
        tools = (await self._all(guest)).values()
        return [tool for tool in tools if guest.principal.permits(tool.scope)]

    async def call(self, guest: Guest, name: str, arguments: Arguments) -> ToolAnswer:
        """Returns what the tool answers.

        Raises:
            KeyError: there is no such tool.
            ToolFailure: it could not do what was asked, or the key's scopes do not reach.
        """
        tool = (await self._all(guest))[name]
        if not guest.principal.permits(tool.scope):
            raise ToolFailure(
                f"the key lacks the scope {tool.scope}, which {name} needs",
                {"reason": "SCOPE_MISSING", "scope": tool.scope},
            )
        return await tool.run(guest, arguments)

    async def _all(self, guest: Guest) -> dict[str, Tool]:
        found: dict[str, Tool] = {}
        for source in self._sources:
            for tool in await source.tools(guest):
                found.setdefault(tool.name, tool)
        return found
