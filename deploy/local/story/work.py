"""Agents at work: the official MCP client, SQL, and a database that is the deployment's own."""

from typing import Any

from mcp.types import CallToolResult

from deploy.local.story.scene import Deployment, Scene
from deploy.local.story.stage import Surprise
from deploy.local.story.visitor import Agent

CREATE = (
    "CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
    " author text NOT NULL, body text NOT NULL)"
)
INSERT = "INSERT INTO notes (author, body) VALUES ($1, $2)"
SELECT = "SELECT id, author, body FROM notes ORDER BY id"
# The second would do harm where values are pasted into statements.
ACME = (("ada", "Order more rivets"), ("bob", "Robert'); DROP TABLE notes; --"))
GLOBEX = (("hank", "Move the lair by Friday"),)
_TOOLS = ["list_tables", "describe_table", "query", "execute"]


async def work_at_first(scene: Scene, home: Deployment) -> str:
    """Returns the trace id of a query, after an agent has filled its database."""
    stage = scene.stage
    async with scene.visit(home.host, home.key) as visitor:
        async with visitor.agent() as agent:
            stage.say(f"Connected to {visitor.url}/mcp (MCP {agent.client.protocol_version}).")
            stage.aside(f"instructions: {agent.client.instructions}")
            tools = [tool.name for tool in (await agent.client.list_tools()).tools]
            stage.check("its tools", ", ".join(_TOOLS), ", ".join(tools))
            await fill(scene, agent, ACME)
            trace_id = agent.mark.renew()
            await read(scene, agent, ACME)
        visitor.mark.renew()
        llms = await visitor.get("/llms.txt")
    stage.check("GET /llms.txt", 200, llms.status_code, "made from the live schema:")
    tables = llms.text.partition("## Tables")[2].strip()
    if "`notes`" not in tables or "`author`" not in tables:
        raise Surprise(f"llms.txt does not describe the table: {tables}")
    stage.result(tables)
    return trace_id


async def work_at_second(scene: Scene, home: Deployment) -> None:
    """Lets the other tenant's agent run the same statements: it sees its own rows alone."""
    async with scene.visit(home.host, home.key) as visitor, visitor.agent() as agent:
        scene.stage.say(f"Connected to {visitor.url}/mcp.")
        missing = await agent.call("query", SELECT)
        scene.stage.check(
            "its SELECT, before its own CREATE",
            "42P01",
            _sqlstate(missing),
            "there is no such table",
        )
        await fill(scene, agent, GLOBEX)
        await read(scene, agent, GLOBEX)


async def fill(scene: Scene, agent: Agent, rows: tuple[tuple[str, str], ...]) -> None:
    """Creates the table and inserts the rows, their values bound as parameters.

    Raises:
        Surprise: a statement failed.
    """
    scene.stage.command("execute", CREATE)
    expect_success(await agent.call("execute", CREATE))
    for row in rows:
        scene.stage.command("execute", f"{INSERT}  {list(row)}")
        inserted = expect_success(await agent.call("execute", INSERT, *row))
        scene.stage.check("rows inserted", 1, inserted["affected"])


async def read(scene: Scene, agent: Agent, rows: tuple[tuple[str, str], ...]) -> None:
    """Shows what the table holds.

    Raises:
        Surprise: it is not exactly `rows`.
    """
    scene.stage.command("query", SELECT)
    found = expect_success(await agent.call("query", SELECT))["rows"]
    scene.stage.rows(("id", "author", "body"), [tuple(row.values()) for row in found])
    here = [(row["author"], row["body"]) for row in found]
    scene.stage.check("exactly its own rows", True, here == list(rows))


def expect_success(answer: CallToolResult) -> dict[str, Any]:
    """Returns what a tool answered.

    Raises:
        Surprise: it failed.
    """
    if answer.is_error or answer.structured_content is None:
        raise Surprise(f"a tool failed: {_text(answer)}")
    content: dict[str, Any] = answer.structured_content
    return content


def _sqlstate(answer: CallToolResult) -> str:
    content = answer.structured_content or {}
    error = content.get("error")
    return str(error["sqlstate"]) if answer.is_error and error else "no error"


def _text(answer: CallToolResult) -> str:
    first = answer.content[0] if answer.content else None
    text = getattr(first, "text", "")
    return str(text).splitlines()[0] if text else ""
