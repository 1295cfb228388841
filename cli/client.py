"""The commands that talk to a running stack."""

import typer

from cli import (
    audit,
    backups,
    bindings,
    certificate,
    connections,
    deployments,
    keyring,
    keys,
    plans,
    providers,
    secrets,
    support,
    tenants,
    usage,
    vending,
    webhooks,
)

# What `bulkhead --help` ends with; paragraphs, since help joins the lines of one.
TOUR = """A first day with it:

1. bulkhead up --detach — starts the stack, prints BULKHEAD_API and where the operator's key is

2. export BULKHEAD_API=localhost:… — where it listens, as `up` printed it

3. bulkhead tenant create acme --plan pro --key-file .bulkhead/operator.key — prints acme's key

4. export BULKHEAD_KEY=… — acme's key: from here on you are acme

5. bulkhead deployment create notes --mcp --database — its own host and Postgres server

6. bulkhead key issue --deployment dep_… — the key for the agent that speaks MCP to that host

7. bulkhead usage --deployment dep_… — what it has used of its limits

8. bulkhead connection create github --name build --token-file - — keeps a token of yours

9. bulkhead binding create dep_… con_… — lends it to that deployment, which may now vend it

10. bulkhead key rotate key_… — a new key in its place; the old one works for another day

11. bulkhead secret put dep_… SESSION_KEY --generate — for that deployment's own program

12. bulkhead deployment get dep_… — what it is made of, and how each part is

13. bulkhead audit verify — recomputes the hash of every event of all this, and looks for gaps

14. bulkhead tenant delete --yes --certificate FILE — deletes all of it, and proves that it did

Exit codes: 0 done, 1 refused (the reason is on stderr), 2 wrong use."""


_OWN = (tenants, deployments, secrets, backups, keys, plans, certificate)
_LENT = (providers, connections, bindings, vending, webhooks)
_WATCHED = (usage, audit, support, keyring)


def register(app: typer.Typer) -> None:
    """Adds the client's commands to the command line, in the order of a first day with them."""
    for commands in (*_OWN, *_LENT, *_WATCHED):
        commands.register(app)
