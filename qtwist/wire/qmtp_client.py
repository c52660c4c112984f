"""The client's side of one QMTP package, without I/O (spec/qmail.md §27).

A package is three netstrings: the message behind an octet that tells its line ends (LF: as it is stored here), the
sender, and the netstrings of the recipients. The server answers each recipient with a netstring: ``K`` (it is the
server's now), ``Z`` or ``D``, and a text. An answer that does not come, or is none, is a temporary failure.
"""

from __future__ import annotations

from qtwist.wire.netstring import NetstringError, NetstringReader, encode

#: The longest address (octets), as a server may refuse longer ones (§17.1).
ADDRESS_LIMIT = 999
#: The longest answer (octets) that is read.
ANSWER_LIMIT = 65536


def head(size: int) -> bytes:
    """What stands before a message of `size` octets with LF line ends."""
    return b"%d:\n" % (size + 1)


def tail(sender: bytes, recipient: bytes) -> bytes:
    """What follows the message, for one recipient."""
    return b",%b%b" % (encode(sender), encode(encode(recipient)))


class AnswerReader:
    """Reads the answer about one recipient. `answer` is its letter and text once it is there; `nonsense` what was
    said in its place."""

    def __init__(self) -> None:
        self.answer: tuple[bytes, bytes] | None = None
        self.nonsense: bytes | None = None
        self._reader = NetstringReader(ANSWER_LIMIT)
        self._seen = b""
        self._text = b""

    def receive(self, data: bytes) -> None:
        """Read on; what follows the answer is left alone."""
        if self.answer is not None or self.nonsense is not None:
            return
        self._seen = (self._seen + data)[:200]
        try:
            text, _ = self._reader.feed(data, 0, len(data))
        except NetstringError:
            self.nonsense = self._seen
            return
        self._text += text
        if self._reader.ended:
            letter = self._text[:1]
            if letter in (b"K", b"Z", b"D"):
                self.answer = letter, self._text[1:]
            else:
                self.nonsense = self._seen
