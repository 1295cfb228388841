"""Reads along what a server says until it knows its client.

From "Message Formats" of the PostgreSQL documentation, protocol 3: a message is its type, its
length, which counts itself, and its body; that of an authentication request begins with its kind.
"""

from enum import Enum, auto

_LENGTH_AT, _BODY_AT, _KIND_END = 1, 5, 9
_AUTHENTICATION = ord("R")
_OK = 0


class Heard(Enum):
    """What a server has said."""

    # Nothing of use, or not all of it.
    NOTHING = auto()
    # It waits for the client's answer.
    QUESTION = auto()
    # It has let the client in.
    WELCOME = auto()


class LoginWatch:
    """Follows one server's messages from the first one on."""

    def __init__(self) -> None:
        self._said = bytearray()

    def read(self, said: bytes) -> Heard:
        """Returns the last of what the server has said by now; after a welcome, read no more."""
        self._said += said
        heard = Heard.NOTHING
        while (length := self._length()) <= len(self._said):
            if self._said[0] == _AUTHENTICATION:
                kind = int.from_bytes(self._said[_BODY_AT:_KIND_END], "big")
                heard = Heard.WELCOME if kind == _OK else Heard.QUESTION
                if heard is Heard.WELCOME:
                    break
            del self._said[:length]
        return heard

    def _length(self) -> int:
        """Returns how long the message is that has begun; at least as long as what tells that."""
        if len(self._said) < _BODY_AT:
            return _BODY_AT
        return 1 + max(4, int.from_bytes(self._said[_LENGTH_AT:_BODY_AT], "big"))
