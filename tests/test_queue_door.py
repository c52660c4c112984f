"""The queue's door: spec/qmail.md §6, §17.2, §27; doc/door.md."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.clock import shift
from qtwist.home import Home
from qtwist.interfaces import Accepted, IIncomingMessage
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue import client, door
from qtwist.queue.client import QueueRefused, submit, submit_later
from qtwist.queue.door import DoorFactory, DoorPlace, DoorProtocol
from qtwist.queue.peers import origin_of, owner
from qtwist.queue.room import Free, Reserve
from qtwist.roles import DoorService, StartError
from tests.memory_queue import MemoryIncoming, MemoryQueue

REQUEST = b"+5:hello,0:,3:a@b,3:c@d,."


class LateIncoming(MemoryIncoming):
    """Asks the writer to wait; commits when it is told to."""

    def write(self, data: bytes) -> Deferred[None]:
        assert self.queue.writer is None, "the writer did not wait"
        self.data += data
        self.queue.writer = Deferred()
        return self.queue.writer

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        assert self.queue.writer is None, "committed before all was written"
        self.queue.envelope = envelope
        self.queue.answer = Deferred()
        return self.queue.answer

    def abort(self) -> None:
        self.queue.aborted += 1


class LateQueue(MemoryQueue):
    def __init__(self) -> None:
        super().__init__(Clock())
        self.writer: Deferred[None] | None = None
        self.answer: Deferred[Accepted] | None = None
        self.envelope: Envelope | None = None
        self.aborted = 0

    def begin(self, origin: Origin) -> IIncomingMessage:
        return LateIncoming(self, origin)

    def caught_up(self) -> None:
        writer, self.writer = self.writer, None
        writer.callback(None)


class ShellTests(SynchronousTestCase):
    """The protocol on a transport in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.uid = 1000
        self.use(LateQueue())

    def use(self, queue: MemoryQueue) -> None:
        self.queue: Any = queue
        self.factory = DoorFactory(
            queue, Origin.user, clock=self.clock, now=lambda: 1234.5, peer_uid=lambda _: self.uid
        )

    def connect(self) -> tuple[DoorProtocol, StringTransport]:
        protocol = self.factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def test_accepted(self) -> None:
        self.use(MemoryQueue(self.clock))
        protocol, transport = self.connect()
        protocol.dataReceived(REQUEST)
        self.assertEqual(transport.value(), b"15:Kok 1234 qp 101,")
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.queue.accepted, [(Envelope(b"a@b", (b"c@d",)), b"hello")])
        self.assertEqual(self.queue.origins[101], Origin(1000, b"by uid 1000"))

    def test_qmqp(self) -> None:
        self.use(MemoryQueue(self.clock))
        self.queue.refuse = 53
        protocol, transport = self.connect()
        for octet in b"20:5:hello,3:a@b,3:c@d,,":
            protocol.dataReceived(bytes([octet]))
        self.assertRegex(transport.value(), rb"^\d+:Z[A-Z].*\(#4\.3\.0\),$")

    def test_back_pressure(self) -> None:
        """No further read, and no commit, before the disk has caught up."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"+5:hel")
        self.assertEqual(transport.producerState, "paused")
        self.queue.caught_up()
        self.assertEqual(transport.producerState, "producing")
        protocol.dataReceived(REQUEST[6:])
        self.assertIsNone(self.queue.envelope)
        self.queue.caught_up()
        self.assertEqual(self.queue.envelope, Envelope(b"a@b", (b"c@d",)))
        self.assertEqual(transport.value(), b"")
        self.queue.answer.callback(Accepted(7, 7))
        self.assertEqual(transport.value(), b"13:Kok 1234 qp 7,")

    def test_lost_in_the_middle(self) -> None:
        protocol, _ = self.connect()
        protocol.dataReceived(b"+5:hello,")
        protocol.connectionLost()
        self.assertEqual(self.queue.aborted, 1)
        self.queue.caught_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.factory.connections, set())

    def test_lost_while_committing(self) -> None:
        """What is being committed is not taken back."""
        protocol, transport = self.connect()
        protocol.dataReceived(REQUEST)
        self.queue.caught_up()
        protocol.connectionLost()
        self.assertEqual(self.queue.aborted, 0)
        self.queue.answer.callback(Accepted(7, 7))
        self.assertEqual(transport.value(), b"")

    def test_broken(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"+5:hello,")
        self.queue.caught_up()
        protocol.dataReceived(b"MAIL FROM")
        self.assertRegex(transport.value(), rb"^\d+:Z91 .*,$")
        self.assertTrue(transport.disconnecting)
        self.assertEqual(self.queue.aborted, 1)
        protocol.dataReceived(REQUEST)
        self.assertEqual(self.queue.aborted, 1)

    def test_refused_address(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(b"+0:,1003:" + b"a" * 1003 + b",.")
        self.assertRegex(transport.value(), rb"^\d+:D11 .*\(#5\.1\.3\),$")
        self.assertEqual(self.queue.aborted, 1)

    def test_unexpected_error(self) -> None:
        protocol, transport = self.connect()
        protocol.dataReceived(REQUEST)
        self.queue.caught_up()
        self.queue.answer.errback(ZeroDivisionError())
        self.assertRegex(transport.value(), rb"^\d+:Z81 .*,$")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_silence(self) -> None:
        """§17.2: 3600 seconds; the code is qmail-queue's for a message that does not come (§6.3)."""
        protocol, transport = self.connect()
        self.clock.advance(3000)
        protocol.dataReceived(b"+")
        self.clock.advance(3599)
        self.assertEqual(transport.value(), b"")
        self.clock.advance(1)
        self.assertRegex(transport.value(), rb"^\d+:Z52 .*,$")
        self.assertTrue(transport.disconnecting)

    def test_clock_set_back(self) -> None:
        """By a day, and the timers with it (qtwist.clock): nobody may be silent for a day."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"+")
        self.clock.rightNow -= 86_400
        shift(self.clock, -86_400)
        self.clock.advance(3600)
        self.clock.advance(3600)
        self.assertRegex(transport.value(), rb"^\d+:Z52 .*,$")

    def test_too_little_of_something(self) -> None:
        """§6.3: 53 while one of the reserves is used up."""
        for free in ((4, 10), (10, 4)):
            self.factory.reserves = [
                Reserve("least", lambda: 5, lambda octets=octets: Free(octets, "here"), lambda: 0.0) for octets in free
            ]
            protocol, transport = self.connect()
            protocol.dataReceived(REQUEST)
            self.assertRegex(transport.value(), rb"^\d+:Z53 ")

    def test_lifetime(self) -> None:
        """§1.5: 24 hours, however busy the client is."""
        protocol, transport = self.connect()
        protocol.dataReceived(b"+99999999:")
        for _ in range(48):
            self.assertEqual(transport.value(), b"")
            protocol.dataReceived(b"a")
            self.queue.caught_up()
            self.clock.advance(1800)
        self.assertRegex(transport.value(), rb"^\d+:Z52 ")
        self.assertEqual(self.queue.aborted, 1)

    def test_slow_disk(self) -> None:
        """It is not the client who is silent then."""
        protocol, transport = self.connect()
        protocol.dataReceived(REQUEST)
        self.clock.advance(4000)
        self.queue.caught_up()
        self.clock.advance(4000)
        self.assertEqual(transport.value(), b"")
        self.queue.answer.callback(Accepted(7, 7))
        self.assertEqual(transport.value(), b"13:Kok 1234 qp 7,")

    def test_limits(self) -> None:
        """The port rests when there are too many; one user cannot take all places."""

        class Port:
            state = "producing"

            def pauseProducing(self) -> None:
                self.state = "paused"

            def resumeProducing(self) -> None:
                self.state = "producing"

        self.patch(door, "CONNECTIONS", 4)
        self.patch(door, "CONNECTIONS_PER_USER", 2)
        self.factory.port = port = Port()
        first, _ = self.connect()
        self.connect()
        third, refused = self.connect()
        self.assertRegex(refused.value(), rb"^\d+:Z71 ")
        third.connectionLost()
        self.assertEqual(port.state, "producing")
        self.uid = 1001
        self.connect()
        _, transport = self.connect()
        self.assertEqual((transport.value(), port.state), (b"", "paused"))
        first.connectionLost()
        self.assertEqual(port.state, "producing")
        self.uid = 1000
        self.assertEqual(self.connect()[1].value(), b"")

    def test_drain(self) -> None:
        """Who has begun may end; who has not is sent away, which is a temporary failure for it."""
        idle, idle_transport = self.connect()
        busy, transport = self.connect()
        busy.dataReceived(b"+5:he")
        drained = self.factory.drain()
        self.assertTrue(idle_transport.disconnected)
        idle.connectionLost()
        self.assertFalse(transport.disconnected)
        self.assertNoResult(drained)
        self.factory.abort()
        self.assertTrue(transport.disconnected)
        busy.connectionLost()
        self.successResultOf(drained)
        self.assertEqual(self.queue.aborted, 1)


class OriginTests(SynchronousTestCase):
    """§6.2: what the Received line says."""

    def test_users(self) -> None:
        self.assertEqual(origin_of(1000, 70, 71), Origin(1000, b"by uid 1000"))
        self.assertEqual(origin_of(0, 70, 71), Origin(0, b"by uid 0"))

    def test_alias(self) -> None:
        self.assertEqual(origin_of(71, 70, 71), Origin(71, b"by alias"))

    def test_home_of_one_account(self) -> None:
        self.assertEqual(origin_of(1000, 1000, 1000), Origin(1000, b"by uid 1000"))

    def test_nobody_owns_alias(self) -> None:
        self.assertEqual(origin_of(1000, 1000, owner("/nonexistent/alias")), Origin(1000, b"by uid 1000"))


class SocketCase(TestCase):
    """A home whose door is open, and a queue in memory behind it."""

    timeout = 60

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="qtwist-door-")
        self.addCleanup(shutil.rmtree, self.directory)
        self.make_home(f"{self.directory}/home")

    def make_home(self, path: str) -> None:
        os.makedirs(f"{path}/control")
        self.path = path
        self.home = Home(path, reactor)
        self.queue = MemoryQueue(Clock())
        self.queue.start = self.queue.stop = lambda: None
        self.home.queue = self.queue

    def open(self) -> DoorService:
        service = self.home.door()
        service.startService()
        self.addCleanup(self.close, service)
        return service

    def write(self, name: str) -> None:
        with open(f"{self.path}/{name}", "w") as file:
            file.write("precious")

    def is_there(self) -> bool:
        return os.path.lexists(f"{self.path}/run/queue")

    @staticmethod
    def close(service: DoorService) -> Deferred[None] | None:
        return service.stopService() if service.running else None

    async def submit(self, *arguments: Any) -> int:
        result: int = await deferToThread(submit, self.path, *arguments, {})
        return result

    async def refusal(self, *arguments: Any) -> QueueRefused:
        try:
            await self.submit(*arguments)
        except QueueRefused as error:
            return error
        raise AssertionError("not refused")


class DoorTests(SocketCase):
    """The client of the commands and the door of the daemon, over a real socket."""

    async def test_submit(self) -> None:
        self.open()
        number = await self.submit([b"Subject: x\n", b"", b"\nhello\n"], b"a@b", [b"c@d", b"e@f"])
        self.assertEqual(number, 101)
        self.assertEqual(self.queue.messages[number], b"Subject: x\n\nhello\n")
        self.assertEqual(self.queue.envelopes[number], Envelope(b"a@b", (b"c@d", b"e@f")))
        self.assertEqual(self.queue.origins[number], Origin.user(os.geteuid()))

    async def test_large(self) -> None:
        self.open()
        blocks = [bytes([number]) * 100_000 for number in range(100)]
        recipients = [b"user%d@example.test" % number for number in range(5000)]
        number = await self.submit(iter(blocks), b"", recipients)
        self.assertEqual(self.queue.messages[number], b"".join(blocks))
        self.assertEqual(self.queue.envelopes[number], Envelope(b"", tuple(recipients)))

    async def test_refusals(self) -> None:
        """The code of the queue comes through to the client, and the letter with it."""
        self.open()
        for code, letter in ((53, b"Z"), (31, b"D"), (66, b"Z")):
            self.queue.refuse = code
            error = await self.refusal([b"m"], b"a@b", [b"c@d"])
            self.assertEqual((error.code, error.letter), (code, letter))
            self.assertTrue(error.text)

    async def test_address_too_long(self) -> None:
        """§6.1: 1002 octets."""
        self.open()
        await self.submit([b"m"], b"a" * 1002, [b"b" * 1002])
        error = await self.refusal([b"m"], b"a@b", [b"c@d", b"b" * 1003])
        self.assertEqual((error.code, error.letter), (11, b"D"))

    async def test_nul(self) -> None:
        self.open()
        error = await self.refusal([b"m"], b"a@b", [b"c\0@d"])
        self.assertEqual((error.code, error.letter), (91, b"D"))
        self.assertEqual(self.queue.messages, {})

    async def test_message_breaks_off(self) -> None:
        """What goes wrong in the caller's reading is the caller's; nothing is queued."""
        self.open()

        def broken() -> Any:
            yield b"x" * 200_000
            raise ZeroDivisionError

        with self.assertRaises(ZeroDivisionError):
            await self.submit(broken(), b"a@b", [b"c@d"])
        # The next one is served when the first one's end has been seen.
        await self.submit([b"m"], b"a@b", [b"c@d"])
        self.assertEqual(list(self.queue.messages.values()), [b"m"])

    async def test_envelope_after_message(self) -> None:
        """§6.1: a caller of qmail-queue writes the envelope when the message has been taken."""
        self.open()
        order = []

        def message() -> Any:
            order.append("message")
            yield b"m"

        def envelope() -> Any:
            order.append("envelope")
            return b"", [b"c@d"]

        await deferToThread(submit_later, self.path, message(), envelope, {})
        self.assertEqual(order, ["message", "envelope"])

    async def test_modes(self) -> None:
        """Everybody may connect, whatever the daemon's umask."""
        umask = os.umask(0o077)
        try:
            self.open()
        finally:
            os.umask(umask)
        self.assertEqual(stat.S_IMODE(os.stat(f"{self.path}/run/queue").st_mode), 0o666)

    async def test_many_at_once(self) -> None:
        self.open()
        for _ in range(5):
            jobs = [deferToThread(submit, self.path, [b"m"], b"", [b"c@d"], {}) for _ in range(20)]
            for job in jobs:
                await job
        self.assertEqual(len(self.queue.messages), 100)

    async def test_more_than_places(self) -> None:
        """Those for whom there is no place wait; nobody is refused."""
        self.patch(door, "CONNECTIONS", 1)
        self.open()
        jobs = [deferToThread(submit, self.path, [b"m" * 200_000], b"", [b"c@d"], {}) for _ in range(20)]
        for job in jobs:
            await job
        self.assertEqual(len(self.queue.messages), 20)


class PlaceTests(SocketCase):
    async def test_gone_after_stop(self) -> None:
        service = self.open()
        await service.stopService()
        self.assertFalse(self.is_there())
        error = await self.refusal([b"m"], b"", [b"c@d"])
        self.assertEqual((error.code, error.letter), (62, b"Z"))

    async def test_removed_by_somebody(self) -> None:
        service = self.open()
        os.unlink(f"{self.path}/run/queue")
        await service.stopService()

    async def test_stale_socket(self) -> None:
        """A daemon that was killed leaves its socket behind."""
        os.mkdir(f"{self.path}/run")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{self.path}/run/queue")
            dead.listen()
        self.open()
        await self.submit([b"m"], b"", [b"c@d"])

    async def test_living_daemon(self) -> None:
        self.open()
        other = self.home.door()
        error = self.assertRaises(StartError, other.startService)
        self.assertIn("another daemon", str(error))
        await self.submit([b"m"], b"", [b"c@d"])
        await other.stopService()
        await self.submit([b"m"], b"", [b"c@d"])

    async def test_busy_daemon(self) -> None:
        """One with so many callers that it takes no more is not dead."""
        os.mkdir(f"{self.path}/run")
        with contextlib.ExitStack() as sockets:
            busy = sockets.enter_context(socket.socket(socket.AF_UNIX))
            busy.bind(f"{self.path}/run/queue")
            busy.listen(0)
            with self.assertRaises(BlockingIOError):
                for _ in range(10):
                    caller = sockets.enter_context(socket.socket(socket.AF_UNIX))
                    caller.setblocking(False)
                    caller.connect(f"{self.path}/run/queue")
            service = self.home.door()
            self.assertIn("another daemon", str(self.assertRaises(StartError, service.startService)))
            self.assertTrue(self.is_there())
            await service.stopService()

    async def test_something_else_there(self) -> None:
        os.mkdir(f"{self.path}/run")
        self.write("run/queue")
        service = self.home.door()
        error = self.assertRaises(StartError, service.startService)
        self.assertIn(f"{self.path}/run/queue: ", str(error))
        self.assertTrue(self.is_there())
        await service.stopService()

    async def test_no_place(self) -> None:
        """run cannot be made: one line that says where and why."""
        self.write("run")
        service = self.home.door()
        error = self.assertRaises(StartError, service.startService)
        self.assertIn(f"{self.path}/run/queue: ", str(error))
        await service.stopService()

    async def test_long_path(self) -> None:
        """Longer than the 108 octets that a socket's address holds."""
        self.make_home(f"{self.directory}/{'long' * 50}/home")
        service = self.open()
        self.assertEqual(await self.submit([b"m"], b"", [b"c@d"]), 101)
        other = self.home.door()
        self.assertIn("another daemon", str(self.assertRaises(StartError, other.startService)))
        await other.stopService()
        await service.stopService()
        self.assertEqual(os.listdir(f"{self.path}/run"), [])
        self.open()
        self.assertEqual(await self.submit([b"m"], b"", [b"c@d"]), 102)

    async def test_stop_lets_messages_end(self) -> None:
        service = self.open()
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.connect(f"{self.path}/run/queue")
        connection.sendall(REQUEST[:-1])
        began = Deferred()

        def look() -> None:
            if any(one._engine.started for one in service.factory.connections):
                began.callback(None)
            else:
                reactor.callLater(0.01, look)

        look()
        await began
        stopped = service.stopService()
        await deferToThread(connection.sendall, REQUEST[-1:])
        answer = await deferToThread(connection.recv, 100)
        self.assertRegex(answer, rb"^\d+:Kok \d+ qp 101,$")
        await stopped

    def test_place_is_absolute(self) -> None:
        self.assertEqual(DoorPlace("/h/run").path, "/h/run/queue")
        self.assertEqual(client.PATIENCE, door.SILENCE + 100)
