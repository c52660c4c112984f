"""The server's side of QMTP as a state machine without I/O (spec/qmail.md §17.1, §27).

A client sends packages, one after the other, and need not wait for answers. A package is three netstrings: the message,
whose first octet says how its lines end (LF: as they are, CR: with CRLF), the sender, and the netstrings of the
recipients. There is one answer per recipient, in order, and none before the last octet of the package has come.

Octets go in by :meth:`QMTPServer.receive`, events come out of :meth:`QMTPServer.next_event`, answers for the client out
of :meth:`QMTPServer.data_to_send`. Several packages may wait for their answers at once; the answers go out in the order
of the packages, whichever is known first.

The invariant: any octets are read as packages, or `broken` says why not; nothing else happens.

It must not know sockets, Deferreds, files, clocks or who may do what.
"""

from __future__ import annotations

from collections import deque

import attrs

from qtwist.wire.netstring import LengthReader, NetstringError, NetstringReader, encode
from qtwist.wire.smtp_body import HopCounter

MAX_ADDRESS = 999  # octets (spec §17.1)
MAX_MESSAGE = 10**15
MAX_SENDER = 1024 * 1024  # a longer one is no longer read to its end
MAX_ENVELOPE = 16 * 1024 * 1024  # octets of all recipients of a package
MAX_RECIPIENTS = 100_000  # of a package; it is not read further than that
INPUT_ENOUGH = 65536  # unread octets from which on the shell should not read more

TOO_LONG = b"DThis server cannot handle an address as long as that. (#5.1.3)"
HAS_NUL = b"DThis server cannot handle an address with a NUL in it. (#5.1.3)"
BAD_SENDER = b"DThis server cannot handle the address of the sender. (#5.1.7)"
TOO_MANY = b"ZThis message has more recipients than this server takes at once. (#4.5.3)"
TOO_BIG = b"DThe message is larger than this server takes. (#5.3.4)"

_LF, _CR, _COMMA = b"\n\r,"


@attrs.define(eq=False)
class Package:
    """One package, as far as it has come.

    The shell says by :meth:`refuse` and :meth:`take` what becomes of each recipient, in order.
    """

    size: int = 0  # octets of the message, decoded
    hops: int = 0  # its Received and Delivered lines; complete when the message is
    too_big: bool = False
    recipients: list[bytes] = attrs.field(factory=list)
    answers: list[bytes | None] = attrs.field(factory=list)  # None: the answer that all others get
    common: bytes | None = None

    def refuse(self, answer: bytes) -> None:
        """The next recipient gets this answer: ``D`` or ``Z`` and a text."""
        self.answers.append(answer)

    def take(self, address: bytes) -> None:
        """The next recipient is good: the message shall go to `address`."""
        self.answers.append(None)
        self.recipients.append(address)

    def to_bytes(self) -> bytes:
        """All answers, once `common` is known."""
        assert self.common is not None
        common = encode(self.common)
        return b"".join([common if answer is None else encode(answer) for answer in self.answers])


@attrs.frozen
class Begin:
    """A package begins. Nothing of its message was looked at so far."""

    package: Package


@attrs.frozen
class Chunk:
    """The next octets of the message, with LF line ends. None come of a message that is too big."""

    data: bytes


@attrs.frozen
class Sender:
    """The message has come, and its sender. `fault` says why no message can have that sender."""

    address: bytes
    fault: bytes | None


@attrs.frozen
class Recipient:
    """One more recipient; `address` has 1000 octets at most, and may be cut when it is too long.

    :meth:`Package.take` or :meth:`Package.refuse` must be called for it.
    """

    package: Package
    address: bytes


@attrs.frozen
class End:
    """The package is complete; :meth:`QMTPServer.answer` must be called for it, now or later."""

    package: Package


Event = Begin | Chunk | Sender | Recipient | End


class CRLFDecoder:
    """Turns CRLF into LF, in bulk, wherever the pieces are cut. Any other CR stays (spec §17.1)."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes, last: bool) -> bytes:
        """Decode the next piece; `last` says that no other follows."""
        if self._held:
            data = self._held + data
            self._held = b""
        if not last and data.endswith(b"\r"):
            self._held = b"\r"
            data = data[:-1]
        pairs = data.count(b"\r\n")
        if not pairs:
            return data
        if data.count(b"\r") == pairs:
            return data.replace(b"\r", b"")  # faster than replacing pairs
        return data.replace(b"\r\n", b"\n")


class QMTPServer:
    """One connection.

    `databytes`, the most octets that a message may have (0: any number), can be set as long as no package has begun.
    `pending` is how many packages may wait for their answers; while so many do, no other is looked at.
    """

    def __init__(self, *, pending: int = 32) -> None:
        self.databytes = 0
        self.broken = ""
        self._most_pending = pending
        self._input = b""
        self._at = 0
        self._arrived: list[bytes] = []
        self._unread = 0  # octets of _input from _at on, and of _arrived
        self._no_more_input = False
        self._ending = False
        self._package: Package | None = None
        self._pending: deque[Package] = deque()
        self._output: list[bytes] = []
        self._reader = NetstringReader(MAX_MESSAGE)
        self._step = self._read_message
        self._kept = b""  # of an address that has not come to its end
        self._outer = LengthReader(MAX_ENVELOPE)
        self._left = 0  # octets of the netstring of recipients
        self._inner: NetstringReader | None = None
        self._recipients = 0
        self._decoder: CRLFDecoder | None = None
        self._hops = HopCounter()
        self._marked = False

    # What the shell calls

    def receive(self, data: bytes) -> None:
        """Take octets from the client. They are looked at by :meth:`next_event`."""
        if not self.ended:
            self._arrived.append(data)
            self._unread += len(data)

    def end_of_input(self) -> None:
        """The client sends nothing more, but may still read. Packages that have come completely are answered."""
        self._no_more_input = True

    def end(self) -> None:
        """Begin no package after the one that is being read."""
        self._ending = True

    def drop(self, reason: str) -> None:
        """Read no further; a package that is not complete never was. Those that are complete get their answers."""
        if not self.broken:
            self.broken = reason
        self._package = None
        self._input, self._at, self._arrived, self._unread = b"", 0, [], 0

    def close(self) -> None:
        """Begin nothing: there will be no connection."""
        self.drop("the connection has not come about")

    @property
    def in_package(self) -> bool:
        """True from a package's first octet to its last."""
        return self._package is not None

    @property
    def ended(self) -> bool:
        """True when nothing that comes will be read."""
        return bool(self.broken) or (self._ending and self._package is None)

    @property
    def closed(self) -> bool:
        """True when there is nothing more to read and nothing more to answer."""
        if self._pending:
            return False
        return self.ended or (self._no_more_input and not self._unread)

    @property
    def wants_input(self) -> bool:
        """False when so much lies unread that the shell should stop reading from the client for now."""
        return self._unread < INPUT_ENOUGH

    def answer(self, package: Package, common: bytes) -> None:
        """The answer to all recipients of a complete package that have none of their own."""
        package.common = common
        pending = self._pending
        while pending and pending[0].common is not None:
            self._output.append(pending.popleft().to_bytes())

    def data_to_send(self) -> bytes:
        """What to send to the client now; empty when there is nothing."""
        output, self._output = self._output, []
        return b"".join(output)

    def next_event(self) -> Event | None:
        """The next thing to do, or None when there must first be more input, or an answer."""
        try:
            while self._unread and not self.ended:
                if self._package is None:
                    if len(self._pending) >= self._most_pending:
                        return None
                    return self._begin()
                if self._at == len(self._input):
                    self._input = self._arrived[0] if len(self._arrived) == 1 else b"".join(self._arrived)
                    self._at = 0
                    self._arrived = []
                before = self._at
                event = self._step()
                self._unread -= self._at - before
                if event is not None:
                    return event
        except NetstringError as error:
            self.drop(str(error))
        return None

    # How a package is read. A step takes something from the input, and may have an event to tell.

    def _begin(self) -> Event:
        self._package = Package()
        self._reader = NetstringReader(MAX_MESSAGE)
        self._step = self._read_message
        self._decoder = None
        self._hops = HopCounter()
        self._marked = False
        return Begin(self._package)

    def _read_message(self) -> Event | None:
        reader, package = self._reader, self._package
        assert package is not None
        known = reader.length is not None
        data, self._at = reader.feed(self._input, self._at, len(self._input))
        if not known and reader.length == 0:
            raise NetstringError("a message has no octet that tells its line ends")
        if data and not self._marked:
            self._mark(data[0], package)
            data = data[1:]
        if reader.ended:
            self._reader = NetstringReader(MAX_SENDER)
            self._kept = b""
            self._step = self._read_sender
        return self._decode(data, reader.ended, package)

    def _mark(self, octet: int, package: Package) -> None:
        self._marked = True
        if octet == _CR:
            self._decoder = CRLFDecoder()
        elif octet != _LF:
            raise NetstringError("a message begins neither with LF nor with CR")
        elif self.databytes and (self._reader.length or 0) - 1 > self.databytes:
            package.too_big = True  # known before the first octet is written

    def _decode(self, data: bytes, last: bool, package: Package) -> Event | None:
        if self._decoder is not None:
            data = self._decoder.feed(data, last)
        package.size += len(data)
        if self.databytes and package.size > self.databytes:
            package.too_big = True
        if package.too_big:
            return None
        self._hops.feed(data)
        if last:
            package.hops = self._hops.hops
        return Chunk(data) if data else None

    def _read_sender(self) -> Event | None:
        reader = self._reader
        data, self._at = reader.feed(self._input, self._at, len(self._input))
        self._keep(data)
        if not reader.ended:
            return None
        self._outer = LengthReader(MAX_ENVELOPE)
        self._inner = None
        self._recipients = 0
        self._step = self._read_recipients_length
        bad = len(self._kept) > MAX_ADDRESS or b"\0" in self._kept
        return Sender(self._kept, BAD_SENDER if bad else None)

    def _read_recipients_length(self) -> Event | None:
        self._at = self._outer.feed(self._input, self._at, len(self._input))
        if self._outer.length is not None:
            self._left = self._outer.length
            self._step = self._read_recipient
        return None

    def _read_recipient(self) -> Event | None:
        if not self._left and self._inner is None:
            return self._read_end()
        if self._inner is None:
            self._inner = NetstringReader(MAX_ENVELOPE)
            self._kept = b""
        inner = self._inner
        before = self._at
        data, self._at = inner.feed(self._input, before, min(len(self._input), before + self._left))
        self._keep(data)
        self._left -= self._at - before
        if not inner.ended:
            if not self._left:
                raise NetstringError("a recipient is longer than the list that it stands in")
            return None
        self._inner = None
        self._recipients += 1
        if self._recipients > MAX_RECIPIENTS:
            raise NetstringError(f"a package has more than {MAX_RECIPIENTS} recipients")
        assert self._package is not None
        return Recipient(self._package, self._kept)

    def _read_end(self) -> Event | None:
        package = self._package
        assert package is not None
        if self._input[self._at] != _COMMA:
            raise NetstringError("a netstring does not end with a comma")
        self._at += 1
        self._package = None
        self._pending.append(package)
        return End(package)

    def _keep(self, data: bytes) -> None:
        # One octet more than allowed is enough to know that it is too long.
        room = MAX_ADDRESS + 1 - len(self._kept)
        if room > 0:
            self._kept += data[:room]
