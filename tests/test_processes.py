"""Packets between processes, and spawners at the other end of them. Whole daemons: tests/e2e/test_roles.py."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.control import Control
from qtwist.interfaces import Delivery
from qtwist.mail.envelope import Report
from qtwist.processes.accounts import find_accounts
from qtwist.processes.packets import PacketConnection
from qtwist.processes.spawners import ProcessSpawner, SpawnerServer, from_exit_code, from_letter
from qtwist.roles import StartError
from tests.memory_queue import ScriptedSpawner


def message(text: bytes = b"Subject: x\n\nhello\n") -> int:
    """A descriptor of a file with this text."""
    with tempfile.TemporaryFile() as file:
        file.write(text)
        file.flush()
        return os.dup(file.fileno())


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class End:
    """One end of a pair, with what it got."""

    def __init__(self, sock: socket.socket) -> None:
        self.packets: list[tuple[bytes, list[bytes]]] = []
        self.lost: Deferred[None] = Deferred()
        self._news: Deferred[None] | None = None
        self.connection = PacketConnection(reactor, sock, self._received, lambda: self.lost.callback(None))

    def _received(self, packet: bytes, fds: list[int]) -> None:
        contents = []
        for fd in fds:
            contents.append(os.pread(fd, 1000, 0))
            os.close(fd)
        self.packets.append((packet, contents))
        news, self._news = self._news, None
        if news is not None:
            news.callback(None)

    async def wait(self, count: int) -> None:
        while len(self.packets) < count:
            self._news = Deferred()
            await self._news


class PacketTests(TestCase):
    def setUp(self) -> None:
        one, other = PacketConnection.pair()
        self.one, self.other = End(one), End(other)
        self.addCleanup(self.one.connection.close)
        self.addCleanup(self.other.connection.close)

    async def test_descriptor(self) -> None:
        """The receiver gets a descriptor of its own; the sender keeps, or closes, its one."""
        fd = message(b"hello")
        self.one.connection.send(b"take this", [fd])
        os.close(fd)
        await self.other.wait(1)
        self.assertEqual(self.other.packets, [(b"take this", [b"hello"])])

    async def test_more_than_the_socket_holds(self) -> None:
        """Nothing is lost or mixed up when the other end does not read for a while."""
        fd = message(b"hello")
        sent = [b"%d " % number + bytes(10_000) for number in range(300)]
        for packet in sent:
            self.one.connection.send(packet, [fd])
        os.close(fd)
        await self.other.wait(len(sent))
        self.assertEqual(self.other.packets, [(packet, [b"hello"]) for packet in sent])

    async def test_lost(self) -> None:
        """The end of one is told to the other, once, after what was sent."""
        self.one.connection.send(b"last words")
        self.one.connection.close()
        await self.other.lost
        self.assertEqual(self.other.packets, [(b"last words", [])])
        self.assertFalse(self.other.connection.is_open)
        self.other.connection.send(b"nobody hears this")
        self.assertFalse(self.one.lost.called)

    async def test_handler_that_fails(self) -> None:
        """A packet that cannot be handled is logged; the next one is handled."""
        failing = iter([True, False])
        received = self.other.connection._received

        def handle(packet: bytes, fds: list[int]) -> None:
            if next(failing):
                raise RuntimeError("bad packet")
            received(packet, fds)

        self.other.connection._received = handle
        self.one.connection.send(b"bad")
        self.one.connection.send(b"good")
        await self.other.wait(1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class SpawnerTests(TestCase):
    def setUp(self) -> None:
        self.spawner = ProcessSpawner(5, reactor, from_letter)
        self.scripted = ScriptedSpawner()

    def gone(self) -> None:
        """The queue manager is."""

    def connect(self) -> None:
        ours, theirs = PacketConnection.pair()
        self.server = SpawnerServer(reactor, theirs, self.scripted, self.gone)
        self.spawner.connect(ours)
        self.addCleanup(self.server._connection.close)

    def deliver(self, recipient: bytes = b"joe@x.test") -> Deferred[Report]:
        self.fd = message()
        return self.spawner.deliver(Delivery(7, self.fd, b"ann@x.test", recipient))

    async def test_delivery(self) -> None:
        """§11.1: sender, recipient and an open message go there, a letter and a text come back."""
        self.connect()
        self.scripted.answers[b"joe@x.test"] = Report.success(b"did 1+0+0\n")
        self.assertEqual(await self.deliver(), Report.success(b"did 1+0+0\n"))
        self.assertEqual(self.scripted.seen, [(b"ann@x.test", b"joe@x.test")])
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await self.deliver()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
        await self.spawner.stop()

    async def test_waits_for_a_process(self) -> None:
        result = self.deliver()
        self.assertNoResult(result)
        self.scripted.answers[b"joe@x.test"] = Report.failure(b"no\n")
        self.connect()
        self.assertEqual(await result, Report.failure(b"no\n"))
        await self.spawner.stop()

    async def test_process_dies(self) -> None:
        """What was running is a deferral; what comes next waits for the process that takes its place."""
        self.connect()
        result = self.deliver()
        self.server._connection.close()
        report = await result
        self.assertEqual((report.letter, b"nobody knows how far" in report.text), (b"Z", True))
        result = self.deliver()
        self.scripted.answers[b"joe@x.test"] = Report.success()
        self.connect()
        self.assertEqual((await result).letter, b"K")
        await self.spawner.stop()

    async def test_stop(self) -> None:
        """What runs may end; what waits is deferred; nothing new is taken."""
        waiting = self.deliver()
        stopped = self.spawner.stop()
        self.assertEqual(self.successResultOf(waiting).letter, b"Z")
        self.assertFalse(is_open(self.fd))
        await stopped
        self.assertEqual(self.successResultOf(self.deliver()).letter, b"Z")
        self.assertFalse(is_open(self.fd))

    async def test_nobody_connects_any_more(self) -> None:
        """What waits is deferred, and so is what would have to wait; what runs goes on."""
        waiting = self.deliver()
        self.spawner.give_up()
        self.assertEqual(self.successResultOf(waiting).letter, b"Z")
        self.assertFalse(is_open(self.fd))
        self.assertEqual(self.successResultOf(self.deliver()).letter, b"Z")
        self.assertFalse(is_open(self.fd))
        self.connect()
        self.scripted.answers[b"joe@x.test"] = Report.success()
        self.assertEqual((await self.deliver()).letter, b"K")
        await self.spawner.stop()

    async def test_nul(self) -> None:
        self.connect()
        self.assertEqual((await self.deliver(b"joe\0@x.test")).letter, b"D")
        self.assertFalse(is_open(self.fd))
        await self.spawner.stop()

    def test_meanings(self) -> None:
        """§11.3: an exit code; §11.4: a letter. What is neither is a deferral."""
        self.assertEqual(from_exit_code(0, b"did\n"), Report.success(b"did\n"))
        self.assertEqual(from_exit_code(-9, b"").letter, b"Z")
        self.assertEqual(from_exit_code(100, b"no\n"), Report.failure(b"no\n"))
        self.assertEqual(from_letter(ord("K"), b"ok\n"), Report.success(b"ok\n"))
        self.assertEqual(from_letter(7, b"?\n").letter, b"Z")


class AccountTests(SynchronousTestCase):
    """control/accounts."""

    def find(self, text: str) -> Any:
        directory = self.mktemp()
        os.mkdir(directory)
        with open(os.path.join(directory, "accounts"), "w") as file:
            file.write(text)
        return find_accounts(Control(directory))

    def test_missing(self) -> None:
        error = self.assertRaises(StartError, self.find, "qmaild:no-such-account\n")
        self.assertIn("there is no account no-such-account for the servers", str(error))

    def test_root(self) -> None:
        error = self.assertRaises(StartError, self.find, "qmaild:root\n")
        self.assertIn("is root's", str(error))

    def test_two_purposes(self) -> None:
        error = self.assertRaises(StartError, self.find, "qmaild:nobody\nqmaill:nobody\n")
        self.assertIn("expected one for each purpose", str(error))
