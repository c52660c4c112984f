"""The server's side of one QMQP request, without I/O (spec/qmail.md §17.2, §27), and of its chunked form.

QMQP proper is one netstring that holds the netstrings of the message, of the sender and of each recipient. Its length
stands first, so the sender must know the length of the message before it sends the first octet. The queue's door takes
a second form from those who do not::

    "+"  1*netstring       the message, in pieces that are not empty
         "0:,"             the end of the message
         netstring         the sender
         *netstring        the recipients
    "."                    the end of the request

Behind an address in it there may be a NUL and DSN parameters (RFC 3461, :mod:`qtwist.mail.asked`).

Whatever ends before its last octet (the comma of the outer netstring, or the dot) was never asked for.

The answer is one netstring: ``Kok <time> qp <number>``, or ``Z`` or ``D`` and a text. In answer to the chunked form,
qmail-queue's exit code and a space stand before the text (``Z53 …``), so that programs can pass it on.

Addresses of QMQP proper have less than 1000 octets, those of the chunked form at most the 1002 of qmail-queue (§6.1);
a request with a longer one, or with a NUL in one, is read to its end and refused.
"""

from __future__ import annotations

from qtwist.mail import asked as dsn
from qtwist.wire.netstring import LengthReader, NetstringError, NetstringReader, encode

ADDRESS_TOO_LONG = 11
REFUSED = 31

#: The longest address, in QMQP proper and in the chunked form.
QMQP_ADDRESS_LIMIT = 999
CHUNKED_ADDRESS_LIMIT = 1002
_PARAMETERS_LIMIT = 1024  # NUL and parameters behind an address of the chunked form

#: What one request may ask for in all.
RECIPIENT_LIMIT = 500_000
ENVELOPE_LIMIT = 16 * 1024 * 1024

_OCTET_LIMIT = 10**18 - 1
#: In the chunked form nothing else bounds an address that is too long and read for nothing.
_CHUNKED_SKIP_LIMIT = 1024 * 1024

_PLUS, _DOT, _COMMA, _ZERO, _NINE = b"+.,09"


class QMQPServer:
    """Takes the octets of one request, in whatever pieces they come.

    :meth:`receive` returns what is message; `ended` is true after the last octet of the request, and then `sender` and
    `recipients` are what was asked for, unless `refusal` is set: the exit code of qmail-queue and a text that starts
    with the letter. `broken` is set for what is no request at all. Either way :meth:`receive` takes no more.

    Without `may_chunk`, QMQP proper is all that is taken.
    """

    def __init__(self, *, may_chunk: bool = True) -> None:
        self.chunked = False
        self._may_chunk = may_chunk
        self.started = False
        self.ended = False
        self.broken = ""
        self.refusal: tuple[int, bytes] | None = None
        self.sender = b""
        self.recipients: list[bytes] = []
        self.asked: dsn.Asked | None = None
        self._asked: dict[int, bytes] = {}  # parameters by place: the sender is 1
        self._outer = LengthReader(_OCTET_LIMIT)
        self._left = _OCTET_LIMIT  # octets within the outer netstring; any number in the chunked form
        self._message: NetstringReader | None = NetstringReader(_OCTET_LIMIT)
        self._addresses = 0
        self._address_limit = QMQP_ADDRESS_LIMIT
        self._address: NetstringReader | None = None
        self._text = b""
        self._octets = 0

    def receive(self, data: bytes) -> bytes:
        """Read on; returns the octets of the message that are in `data`."""
        pieces: list[bytes] = []
        try:
            self._receive(data, pieces)
        except NetstringError as error:
            self.broken = str(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def answer(self, code: int, text: bytes) -> bytes:
        """The answer to this request: `code` is qmail-queue's, `text` starts with its letter."""
        if self.chunked and not text.startswith(b"K"):
            text = b"%b%d %b" % (text[:1], code, text[1:])
        return encode(text)

    def _receive(self, data: bytes, pieces: list[bytes]) -> None:
        position = 0
        size = len(data)
        if not self.started and size:
            self.started = True
            if data[0] == _PLUS and self._may_chunk:
                self.chunked = True
                self._address_limit = CHUNKED_ADDRESS_LIMIT
                position = 1
        if not self.chunked and self._outer.length is None:
            position = self._outer.feed(data, 0, size)
            if self._outer.length is None:
                return
            self._left = self._outer.length
        while position < size and not self.ended:
            position = self._step(data, position, size, pieces)

    def _step(self, data: bytes, position: int, size: int, pieces: list[bytes]) -> int:
        """Read some of one netstring, or the end."""
        end = min(size, position + self._left)
        before = position
        if self._message is not None:
            self._need_room()
            piece, position = self._message.feed(data, position, end)
            if piece:
                pieces.append(piece)
            if self._message.ended:
                more = self.chunked and self._message.length
                self._message = NetstringReader(_OCTET_LIMIT) if more else None
        elif self._address is None and self._is_end(data[position]):
            if not self._addresses:
                raise NetstringError("the sender is missing")
            self._gather_asked()
            self.ended = True
            position += 1
        else:
            self._need_room()
            position = self._read_address(data, position, end)
        if not self.chunked:
            self._left -= position - before if not self.ended else 0
        return position

    def _is_end(self, octet: int) -> bool:
        if self.chunked:
            return octet == _DOT
        if self._left:
            return False
        if octet != _COMMA:
            raise NetstringError("a netstring does not end with a comma")
        return True

    def _need_room(self) -> None:
        if not self._left:
            raise NetstringError("the outer netstring ends too early")

    def _read_address(self, data: bytes, position: int, end: int) -> int:
        if self._address is None:
            self._address = NetstringReader(_CHUNKED_SKIP_LIMIT if self.chunked else self._left)
            self._text = b""
        reader = self._address
        piece, position = reader.feed(data, position, end)
        # One octet more than allowed is enough to know that it is too long.
        limit = self._address_limit + _PARAMETERS_LIMIT * self.chunked
        if len(self._text) <= limit:
            self._text += piece[: limit + 1 - len(self._text)]
        if reader.ended:
            self._address = None
            self._take_address(self._text)
        return position

    def _take_address(self, address: bytes) -> None:
        self._addresses += 1
        self._octets += len(address)
        if self.chunked and b"\0" in address:
            address, _, parameters = address.partition(b"\0")
            self._asked[self._addresses] = parameters or b"none"  # a NUL alone is a mistake
        if len(address) > self._address_limit:
            self._refuse(ADDRESS_TOO_LONG, b"DAn address is too long for this server. (#5.1.3)")
        elif b"\0" in address:
            self._refuse(ADDRESS_TOO_LONG, b"DAn address contains NUL. (#5.1.3)")
        elif self._addresses > RECIPIENT_LIMIT or self._octets > ENVELOPE_LIMIT:
            self._refuse(REFUSED, b"DThe message has too many recipients. (#5.5.3)")
        elif self._addresses == 1:
            self.sender = address
        else:
            self.recipients.append(address)

    def _gather_asked(self) -> None:
        """Put what was asked for where it belongs."""
        if not self._asked or self.refusal is not None:
            return
        asked = dsn.Asked(
            self._asked.get(1, b""),
            tuple(self._asked.get(place, b"") for place in range(2, len(self.recipients) + 2)),
        )
        try:
            dsn.check(asked, len(self.recipients))
        except ValueError:
            self._refuse(ADDRESS_TOO_LONG, b"DAn address contains NUL. (#5.1.3)")
        else:
            self.asked = asked

    def _refuse(self, code: int, text: bytes) -> None:
        if self.refusal is None:
            self.refusal = code, text
        self.recipients = []
