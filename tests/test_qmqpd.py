"""The QMQP server on a transport: who is served, requests, time, shutdown (spec/qmail.md §16.7, §17.2)."""

from __future__ import annotations

import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from qtwist import lingering
from qtwist.control import Control
from qtwist.interfaces import Accepted, AnswerLost, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.qmqpd import protocol
from qtwist.qmqpd.factory import QMQPFactory
from qtwist.queue.room import Free, Reserve
from qtwist.wire.netstring import encode
from tests.socket_tools import talk
from tests.test_qmtpd import Client
from tests.test_smtpd import NOW, FakeQueue
from tests.test_wire_qmqp import chunked, plain

OK = b"22:Kok 1792983845 qp 4711,"
REQUEST = plain(b"Subject: hi\n\nx\n", b"joe@cli.test", b"ann@mx.test", b"bob@anywhere.test")


class WithFactory(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.put("qmqpclients", "10.0.0.9\n192.0.2.0/24\n2001:db8::/32\n")
        self.queue = FakeQueue()
        self.clock = Clock()
        self.factory = QMQPFactory(
            Control(self.directory),
            self.queue,  # type: ignore[arg-type]
            clock=self.clock,
            now=lambda: NOW,
        )

    def put(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        with open(path + ".new", "w", encoding="latin-1") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def client(self, host: str = "10.0.0.9") -> Client:
        return Client(self.factory, host)

    def check_refused(self, client: Client, answer: bytes) -> None:
        """It has its answer and may read it; nothing that it says counts."""
        self.assertEqual(client.answers(), encode(answer))
        self.assertTrue(client.transport.half_closed)
        self.assertEqual(client.say(REQUEST), b"")
        self.assertEqual(self.queue.messages, [])
        client.protocol.readConnectionLost()
        self.assertTrue(client.transport.disconnecting)


class AccessTests(WithFactory):
    """§17.2: authorised hosts only."""

    def test_nobody_by_default(self) -> None:
        os.unlink(os.path.join(self.directory, "qmqpclients"))
        for host in ("10.0.0.9", "127.0.0.1", "::1", "::ffff:127.0.0.1"):
            self.check_refused(self.client(host), protocol.NOT_LISTED)

    def test_listed(self) -> None:
        for host in ("10.0.0.9", "::ffff:10.0.0.9", "192.0.2.255", "2001:db8::7"):
            client = Client(self.factory, host)
            self.assertEqual(client.say(REQUEST), OK, host)
        self.queue.messages.clear()
        for host in ("10.0.0.8", "192.0.3.0", "2001:db9::", "127.0.0.1"):
            self.check_refused(self.client(host), protocol.NOT_LISTED)

    def test_a_wrong_line_is_no_permission(self) -> None:
        self.put("qmqpclients", "10.0.0.9\nten\n")
        self.check_refused(self.client(), protocol.CANNOT_READ)

    def test_changes_are_seen(self) -> None:
        self.put("qmqpclients", "10.0.0.1\n")
        self.check_refused(self.client(), protocol.NOT_LISTED)

    def test_too_many(self) -> None:
        self.put("concurrencyincoming", "2\n")
        clients = [self.client() for _ in range(2)]
        third = self.client()
        self.check_refused(third, protocol.TOO_MANY)
        clients.pop().hang_up()
        self.assertEqual(self.client().say(REQUEST), OK)  # the third one is still there, but takes nobody's place

    def test_the_refused_take_no_place(self) -> None:
        """Those who may not come in cannot keep others out, however many they are."""
        self.put("concurrencyincoming", "1\n")
        self.patch(protocol, "REFUSED_AT_ONCE", 3)
        refused = [self.client("10.0.0.8") for _ in range(5)]
        self.assertEqual([one.transport.aborted for one in refused], [False] * 3 + [True] * 2)
        self.assertEqual(refused[4].answers(), b"")
        for one in refused[3:]:
            one.hang_up()  # as a transport does at once
        self.assertEqual(self.client().say(REQUEST), OK)
        for one in refused[:3]:
            one.hang_up()
        self.assertEqual(self.factory.refused, 0)

    def test_a_refused_client_that_stays(self) -> None:
        client = self.client("10.0.0.8")
        self.clock.advance(lingering.PATIENCE)
        self.assertTrue(client.transport.aborted)

    def test_too_little_of_something(self) -> None:
        """§6.3: while the disk or memory is nearly used up, the client is told to come again."""
        free = 4
        self.factory.reserves = [Reserve("least", lambda: 5, lambda: Free(free, "here"), self.clock.seconds)]
        self.assertEqual(self.client().say(REQUEST)[3:4], b"Z")
        self.assertEqual(self.queue.messages, [])
        free = 10
        self.clock.advance(2)
        self.assertEqual(self.client().say(REQUEST), OK)


class RequestTests(WithFactory):
    def test_request(self) -> None:
        """§17.2: any recipient; §16.7: the Received line."""
        client = self.client()
        verifyObject(IHalfCloseableProtocol, client.protocol)
        self.assertEqual(client.say(REQUEST), OK)
        self.assertTrue(client.transport.disconnecting)
        (message,) = self.queue.messages
        self.assertEqual(message.origin, Origin.network(os.getuid()))
        self.assertEqual(message.envelope, Envelope(b"joe@cli.test", (b"ann@mx.test", b"bob@anywhere.test")))
        self.assertEqual(
            message.data,
            b"Received: from unknown (10.0.0.9)\n  by 10.0.0.1 with QMQP; 26 Oct 2026 03:04:05 -0000\n"
            b"Subject: hi\n\nx\n",
        )
        client.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_octet_by_octet(self) -> None:
        client = self.client()
        for octet in REQUEST[:-1]:
            self.assertEqual(client.say(bytes((octet,))), b"")
        self.assertEqual(client.say(REQUEST[-1:]), OK)
        self.assertTrue(self.queue.messages[0].data.endswith(b" -0000\nSubject: hi\n\nx\n"))

    def test_bad_address(self) -> None:
        """§17.2: one of 1000 octets, or a NUL, and all of it is refused."""
        for bad in (b"a" * 1000, b"a\0"):
            for addresses in ((bad, b"a@b"), (b"", b"a@b", bad)):
                answer = self.client().say(plain(b"x", *addresses))
                self.assertRegex(answer, rb"^\d+:D[^,]*\(#5\.1\.3\),$")
        self.assertTrue(all(one.aborted for one in self.queue.messages))
        self.assertEqual(self.client().say(plain(b"x", b"", b"a" * 999)), OK)

    def test_chunked_form_is_for_the_door_only(self) -> None:
        client = self.client()
        self.assertRegex(client.say(chunked([b"x"], b"", b"a@b")), rb"^\d+:Z[^\d]")
        self.assertEqual(self.queue.messages, [])

    def test_garbage(self) -> None:
        client = self.client()
        self.assertRegex(client.say(b"EHLO x\r\n"), rb"^\d+:Z.*\(#4\.5\.2\),$")
        self.assertTrue(client.transport.half_closed)

    def test_refused_by_the_queue(self) -> None:
        for code, pattern in ((53, rb":Z[^\d].*\(#4\.3\.0\),"), (31, rb":D[^\d].*\(#5\.3\.0\),")):
            self.queue.results = [fail(QueueError(code))]
            self.assertRegex(self.client().say(REQUEST), pattern)
        self.queue.broken = OSError(28, "No space left on device")
        self.assertRegex(self.client().say(REQUEST), rb":Z")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_answer_lost(self) -> None:
        """Neither yes nor no may be said of a message that may have been queued."""
        self.queue.results = [fail(AnswerLost(74, "the queue's door closed"))]
        client = self.client()
        self.assertEqual(client.say(REQUEST), b"")
        self.assertTrue(client.transport.disconnecting)

    def test_lost(self) -> None:
        client = self.client()
        client.say(REQUEST[:-1])
        client.hang_up()
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(self.factory.connections, set())

    def test_half_closed(self) -> None:
        """A client that has asked may end its side and wait; one that has not is left."""
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client = self.client()
        client.say(REQUEST)
        client.protocol.readConnectionLost()
        self.assertFalse(client.transport.disconnecting)
        commit.callback(Accepted(457, 4711))
        self.assertEqual(client.answers(), OK)
        other = self.client()
        other.say(REQUEST[:-1])
        other.protocol.readConnectionLost()
        self.assertTrue(other.transport.disconnecting)

    def test_timeout(self) -> None:
        """§17.2: an hour for all of it."""
        client = self.client()
        for _ in range(36):
            self.assertEqual(client.say(b""), b"")
            self.clock.advance(99)
        client.say(REQUEST[:20])
        self.clock.advance(36)
        self.assertRegex(client.answers(), rb"^\d+:Z")
        self.assertTrue(client.transport.half_closed)
        self.assertTrue(self.queue.messages[0].aborted)

    def test_slow_disk(self) -> None:
        slow: Deferred[None] = Deferred()
        self.queue.slow = [slow]
        client = self.client()
        self.assertEqual(client.say(REQUEST), b"")
        self.assertTrue(client.transport.paused)
        slow.callback(None)
        self.assertEqual(client.answers(), OK)

    def test_trace(self) -> None:
        """Of a client in control/trace, what it says and the answer (issue 8, item 1)."""
        self.put("trace", "10.0.0.9\n")
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for host in ("10.0.0.9", "192.0.2.7"):
            client = self.client(host)
            client.say(REQUEST)
            client.hang_up()
        lines = [formatEvent(event).partition(": ")[2] for event in events if event["log_namespace"] == "qtwist.trace"]
        self.assertEqual([line for line in lines if not line.startswith("10.0.0.9 ")], [])
        said = [line.removeprefix("10.0.0.9 ") for line in lines]
        self.assertIn("> Kok 1792983845 qp 4711", said)
        self.assertEqual((said[0][-11:], said[-1]), ("Subject: hi", "< [EOF]"))
        self.assertTrue(any("joe@cli.test" in line for line in said), said)

    def test_drain(self) -> None:
        idle, busy = self.client(), self.client()
        busy.say(REQUEST[:10])
        drained = self.factory.drain()
        self.assertTrue(idle.transport.aborted)
        late = self.client()
        self.assertEqual(late.answers(), encode(protocol.CLOSING))
        self.assertEqual(busy.say(REQUEST[10:]), OK)
        for connection in list(self.factory.connections):
            connection.connectionLost()
        self.successResultOf(drained)


class SocketTests(TestCase):
    """Over TCP: a refused client that sends a lot without looking still reads why."""

    timeout = 60

    async def test_refused(self) -> None:
        directory = self.mktemp()
        os.mkdir(directory)
        factory = QMQPFactory(Control(directory), FakeQueue())  # type: ignore[arg-type]
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(factory.drain)
        self.addCleanup(port.stopListening)
        request = plain(b"x" * 3_000_000, b"a@b", b"c@d")
        for half_close in (True, False):
            answer = await deferToThread(talk, port.getHost().port, request, half_close=half_close)
            self.assertEqual(answer, encode(protocol.NOT_LISTED))
