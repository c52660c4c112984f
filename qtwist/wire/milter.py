"""The mail server's side of the milter protocol, versions 2 to 6, without I/O (Sendmail's libmilter, mfdef.h).

A packet is four octets of length, a letter, and what belongs to it. The server says what comes (connect, HELO, MAIL,
…), the filter answers each with one letter; at the end of the message it says before what it wants changed.

It must not know sockets, clocks, or what an answer means for a message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import attrs

VERSION = 6
OLDEST = 2

LARGEST_PACKET = 1 << 20
"""Octets that a packet of the filter may have; a header field or a piece of a body."""

BODY_PIECE = 65535
"""Octets of body in one packet at most."""

# What comes, by its letter.
NEGOTIATE, CONNECT, HELO, MAIL, RCPT, DATA = b"O", b"C", b"H", b"M", b"R", b"T"
HEADER, END_OF_HEADER, BODY, END_OF_BODY = b"L", b"N", b"B", b"E"
ABORT, QUIT, MACROS = b"A", b"Q", b"D"

# What the filter answers.
CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD = b"c", b"a", b"r", b"t", b"d"
REPLY_CODE, SKIP, PROGRESS, SHUTDOWN, CONN_FAIL = b"y", b"s", b"p", b"4", b"f"

# What it wants changed.
ADD_HEADER, INSERT_HEADER, CHANGE_HEADER = b"h", b"i", b"m"
ADD_RECIPIENT, ADD_RECIPIENT_WITH, DELETE_RECIPIENT, CHANGE_SENDER = b"+", b"2", b"-", b"e"
REPLACE_BODY, QUARANTINE = b"b", b"q"

HEADER_CHANGES = frozenset((ADD_HEADER, INSERT_HEADER, CHANGE_HEADER))
CHANGES = HEADER_CHANGES | {
    *(REPLACE_BODY, QUARANTINE),
    *(ADD_RECIPIENT, ADD_RECIPIENT_WITH, DELETE_RECIPIENT, CHANGE_SENDER),
}
ANSWERS = frozenset((CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, REPLY_CODE, SKIP, SHUTDOWN, CONN_FAIL))

#: Header fields, body, recipients added and deleted, headers changed, sender changed, recipients with parameters;
#: no quarantine, no lists of macros.
ACTIONS = 0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80

_NOT_SENT = {CONNECT: 0x1, HELO: 0x2, MAIL: 0x4, RCPT: 0x8, BODY: 0x10, HEADER: 0x20, END_OF_HEADER: 0x40, DATA: 0x200}
_NOT_ANSWERED = {
    **{HEADER: 0x80, CONNECT: 0x1000, HELO: 0x2000, MAIL: 0x4000, RCPT: 0x8000},
    **{DATA: 0x10000, END_OF_HEADER: 0x40000, BODY: 0x80000},
}
_MAY_SKIP = 0x400
_LEADING_SPACE = 0x100000
_OFFERED = sum(_NOT_SENT.values()) | sum(_NOT_ANSWERED.values()) | _MAY_SKIP | _LEADING_SPACE
_DATA_SINCE = 4


class MilterError(ValueError):
    """The filter has said something that makes no sense: what, in words for the administrator."""


@attrs.frozen
class Packet:
    """What the filter has said: its letter, and the rest."""

    letter: bytes
    rest: bytes

    def texts(self, count: int) -> list[bytes]:
        """The first `count` texts of `rest`, each ended by NUL. MilterError when there are not so many."""
        parts = self.rest.split(b"\0")
        if len(parts) <= count:
            raise MilterError(f"a packet {self.letter!r} is incomplete")
        return parts[:count]

    def numbered(self) -> tuple[int, bytes, bytes]:
        """A number and two texts: of INSERT_HEADER and CHANGE_HEADER. MilterError when it is something else."""
        if len(self.rest) < 4:
            raise MilterError(f"a packet {self.letter!r} is incomplete")
        name, value = Packet(self.letter, self.rest[4:]).texts(2)
        return struct.unpack(">L", self.rest[:4])[0], name, value


class Milter:
    """A conversation with one filter. After :meth:`negotiated`, `wants` and `answers` tell what it asked for."""

    def __init__(self) -> None:
        self._input = b""
        self._version = VERSION
        self._protocol = 0

    def receive(self, data: bytes) -> list[Packet]:
        """The packets that are complete with `data`. MilterError."""
        self._input += data
        packets = []
        at = 0
        while len(self._input) - at >= 4:
            (length,) = struct.unpack_from(">L", self._input, at)
            if not 1 <= length <= LARGEST_PACKET:
                raise MilterError(f"a packet claims {length} octets")
            if len(self._input) - at - 4 < length:
                break
            packets.append(Packet(self._input[at + 4 : at + 5], self._input[at + 5 : at + 4 + length]))
            at += 4 + length
        self._input = self._input[at:]
        return packets

    def negotiate(self) -> bytes:
        """The first thing to say."""
        return packet(NEGOTIATE, struct.pack(">LLL", VERSION, ACTIONS, _OFFERED))

    def negotiated(self, answer: Packet) -> None:
        """Take the filter's word. MilterError when we cannot go on with it."""
        if answer.letter != NEGOTIATE or len(answer.rest) < 12:
            raise MilterError("it does not negotiate")
        version, actions, protocol = struct.unpack(">LLL", answer.rest[:12])
        if not OLDEST <= version <= VERSION:
            raise MilterError(f"it speaks version {version}; expected {OLDEST} to {VERSION}")
        if actions & ~ACTIONS & 0x1FF:
            raise MilterError(f"it wants to do what there is not here (actions {actions & ~ACTIONS & 0x1FF:#x})")
        if protocol & ~_OFFERED:
            raise MilterError(f"it wants a protocol that was not offered ({protocol & ~_OFFERED:#x})")
        self._version, self._protocol = version, protocol

    @property
    def leading_space(self) -> bool:
        """Whether the values of header fields have the space behind the colon."""
        return bool(self._protocol & _LEADING_SPACE)

    def wants(self, letter: bytes) -> bool:
        """Whether the filter is told of this."""
        if letter == DATA and self._version < _DATA_SINCE:
            return False
        return not self._protocol & _NOT_SENT.get(letter, 0)

    def answers(self, letter: bytes) -> bool:
        """Whether it answers this, once it was told."""
        return not self._protocol & _NOT_ANSWERED.get(letter, 0)

    @property
    def may_skip(self) -> bool:
        """Whether it may say that it needs no more of the body."""
        return bool(self._protocol & _MAY_SKIP)


def packet(letter: bytes, rest: bytes = b"") -> bytes:
    """A packet with this letter."""
    return struct.pack(">L", 1 + len(rest)) + letter + rest


def texts(letter: bytes, *values: bytes) -> bytes:
    """A packet of texts; a NUL in one of them, which would end it, is left out."""
    return packet(letter, b"".join(value.replace(b"\0", b"") + b"\0" for value in values))


def connect(host: bytes, address: str, port: int) -> bytes:
    """Who has connected; `address` is an IPv4 or IPv6 address, or empty where it is not known."""
    host = host.replace(b"\0", b"")
    if not address:
        return packet(CONNECT, host + b"\0U")
    family = b"6" if ":" in address else b"4"
    shown = (b"IPv6:" if family == b"6" else b"") + address.encode("ascii")
    return packet(CONNECT, host + b"\0" + family + struct.pack(">H", port) + shown + b"\0")


def macros(letter: bytes, values: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The macros that belong to what comes next; empty when there are none."""
    pairs = [text for name, value in values for text in (name, value)]
    rest = b"".join(text.replace(b"\0", b"") + b"\0" for text in pairs)
    return packet(MACROS, letter + rest) if rest else b""
