"""Parting a message on its way in: header fields, then the rest, with LF line ends (spec/qmail.md §19.2).

Programs that mean well hand in CRLF line ends, some of them in a part of the header only. So a CR at the end of a
header line is dropped; and where the header had one, in the body too every CRLF becomes a LF. A message whose header
has LF line ends keeps its body as it is, octet by octet.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The most octets of a header. Long lists of recipients are legitimate, but everything of it is held in memory.
HEADER_LIMIT = 64 << 20

_NAME = bytes(range(33, 127))


class HeaderTooLong(Exception):
    """A header of more than HEADER_LIMIT octets."""


def is_field(line: bytes) -> bool:
    """Does a header field begin with this line: a name of printable octets, blanks perhaps, a colon?"""
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    return bool(colon and name) and not name.translate(None, _NAME)


class Splitter:
    """A message that is read from `blocks`, all of it once: first :meth:`fields` to their end, then :meth:`body`."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""
        self._at = 0
        self._left = HEADER_LIMIT
        self._crlf = False
        self._blank = b""  # what parts header and body

    def fields(self) -> Iterator[bytes]:
        """The header fields, continuation lines and the LF at the end included. HeaderTooLong when they are.

        The header ends with an empty line, before a line that is no field, or with the message.
        """
        field: list[bytes] = []
        while (line := self._line()) is not None:
            if field and line[0] in b" \t":
                field.append(line)
                continue
            if field:
                yield b"".join(field)
                field = []
            if line == b"\n":
                self._blank = line
                return
            if line.startswith(b"From "):
                line = b"MBOX-Line: " + line
            elif not is_field(line):
                self._blank = b"\n" + line
                return
            field.append(line)
        if field:
            yield b"".join(field)

    def body(self) -> Iterator[bytes]:
        """What follows the fields, the empty line included; its last line ends with a LF.

        Nothing when the message ends within its header. An empty line comes before a body that had none.
        """
        if self._blank:
            yield self._blank
        whole = True  # the last line had its LF
        held = b""  # a CR that may belong to a LF
        block: bytes | None = self._block[self._at :]
        self._block = b""
        while block is not None:
            if self._crlf:
                block = held + block
                held = b"\r" if block.endswith(b"\r") else b""
                block = (block[:-1] if held else block).replace(b"\r\n", b"\n")
            if block:
                whole = block.endswith(b"\n")
                yield block
            block = next(self._blocks, None)
        if held or not whole:
            yield b"\n"

    def _line(self) -> bytes | None:
        """The next line of the header with LF and no CR at its end; None at the end of the message."""
        parts = []
        end = self._block.find(b"\n", self._at)
        while end < 0:
            parts.append(self._block[self._at :])
            self._left -= len(self._block) - self._at
            if self._left < 0:
                raise HeaderTooLong
            self._at = 0
            block = next(self._blocks, None)
            if block is None:
                self._block = b""
                break
            self._block = block
            end = block.find(b"\n")
        else:
            parts.append(self._block[self._at : end])
            self._left -= end + 1 - self._at
            self._at = end + 1
        line = b"".join(parts) if len(parts) != 1 else parts[0]
        if end < 0 and not line:
            return None
        if line.endswith(b"\r"):
            self._crlf = True
            line = line[:-1]
        return line + b"\n"
