"""What a message costs the engines, in counts that do not depend on the machine: calls, objects that stay, octets held.

Issue 7's guard for what runs inside Python; what reaches the kernel is counted in tests/e2e/test_cost.py.
"""

from __future__ import annotations

import functools
import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import FrameType

from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import netstring
from qtwist.wire.qmtp_server import End, QMTPServer, Recipient
from qtwist.wire.smtp_client import SMTPClient, Transaction
from qtwist.wire.smtp_server import SMTPServer
from tests.test_wire_smtp_server import drive

PIECE = 65536
LINE = b"As much as fits on a line of a mail, and one that says something.\n"
BODY = b"Subject: x\n\n" + 60 * LINE  # about 4 KiB
MESSAGES = 300

#: Octets that an engine may hold of a message that streams through it: some pieces, however long the message is.
HELD = 8 * PIECE


def pieces(body: bytes) -> Iterator[bytes]:
    return (body[start : start + PIECE] for start in range(0, len(body), PIECE))


class Served:
    """A server's engine that has been greeted."""

    def __init__(self) -> None:
        self.engine = SMTPServer(b"mx.test")
        self.ask(b"EHLO client.test\r\n")

    def ask(self, data: bytes) -> None:
        """Hand in `data`, say yes to everything, throw the answers away."""
        self.engine.receive(data)
        drive(self.engine)
        self.engine.data_to_send()

    def begin(self) -> None:
        for command in (b"MAIL FROM:<joe@client.test>", b"RCPT TO:<ann@mx.test>", b"DATA"):
            self.ask(command + b"\r\n")

    def carry(self, body: bytes = BODY) -> None:
        """One message, a command at a time."""
        self.begin()
        for piece in pieces(body.replace(b"\n", b"\r\n") + b".\r\n"):
            self.ask(piece)


class Sent:
    """A client's engine that has been greeted."""

    def __init__(self) -> None:
        self.engine = SMTPClient(b"mx.test")
        self.engine.receive(b"220 far.test\r\n")
        self.engine.receive(b"250-far.test\r\n250 PIPELINING\r\n")

    def carry(self, body: bytes = BODY) -> None:
        """One message, a reply at a time."""
        engine = self.engine
        engine.start(Transaction(b"joe@client.test", (b"ann@far.test",), len(body), False))
        engine.take_output()
        engine.receive(b"250 ok\r\n250 ok\r\n")
        engine.receive(b"354 go\r\n")
        for piece in pieces(body):
            engine.body(piece)
            engine.take_output()
        engine.end_body()
        engine.take_output()
        engine.receive(b"250 ok\r\n")


class Packed:
    """A QMTP server's engine."""

    def __init__(self) -> None:
        self.engine = QMTPServer()

    def carry(self, body: bytes = BODY) -> None:
        """One package, and its answer."""
        engine = self.engine
        recipients = netstring.encode(b"ann@mx.test")
        package = b"\n" + body, b"joe@client.test", recipients
        for piece in pieces(b"".join(map(netstring.encode, package))):
            engine.receive(piece)
            while (event := engine.next_event()) is not None:
                if isinstance(event, Recipient):
                    event.package.take(event.address)
                elif isinstance(event, End):
                    engine.answer(event.package, b"Kok")
        engine.data_to_send()


ENGINES: tuple[type[Served | Sent | Packed], ...] = (Served, Sent, Packed)


#: The most calls, of Python functions and of built-in ones, that a message of 4 KiB may cost.
CALLS: dict[type[Served | Sent | Packed], int] = {Served: 340, Sent: 180, Packed: 180}
#: And each further 64 KiB of it.
PIECE_CALLS = 45


def calls(function: Callable[[], None]) -> int:
    """How many calls `function` makes, built-in functions among them."""
    count = 0

    def note(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def fewest(function: Callable[[], None]) -> int:
    """The fewest calls of three runs: the garbage collector may have something to do in one of them."""
    return min(calls(function) for _ in range(3))


def left(function: Callable[[], None], times: int) -> int:
    """How many blocks of memory are still there after `function` has run `times` times, cyclic garbage among them."""
    for _ in range(times):
        function()
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for _ in range(times):
            function()
        return sys.getallocatedblocks() - before
    finally:
        gc.enable()


def peak(function: Callable[[], None]) -> int:
    """The most octets that were there at once while `function` ran, of those that it has asked for."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


class CallTests(SynchronousTestCase):
    def test_message(self) -> None:
        """What was counted when the bounds were set is in doc/performance.md."""
        for kind, bound in CALLS.items():
            engine = kind()
            engine.carry()
            self.assertLessEqual(fewest(engine.carry), bound, kind.__name__)

    def test_nothing_per_line(self) -> None:
        """What a body costs depends on its pieces, not on its lines."""
        long = BODY + 10 * PIECE // len(LINE) * LINE
        lines = BODY + 10 * PIECE * b"\n"
        for kind in ENGINES:
            engine = kind()
            first = fewest(engine.carry)
            for body in (long, lines):
                more = len(body.replace(b"\n", b"\r\n")) // PIECE
                found = fewest(functools.partial(engine.carry, body)) - first
                self.assertLessEqual(found, more * PIECE_CALLS, kind.__name__)

    def test_no_growth(self) -> None:
        """The hundredth message of a connection costs what the second did."""
        for kind in ENGINES:
            engine = kind()
            engine.carry()
            second = fewest(engine.carry)
            for _ in range(MESSAGES):
                engine.carry()
            self.assertEqual(fewest(engine.carry), second, kind.__name__)


class MemoryTests(SynchronousTestCase):
    def test_nothing_stays(self) -> None:
        """After a message nothing of it is left, not even for the garbage collector."""
        for kind in ENGINES:
            self.assertLess(left(kind().carry, MESSAGES), MESSAGES // 2, kind.__name__)

    def test_connections(self) -> None:
        """The same for connections of SMTP with one message each. (A QMTP engine refers to itself.)"""
        self.assertLess(left(lambda: Served().carry(), MESSAGES), MESSAGES // 2)
        self.assertLess(left(lambda: Sent().carry(), MESSAGES), MESSAGES // 2)

    def test_streaming(self) -> None:
        """A message of 8 MiB passes in pieces: an engine holds some of them at most."""
        raw = (128 * PIECE // len(LINE)) * LINE.replace(b"\n", b"\r\n")
        served = Served()
        served.begin()

        def take() -> None:
            for piece in pieces(raw):
                served.engine.receive(piece)
                while served.engine.next_event() is not None:
                    pass

        self.assertLess(peak(take), HELD)
        sent = Sent()
        self.assertLess(peak(lambda: sent.carry(raw)), HELD)
