"""Which statements are refused before they are sent: those that would leave their transaction."""

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
_MOST_CHARACTERS = 1_000_000


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
    rest = _skip(sql)
    end = next((at for at, sign in enumerate(rest) if not (sign.isalnum() or sign == "_")), None)
    return (rest[:end] if end is not None else rest).lower() or rest[:1]


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


def _skip(sql: str) -> str:
    at = 0
    while at < len(sql):
        if sql[at].isspace() or sql[at] in ";(":
            at += 1
        elif sql.startswith("--", at):
            at = _line_end(sql, at)
        elif sql.startswith("/*", at):
            at = _comment_end(sql, at)
        else:
            break
    return sql[at:]


def _line_end(sql: str, at: int) -> int:
    ends = [found for sign in "\r\n" if (found := sql.find(sign, at)) >= 0]
    return min(ends, default=len(sql))


def _comment_end(sql: str, at: int) -> int:
    """Returns where the comment that begins at `at` ends; Postgres's comments nest."""
    depth = 0
    while at < len(sql):
        if sql.startswith("/*", at):
            depth, at = depth + 1, at + 2
        elif sql.startswith("*/", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    return at
