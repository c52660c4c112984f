"""The header of a message that comes in through submission, made whole as it streams by (spec/qmail.md §19,
spec/related.md §9.1; RFC 6409 §8).

As in ofmipd and qmail-inject, what is missing is added, Bcc is removed, addresses without a domain are completed, and
From is the one of the name database. What is complete stays octet for octet as it was, and so does what cannot be
read: people's own mail is not refused for its looks, and signatures in it stay valid.

Pure. The header is held in memory until its end, the body never.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from qtwist.inject import fields
from qtwist.inject.addresses import Completion, rewrite_field
from qtwist.inject.splitting import is_field
from qtwist.inject.tokens import COMMENT, SyntaxTrouble, parse, unparse, unquote
from qtwist.mail.dates import rfc822_date
from qtwist.mail.quoting import escape, quote2

if TYPE_CHECKING:
    from qtwist.inject.tokens import Tokens

#: The most octets of a header.
HEADER_LIMIT = 1 << 20

_NOT_SHOWN = b"Cc: recipient list not shown: ;\n"
_FROM = b"from"


class HeaderTooLong(Exception):
    """A header of more than HEADER_LIMIT octets."""


@attrs.frozen
class Naming:
    """What is added to one message: `sender` is the From where there is none, or, with a `name`, in any case.

    `seconds` since the epoch, and `message_id`, are those of the message if it has none of its own.
    """

    complete: Completion
    sender: bytes
    seconds: float
    message_id: bytes
    name: bytes | None = None


class Submitted:
    """Takes a message with LF line ends in pieces and gives what is to be queued."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._held = b""
        self._size = 0
        self._field: list[bytes] = []
        self._fields: list[bytes] = []
        self._seen: set[bytes] = set()
        self._in_header = True
        #: The addresses of From, as they are in the message that is queued.
        self.authors: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """The next octets; what can be queued now. HeaderTooLong."""
        if not self._in_header:
            return data
        self._size += len(data)
        data = self._held + data
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            line = data[at : end + 1]
            if self._ends(line):
                # A line that is no field begins the body, which has an empty line before it then.
                return self._header() + (b"" if line == b"\n" else b"\n") + data[at:]
            at = end + 1
        self._held = data[at:]
        if self._size > HEADER_LIMIT:
            raise HeaderTooLong
        return b""

    def finish(self) -> bytes:
        """The message has ended; what is left to be queued."""
        rest = self.feed(b"\n") if self._in_header and self._held else b""
        return rest + self._header() if self._in_header else rest

    def _ends(self, line: bytes) -> bool:
        """Take a line of the header, unless it is the first of the body."""
        if self._field and line[0] in b" \t":
            self._field.append(line)
            return False
        self._take_field()
        if line == b"\n":
            return True
        if line.startswith(b"From "):
            line = b"MBOX-Line: " + line
        elif not is_field(line):
            return True
        self._field.append(line)
        return False

    def _take_field(self) -> None:
        if not self._field:
            return
        field = b"".join(self._field)
        self._field = []
        name = fields.name_of(field)
        self._seen.add(name)
        if name in fields.DROPPED or (name == _FROM and self._naming.name is not None):
            return
        if fields.action(name) != fields.NOTED:
            field = self._completed(name, field)
        self._fields.append(field)

    def _completed(self, name: bytes, field: bytes) -> bytes:
        """`field` with its addresses completed; as it was when there is nothing to complete."""
        changed = False
        authors: list[bytes] = []

        def complete(address: Tokens) -> Tokens:
            nonlocal changed
            better = self._naming.complete(address)
            changed = changed or better != address
            authors.append(unquote(better))
            return better

        try:
            rewritten = rewrite_field(parse(field), complete)
        except SyntaxTrouble:
            return field
        if name == _FROM:
            self.authors += [author for author in authors if author]
        return unparse(rewritten) if changed else field

    def _header(self) -> bytes:
        """The whole header; the body follows."""
        self._in_header = False
        self._take_field()
        naming, seen = self._naming, self._seen
        added = []
        if b"date" not in seen:
            added.append(b"Date: %b\n" % rfc822_date(naming.seconds))
        if b"message-id" not in seen:
            added.append(b"Message-ID: %b\n" % naming.message_id)
        if _FROM not in seen or naming.name is not None:
            added.append(self._own_from())
        if b"to" not in seen and b"cc" not in seen:
            added.append(_NOT_SHOWN)
        return b"".join(added + self._fields)

    def _own_from(self) -> bytes:
        naming = self._naming
        self.authors = [naming.sender]
        address = quote2(naming.sender).replace(b"\n", b" ")
        if naming.name is None:
            return b"From: <%b>\n" % address
        return b'From: "%b" <%b>\n' % (escape(naming.name.translate(None, b"\r\n\0"), b'"\\'), address)


def completed(complete: Callable[[Tokens], Tokens], address: bytes) -> bytes:
    """An envelope address with the domain that it lacks, as those of the header get theirs."""
    if not address or address.endswith(b"]"):
        return address
    try:
        tokens = [token for token in parse(quote2(address)) if token[0] != COMMENT]
    except SyntaxTrouble:
        return address
    return unquote(complete(tokens)) or address
