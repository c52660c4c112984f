"""Making a message of octets one of lines: what is ``binary`` becomes base64, wherever it is in the message (RFC 2045
§6, RFC 3030 §3).

The queue, mailboxes and DATA know lines only. So a message that comes as BINARYMIME is converted on its way in, and is
from then on a message as any other.
"""

from __future__ import annotations

import re
from base64 import encodebytes

MAX_HEADER = 65536  # octets of the header of a part
MAX_DEPTH = 50  # multiparts and messages within one another

_FIELD = re.compile(rb"(?im)^(content-type|content-transfer-encoding)[ \t]*:([^\r\n]*(?:\r\n[ \t][^\r\n]*)*)")
_TOKEN = re.compile(rb"\s*([^\s;()]+)")
_BOUNDARY = re.compile(rb"[!-~](?:[ -~]{0,68}[!-~])?")
_LINE = 57  # octets that make a line of 76 characters
_PADDING = 20  # blanks behind a delimiter that are understood


class NotConvertible(ValueError):
    """Nobody could tell the parts of the message."""


class BinaryMIME:
    """Converts a message, in pieces of any size. What it gives are lines that end in CRLF where the message keeps to
    its own word; a part that calls itself 7bit or 8bit and has a bare CR in it comes out with the bare CR.

    Part by part, ``binary`` becomes ``base64``, or ``8bit`` where the part is a multipart or a message, which may not
    be base64; their parts are looked at in turn. Everything else stays as it is.
    """

    def __init__(self) -> None:
        self._in_header = True
        self._buffer = b"\r\n"  # a header begins behind a line end, which in the first case is none of the message
        self._begun = False
        self._boundaries: list[bytes] = []
        self._depth = 0
        self._delimiter: re.Pattern[bytes] | None = None
        self._held_back = 0  # octets of the content that may be the start of a delimiter
        self._lead = 0  # octets of the empty line that are still to come before the content
        self._encoded = False  # the part at hand is made base64
        self._rest = b""  # of it, less than a line
        self._line_open = False  # of it, a line has no end yet

    def feed(self, data: bytes) -> bytes:
        """Take octets of the message; what is to be kept of them and of earlier ones. NotConvertible."""
        self._buffer += data
        return self._convert(final=False)

    def finish(self) -> bytes:
        """The message is complete; the rest of it. NotConvertible."""
        if self._in_header:
            self._buffer += b"\r\n" if self._buffer.endswith(b"\r\n") else b"\r\n\r\n"
        elif self._boundaries and not self._buffer.endswith(b"\r\n"):
            self._buffer += b"\r\n"  # without it, the last delimiter is one all the same
        return self._convert(final=True)

    def _convert(self, *, final: bool) -> bytes:
        output: list[bytes] = []
        while True:
            if self._in_header:
                if not self._header(output):
                    break
                continue
            found = None if self._delimiter is None else self._delimiter.search(self._buffer)
            if found is None:
                ready = len(self._buffer) if final else max(len(self._buffer) - self._held_back, 0)
                content, self._buffer = self._buffer[:ready], self._buffer[ready:]
                if final and self._encoded and self._boundaries:
                    raise NotConvertible("the last part has no end")
                self._content(output, content, ended=final)
                break
            content, self._buffer = self._buffer[: found.start()], self._buffer[found.end() :]
            self._content(output, content, ended=True)
            output.append(found[0])
            self._part_begins(found[1], closing=found[2] is not None)
        text = b"".join(output)
        if text and not self._begun:
            self._begun = True
            text = text[2:]
        return text

    def _content(self, output: list[bytes], data: bytes, *, ended: bool) -> None:
        """What stands in the part at hand."""
        if not self._encoded:
            output.append(data)
            return
        if self._lead and data:
            lead = data[: self._lead]
            self._lead -= len(lead)
            data = data[len(lead) :]
            output.append(lead)
        data = self._rest + data
        cut = len(data) if ended else len(data) - len(data) % _LINE
        self._rest = data[cut:]
        if cut:
            # The end of the last line is the delimiter's, whose CRLF is no part of the content.
            lines = encodebytes(data[:cut])[:-1].replace(b"\n", b"\r\n")
            output.append(b"\r\n" + lines if self._line_open else lines)
            self._line_open = True
        if ended:
            if self._line_open and not self._boundaries:
                output.append(b"\r\n")
            self._encoded = self._line_open = False

    def _part_begins(self, boundary: bytes, *, closing: bool) -> None:
        """Behind a delimiter of one of the multiparts at hand: those within it are over."""
        del self._boundaries[self._boundaries.index(boundary) + 1 :]
        if closing:
            self._boundaries.pop()
        self._in_header = not closing
        self._look_for_delimiters()

    def _look_for_delimiters(self) -> None:
        """RFC 2046 §5.1.1: those of all multiparts at hand, as one may lack its last."""
        if not self._boundaries:
            self._delimiter, self._held_back = None, 0
            return
        names = b"|".join(re.escape(name) for name in reversed(self._boundaries))
        self._delimiter = re.compile(rb"\r\n--(%b)(--)?[ \t]{0,%d}(?=\r\n)" % (names, _PADDING))
        self._held_back = max(map(len, self._boundaries)) + _PADDING + 8

    def _header(self, output: list[bytes]) -> bool:
        """Go through the header of a part, if it is all there. The line end of its empty line stays in the buffer: a
        delimiter, or the header of a message in the message, may begin with it."""
        end = self._buffer.find(b"\r\n\r\n")
        if max(end, len(self._buffer) if end < 0 else 0) > MAX_HEADER:
            raise NotConvertible("the header of a part is too long")
        if end < 0:
            return False
        header, self._buffer = self._buffer[: end + 2], self._buffer[end + 2 :]
        if self._delimiter is not None and self._delimiter.search(header):
            raise NotConvertible("a part ends in its header")
        output.append(self._enter(header))
        return True

    def _enter(self, header: bytes) -> bytes:
        """What the header says of the part that begins; the header as it is to be."""
        fields: dict[bytes, re.Match[bytes]] = {}
        for match in _FIELD.finditer(header):
            name = match[1].lower()
            if name in fields:
                raise NotConvertible("a part has two headers of a kind")
            fields[name] = match
        kind, boundary = _content_type(fields.get(b"content-type"))
        field = fields.get(b"content-transfer-encoding")
        token = None if field is None else _TOKEN.match(field[2])
        binary = token is not None and token[1].lower() == b"binary"
        composite = kind.startswith("multipart/") or (binary and kind.startswith("message/"))
        self._in_header = composite and not kind.startswith("multipart/")
        if composite:
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise NotConvertible("too many parts within parts")
        if kind.startswith("multipart/"):
            if boundary is None or boundary in self._boundaries:
                raise NotConvertible("a multipart has no boundary of its own")
            self._boundaries.append(boundary)
            self._look_for_delimiters()
        if not binary or field is None:
            return header
        self._encoded = not composite
        self._lead = 2
        encoding = b"8bit" if composite else b"base64"
        return header[: field.start()] + b"Content-Transfer-Encoding: " + encoding + header[field.end() :]


def _content_type(field: re.Match[bytes] | None) -> tuple[str, bytes | None]:
    """The type in small letters, and the boundary if it has a right one."""
    if field is None:
        return "text/plain", None
    from email.message import Message  # which takes its time to load, and few messages need it

    message = Message()
    message["Content-Type"] = re.sub(rb"[\r\n\t]+", b" ", field[2]).decode("latin-1")
    boundary = message.get_boundary()
    name = None if boundary is None else boundary.encode("latin-1", "replace")
    return message.get_content_type(), name if name is not None and _BOUNDARY.fullmatch(name) else None
