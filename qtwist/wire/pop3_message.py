"""A stored message on its way to a POP3 client (RFC 1939 §3, §7, §11; spec/qmail.md §18.2).

A stored message has LF line ends. On the wire each LF is CRLF, a dot that starts a line is doubled, and a partial last
line is completed. Nothing else changes: a CR or a NUL of the file goes out as it is, so that a client which undoes the
line ends has the file again. qmail-pop3d's extra blank line at the end is left out: sizes could not be right with it.
"""

from __future__ import annotations

import re

_BLANK_LINE = re.compile(rb"\n\r?\n")


class MessageEncoder:
    """Encodes one message, in chunks split anywhere: what comes out does not depend on the split.

    `lines` is how many lines of the body follow the header and its blank line, as TOP has it; None means all.
    """

    __slots__ = ("_in_header", "_left", "_line_start", "_tail", "complete")

    def __init__(self, lines: int | None = None) -> None:
        #: True when nothing that could still come would be sent.
        self.complete = False
        self._line_start = True
        self._left = lines
        self._in_header = lines is not None
        self._tail = b"\n"  # the last octets of the header so far; a message may begin with the blank line

    def encode(self, chunk: bytes) -> bytes:
        """The wire form of the next `chunk` of the stored message."""
        if self._left is not None:
            chunk = self._cut(chunk, self._left)
        if not chunk:
            return b""
        starts_with_dot = self._line_start and chunk.startswith(b".")
        self._line_start = chunk.endswith(b"\n")
        if b"\n." in chunk:
            chunk = chunk.replace(b"\n.", b"\n..")
        chunk = chunk.replace(b"\n", b"\r\n")
        return b"." + chunk if starts_with_dot else chunk

    def finish(self) -> bytes:
        """What ends the message: CRLF when the last line lacks it, and the line with the single dot."""
        return b".\r\n" if self._line_start else b"\r\n.\r\n"

    def _cut(self, chunk: bytes, left: int) -> bytes:
        """As much of `chunk` as TOP shows."""
        if self.complete:
            return b""
        start = 0
        if self._in_header:
            before = len(self._tail)
            seen = self._tail + chunk
            found = _BLANK_LINE.search(seen)
            if found is None:
                self._tail = seen[-2:]
                return chunk
            self._in_header = False
            start = found.end() - before
        lines = chunk.count(b"\n", start)
        if lines < left:
            self._left = left - lines
            return chunk
        self.complete = True
        if not left:
            return chunk[:start]
        rest = chunk[start:].split(b"\n", left)[left]
        return chunk[: len(chunk) - len(rest)]
