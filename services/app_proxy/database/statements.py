"""Which statements are refused before they are sent: those that would leave their transaction."""

import re

from services.app_proxy.database.failures import StatementError, refused

# Each would end, change or outlive the transaction that confines the statement, or speaks a
# protocol of its own. Postgres itself admits one statement at a time (the extended protocol).
_TRANSACTION = frozenset(
    "abort begin commit end prepare release rollback savepoint start".split()  # noqa: SIM905 reads as the list it is
)
_SESSION = frozenset(
    "close deallocate declare discard execute fetch listen load move notify reset set unlisten".split()  # noqa: E501, SIM905 reads as the list it is
)
_COPY = frozenset({"copy"})
_MOST_CHARACTERS = 250_000
# Looped in the matcher, not here: a statement may be nothing but comments.
_GAP = re.compile(r"(?:[\s;(]|--[^\r\n]*)*+")
_WORD = re.compile(r"\w*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def checked(sql: str) -> str:
    """Returns `sql` when it may be sent.

    Raises:
        StatementError: it is empty, too long, or of a kind that has no place in one call.
    """
    if len(sql) > _MOST_CHARACTERS:
        raise refused("54000", f"a statement has at most {_MOST_CHARACTERS} characters")
    if "\0" in sql:
        raise refused("22021", "a statement cannot hold a null character")
    word = first_word(sql)
    if not word:
        raise refused("42601", "the statement is empty")
    refusal = _refusal(word)
    if refusal is not None:
        raise refusal
    return sql


def first_word(sql: str) -> str:
    """Returns the first word of `sql` in lower case, behind space, comments, `;` and `(`."""
    at = _start(sql)
    word = _WORD.match(sql, at)
    return (word[0] if word is not None else "").lower() or sql[at : at + 1]


def _refusal(word: str) -> StatementError | None:
    if word in _TRANSACTION:
        return refused(
            "0A000",
            f"{word.upper()} is not possible here: each call is a transaction of its own",
            "send the statement alone; `execute` commits it when it succeeds",
        )
    if word in _SESSION:
        return refused(
            "0A000",
            f"{word.upper()} is not possible here: each call has a session of its own",
            "nothing of a session is left after a call",
        )
    if word in _COPY:
        return refused("0A000", "COPY is not possible here", "use SELECT or INSERT")
    return None


def _start(sql: str) -> int:
    at = _gap_end(sql, 0)
    while sql.startswith("/*", at):
        at = _gap_end(sql, _comment_end(sql, at))
    return at


def _gap_end(sql: str, at: int) -> int:
    gap = _GAP.match(sql, at)
    return gap.end() if gap is not None else at


def _comment_end(sql: str, at: int) -> int:
    """Returns where the comment that begins at `at` ends; Postgres's comments nest."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, at):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)
