"""The client's side of one QMQP request, without I/O (spec/qmail.md §17.3, §27).

The request is one netstring that holds the netstrings of the message, of the sender and of each recipient, so the
length of the message has to be known before its first octet is sent. The answer is one netstring: ``K``, ``Z`` or
``D``, and a text.
"""

from __future__ import annotations

from qtwist.wire.netstring import LengthReader, NetstringError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: How much of the server's text is passed on, in octets.
TEXT_LIMIT = 1000

_LENGTH_LIMIT = 10**9

# The text is shown to people and logged: one line, and nothing that a terminal obeys.
_ONE_LINE = bytes(octet if octet >= 0x20 and octet != 0x7F else 0x3F for octet in range(256))


def frame(size: int, sender: bytes, recipients: Iterable[bytes]) -> tuple[bytes, bytes]:
    """What stands before, and what behind, a message of `size` octets with LF line ends."""
    head = b"%d:" % size
    tail = b",%b%b" % (encode(sender), b"".join(map(encode, recipients)))
    return b"%d:%b" % (len(head) + size + len(tail), head), tail + b","


class AnswerReader:
    """Reads the answer. `ended` is true when it is known, or known to be none; what follows is left alone.

    The letter decides as soon as it is there, even if the rest never comes (§17.3): after a ``K`` the server has the
    message, and it would arrive twice if it were sent again. But a letter counts only where an answer has it: what
    else listens at a port may well write a K somewhere in its greeting.
    """

    def __init__(self) -> None:
        self.ended = False
        self._length = LengthReader(_LENGTH_LIMIT)
        self._text = b""

    def receive(self, data: bytes) -> None:
        """Read on, in whatever pieces it comes."""
        if self.ended:
            return
        position = 0
        if self._length.length is None:
            try:
                position = self._length.feed(data, 0, len(data))
            except NetstringError:
                self.ended = True
        if self._length.length is not None:
            wanted = min(self._length.length, TEXT_LIMIT + 1)
            self._text += data[position : position + wanted - len(self._text)]
            self.ended = len(self._text) == wanted

    @property
    def verdict(self) -> tuple[bytes, bytes] | None:
        """The letter, and the text as one line; None as long as there is no letter, and when there was none."""
        letter, text = self._text[:1], self._text[1:]
        return (letter, text.translate(_ONE_LINE)) if letter in (b"K", b"Z", b"D") else None


def queue_number(text: bytes) -> int:
    """The number at the end of the text of a ``K`` (``ok <time> qp <number>``); 0 when there is none."""
    number = text.rpartition(b" qp ")[2]
    return int(number) if number.isdigit() and len(number) <= 20 else 0
