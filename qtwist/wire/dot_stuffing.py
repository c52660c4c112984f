"""The body of an SMTP message on its way out: line ends, dots, and the end of data (RFC 5321 §4.5.2).

A stored message has LF line ends. On the wire every line end is CRLF and a dot that starts a line is doubled. What else
a message may hold is settled so that no receiver that takes CR, LF or both for a line end, in whatever mixture, and
drops NUL or CR, can see an end of data where there is none (spec/qmail.md §26.3):

- LF and CRLF both leave as CRLF;
- a bare CR leaves as CRLF too, as notqmail sends it, but a dot after it is doubled like any other;
- NUL leaves as a space: receivers that drop NUL would otherwise find a dot alone in a line;
- a partial last line is completed (qmail fails such mail for good, §26.5).

Lines leave as long as they are, and other octets (VT, FF, 0x85) as they are: a receiver that cuts lines, or takes those
for line ends, is not provided for (doc/security.md).

So CR and LF leave as CRLF only, and a dot never follows a CRLF singly but in the last line of all.
"""

from __future__ import annotations


class DotStuffer:
    """Encodes one message, in chunks split anywhere: the bytes that come out do not depend on the split."""

    __slots__ = ("_after_cr", "_line_start")

    def __init__(self) -> None:
        self._line_start = True
        self._after_cr = False

    def encode(self, chunk: bytes) -> bytes:
        """The wire form of the next `chunk` of the stored message."""
        if self._after_cr and chunk:
            # The CR has left as CRLF already, so the LF of the same line end must not leave again.
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if not chunk:
            return b""
        if b"\0" in chunk:
            chunk = chunk.replace(b"\0", b" ")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        starts_with_dot = self._line_start and chunk.startswith(b".")
        self._line_start = chunk.endswith(b"\n")
        if b"\n." in chunk:
            chunk = chunk.replace(b"\n.", b"\n..")
        chunk = chunk.replace(b"\n", b"\r\n")
        return b"." + chunk if starts_with_dot else chunk

    def finish(self) -> bytes:
        """What ends the message: CRLF when the last line lacks it, and the line with the single dot."""
        return b".\r\n" if self._line_start else b"\r\n.\r\n"
