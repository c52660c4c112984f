"""The QMTP server on a transport: policies, queue, limits, time, shutdown (spec/qmail.md §16.4-16.7, §17.1)."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from qtwist import lingering
from qtwist.control import Control
from qtwist.interfaces import Accepted, AnswerLost, QueueError
from qtwist.mail.address import Address
from qtwist.mail.envelope import Envelope, Origin
from qtwist.policy import Policy, ReceivedMessage, Session, accept, refuse
from qtwist.qmtpd.factory import QMTPFactory
from qtwist.qmtpd.protocol import REFUSED_SECONDS
from qtwist.wire.netstring import encode
from tests import test_smtpd
from tests.socket_tools import talk
from tests.test_smtpd import NOW, FakeQueue
from tests.test_wire_qmtp_server import package

OK = b"22:Kok 1792983845 qp 4711,"
MESSAGE = b"\nSubject: hi\n\nx\n"


class Transport(test_smtpd.Transport):
    """Knows a half close."""

    half_closed = False

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class Client:
    """One connection to a factory, over a transport in memory."""

    def __init__(self, factory: Any, host: str = "10.0.0.9") -> None:
        self.transport = Transport(
            hostAddress=IPv4Address("TCP", "10.0.0.1", 209), peerAddress=IPv4Address("TCP", host, 40000)
        )
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def say(self, data: bytes) -> bytes:
        self.protocol.dataReceived(data)
        return self.answers()

    def answers(self) -> bytes:
        output: bytes = self.transport.value()
        self.transport.clear()
        return output

    def codes(self, data: bytes) -> list[bytes]:
        """The answers, letter and code only."""
        found = []
        rest = self.say(data)
        while rest:
            length, _, rest = rest.partition(b":")
            text, rest = rest[: int(length)], rest[int(length) + 1 :]
            found.append(text[:1] + (text[text.rindex(b"(#") + 2 : -1] if b"(#" in text else b""))
        return found

    def hang_up(self) -> None:
        self.protocol.connectionLost()


class WithFactory(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.control = Control(self.directory)
        self.put("me", "mx.test\n")
        self.put("rcpthosts", "mx.test\n")
        self.queue = FakeQueue()
        self.clock = Clock()

    def put(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        with open(path + ".new", "w", encoding="latin-1") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def factory(self, *policies: Policy) -> QMTPFactory:
        return QMTPFactory(self.control, self.queue, policies, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]

    def client(self, *policies: Policy, host: str = "10.0.0.9") -> Client:
        return Client(self.factory(*policies), host)


class Relaying(Policy):
    def __init__(self, suffix: bytes = b"") -> None:
        self.suffix = suffix

    def connect(self, session: Session) -> None:
        session.environment[b"RELAYCLIENT"] = self.suffix


class AnswerTests(WithFactory):
    def test_a_message(self) -> None:
        """§16.7, §17.1: our Received line, the message, and one answer for each recipient."""
        client = self.client()
        verifyObject(IHalfCloseableProtocol, client.protocol)
        self.assertTrue(client.transport.nodelay)
        self.assertEqual(client.say(package(MESSAGE, b"joe@cli.test", b"ann@mx.test", b"bob@mx.test")), OK * 2)
        (message,) = self.queue.messages
        self.assertEqual(message.origin, Origin.network(os.getuid()))
        self.assertEqual(message.envelope, Envelope(b"joe@cli.test", (b"ann@mx.test", b"bob@mx.test")))
        self.assertEqual(
            message.data,
            b"Received: from unknown (10.0.0.9)\n  by 10.0.0.1 with QMTP; 26 Oct 2026 03:04:05 -0000\n"
            b"Subject: hi\n\nx\n",
        )
        client.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pipelined(self) -> None:
        client = self.client()
        data = package(b"\n1", b"a@b", b"ann@mx.test") + package(b"\r2\r\n", b"a@b", b"ann@mx.test")
        self.assertEqual(client.say(data * 3 + data[:9]), OK * 6)
        self.assertEqual([one.data[-2:] for one in self.queue.messages[:2]], [b"\n1", b"2\n"])
        client.hang_up()
        self.assertEqual([one.aborted for one in self.queue.messages], [False] * 6 + [True])

    def test_recipients(self) -> None:
        """§17.1: what is wrong with each; a domain that is not ours counts before a NUL."""
        client = self.client()
        recipients = (b"a@mx.test", b"a@else.test", b"a\0@mx.test", b"a\0@else.test", b"a" * 992 + b"@mx.test", b"a")
        self.assertEqual(
            client.codes(package(MESSAGE, b"j@c", *recipients)),
            [b"K", b"D5.7.1", b"D5.1.3", b"D5.7.1", b"D5.1.3", b"K"],
        )
        envelope = self.queue.messages[0].envelope
        assert envelope is not None
        self.assertEqual(envelope.recipients, (b"a@mx.test", b"a"))
        self.assertEqual(client.codes(package(MESSAGE, b"", b"a" * 991 + b"@my.test")), [b"D5.7.1"])
        self.assertEqual(client.codes(package(MESSAGE, b"", b"a" * 992 + b"@mx.test")), [b"D5.1.3"])
        self.assertEqual(client.codes(package(MESSAGE, b"", b"a" * 991 + b"@mx.test")), [b"K"])

    def test_nobody_left(self) -> None:
        """A message whose recipients are all refused is read and not queued; the next one is."""
        client = self.client()
        bad = package(MESSAGE, b"j@c", b"a@else.test")
        self.assertEqual(client.codes(bad + package(MESSAGE, b"j@c", b"a@mx.test")), [b"D5.7.1", b"K"])
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(client.codes(package(MESSAGE, b"j@c")), [])
        self.assertTrue(self.queue.messages[2].aborted)

    def test_relayclient(self) -> None:
        """§17.1: anybody may be written to; the value is appended and counts for the length."""
        client = self.client(Relaying(b"@fix"))
        recipients = (b"a@else.test", b"b" * 995, b"b" * 996, b"\0")
        self.assertEqual(client.codes(package(MESSAGE, b"", *recipients)), [b"K", b"K", b"D5.1.3", b"D5.1.3"])
        envelope = self.queue.messages[0].envelope
        assert envelope is not None
        self.assertEqual(envelope.recipients, (b"a@else.test@fix", b"b" * 995 + b"@fix"))

    def test_relayclients(self) -> None:
        self.put("relayclients", "10.0.0.0/29\n")
        data = package(MESSAGE, b"", b"a@else.test")
        self.assertEqual(self.client(host="10.0.0.7").codes(data), [b"K"])
        self.assertEqual(self.client(host="10.0.0.8").codes(data), [b"D5.7.1"])

    def test_bad_sender(self) -> None:
        """§17.1: those recipients with which nothing is wrong are told of the sender."""
        for sender in (b"a\0b", b"a" * 1000):
            client = self.client()
            self.assertEqual(
                client.codes(package(MESSAGE, sender, b"a@mx.test", b"a@else.test")), [b"D5.1.7", b"D5.7.1"]
            )
            self.assertTrue(self.queue.messages.pop().aborted)

    def test_databytes(self) -> None:
        """§17.1; the limit counts before a bad sender; no octet too much is written."""
        self.put("databytes", "4\n")
        client = self.client()
        to = (b"a@mx.test", b"a@else.test")
        self.assertEqual(client.codes(package(b"\n1234", b"", *to)), [b"K", b"D5.7.1"])
        self.assertEqual(client.codes(package(b"\n12345", b"", *to)), [b"D5.3.4", b"D5.7.1"])
        self.assertEqual(client.codes(package(b"\r12\r\n4", b"", *to)), [b"K", b"D5.7.1"])
        self.assertEqual(client.codes(package(b"\r12\r\n45", b"\0", *to)), [b"D5.3.4", b"D5.7.1"])
        self.assertEqual([one.aborted for one in self.queue.messages], [False, True, False, True])

    def test_databytes_of_the_environment(self) -> None:
        class Bound(Policy):
            def connect(self, session: Session) -> None:
                session.environment[b"DATABYTES"] = b"3"

        self.assertEqual(self.client(Bound()).codes(package(b"\n1234", b"", b"a@mx.test")), [b"D5.3.4"])

    def test_loop(self) -> None:
        """§16.6: a hundred hops are too many; qmail-qmtpd does not look."""
        client = self.client()
        hop = b"Delivered-To: x\n"
        self.assertEqual(client.codes(package(b"\n" + hop * 99, b"", b"a@mx.test")), [b"K"])
        self.assertEqual(client.codes(package(b"\n" + hop * 100, b"", b"a@mx.test")), [b"D5.4.6"])
        self.assertTrue(self.queue.messages[1].aborted)

    def test_maxrecipients(self) -> None:
        self.put("maxrecipients", "2\n")
        to = (b"a@mx.test", b"a@else.test", b"b@mx.test", b"c@mx.test")
        client = self.client()
        self.assertEqual(client.codes(package(MESSAGE, b"", *to)), [b"K", b"D5.7.1", b"K", b"Z4.5.3"])
        self.assertEqual(client.codes(package(MESSAGE, b"", to[0])), [b"K"])

    def test_badmailfrom(self) -> None:
        """§16.4."""
        self.put("badmailfrom", "@bad.test\n")
        client = self.client()
        self.assertEqual(client.codes(package(MESSAGE, b"x@BAD.test", b"a@mx.test")), [b"D5.7.1"])
        self.assertEqual(client.codes(package(MESSAGE, b"x@good.test", b"a@mx.test")), [b"K"])

    def test_refused_by_the_queue(self) -> None:
        """§6.3, §7: letter and text of qmail-queue's code."""
        client = self.client()
        data = package(MESSAGE, b"", b"a@mx.test", b"b@mx.test")
        self.queue.results = [fail(QueueError(53)), fail(QueueError(31)), fail(ZeroDivisionError())]
        self.assertEqual(client.codes(data), [b"Z4.3.0"] * 2)
        self.assertEqual(client.codes(data), [b"D5.3.0"] * 2)
        self.assertEqual(client.codes(data), [b"Z4.3.0"] * 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.queue.broken = OSError(28, "No space left on device")
        self.assertEqual(client.codes(data), [b"Z4.3.0"] * 2)
        self.queue.broken = None
        self.assertEqual(client.codes(data), [b"K"] * 2)

    def test_answer_lost(self) -> None:
        """Neither yes nor no may be said of a package that may have been queued, nor anything of those after it."""
        later: Deferred[Accepted] = Deferred()
        lost: Deferred[Accepted] = Deferred()
        self.queue.results = [succeed(Accepted(457, 4711)), lost, later]
        client = self.client()
        data = package(MESSAGE, b"", b"a@mx.test")
        self.assertEqual(client.codes(data * 3 + data[:10]), [b"K"])
        lost.errback(AnswerLost(74, "the queue's door closed"))
        self.assertTrue(client.transport.disconnecting)
        later.callback(Accepted(458, 4711))
        self.assertEqual(client.say(data), b"")
        self.assertTrue(self.queue.messages[3].aborted)
        client.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_garbage(self) -> None:
        """§17.1: the connection is over; what was complete has its answer, and the client can read it in peace."""
        client = self.client()
        self.assertEqual(client.say(package(MESSAGE, b"", b"a@mx.test") + b"5:hello,"), OK)
        self.assertTrue(self.queue.messages[1].aborted)
        self.assertTrue(client.transport.half_closed)
        self.assertFalse(client.transport.disconnecting)
        self.assertEqual(client.say(package(MESSAGE, b"", b"a@mx.test")), b"")
        client.protocol.readConnectionLost()
        self.assertTrue(client.transport.disconnecting)
        client.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_that_does_not_leave(self) -> None:
        client = self.client()
        client.say(b"garbage")
        self.clock.advance(lingering.PATIENCE - 1)
        self.assertFalse(client.transport.aborted)
        self.clock.advance(1)
        self.assertTrue(client.transport.aborted)

    def test_half_closed_client(self) -> None:
        """A client may end its side and wait for the answers."""
        client = self.client()
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client.say(package(MESSAGE, b"", b"a@mx.test"))
        client.protocol.readConnectionLost()
        self.assertFalse(client.transport.disconnecting)
        commit.callback(Accepted(457, 4711))
        self.assertEqual(client.answers(), OK)
        self.assertTrue(client.transport.disconnecting)


class PolicyTests(WithFactory):
    """The hooks are those of SMTP; they hear of one package after the other."""

    def test_hooks(self) -> None:
        heard: list[Any] = []

        class Listening(Policy):
            def mail(self, session: Session, sender: Address) -> None:
                heard.append((sender.raw, session.sender))

            def rcpt(self, session: Session, recipient: Address) -> None:
                assert session.sender is not None
                heard.append((session.sender.raw, recipient.raw, [one.raw for one in session.recipients]))

            def data(self, session: Session) -> None:
                heard.append(len(session.recipients))

            def message(self, session: Session, message: ReceivedMessage) -> None:
                heard.append(message)

        client = self.client(Listening())
        data = package(b"\nReceived: x\nA: b\n\nbody\n", b"j@c", b"a@mx.test", b"b@mx.test")
        once = [
            (b"j@c", None),
            (b"j@c", b"a@mx.test", []),
            (b"j@c", b"b@mx.test", [b"a@mx.test"]),
            2,
            ReceivedMessage(23, b"Received: x\nA: b\n", 1),
        ]
        self.assertEqual(client.say(data * 2), OK * 4)
        self.assertEqual(heard, once * 2)

    def check(self, policy: Policy, codes: list[bytes]) -> Client:
        client = self.client(policy)
        self.assertEqual(client.codes(package(MESSAGE, b"j@c", b"a@mx.test", b"a@else.test")), codes)
        return client

    def test_refusals(self) -> None:
        no, later = refuse(550, b"no (#5.0.0)"), refuse(450, b"later (#4.0.0)")

        class Mail(Policy):
            def mail(self, session: Session, sender: Address) -> Any:
                return no

            def rcpt(self, session: Session, recipient: Address) -> Any:
                raise AssertionError("asked without a sender")

        class Rcpt(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                return later if recipient.raw == b"a@mx.test" else accept()

        class Data(Policy):
            def data(self, session: Session) -> Any:
                return later

        class Message(Policy):
            def message(self, session: Session, message: ReceivedMessage) -> Any:
                return succeed(no)

        self.check(Mail(), [b"D5.0.0"] * 2)
        self.check(Rcpt(), [b"Z4.0.0", b"K"])
        self.check(Data(), [b"Z4.0.0", b"D5.7.1"])
        self.check(Message(), [b"D5.0.0", b"D5.7.1"])
        self.assertEqual([one.aborted for one in self.queue.messages], [True, False, True, True])

    def test_broken_policy(self) -> None:
        class Broken(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                raise ZeroDivisionError

        client = self.check(Broken(), [b"Z4.3.0"] * 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertFalse(client.transport.half_closed)

    def test_refused_connection(self) -> None:
        """The first package gets the answer, so that the client has one; then the connection ends."""

        class No(Policy):
            def connect(self, session: Session) -> Any:
                return refuse(554, b"go away (#5.7.1)")

        client = self.client(No())
        data = package(MESSAGE, b"j@c", b"a@mx.test", b"b" * 2000)
        self.assertEqual(client.say(data * 2), encode(b"Dgo away (#5.7.1)") * 2)
        self.assertEqual(self.queue.messages, [])
        self.assertTrue(client.transport.half_closed)
        silent = self.client(No())
        self.clock.advance(REFUSED_SECONDS)
        self.assertTrue(silent.transport.half_closed)

    def test_421_ends_the_connection(self) -> None:
        class Enough(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                return refuse(421, b"enough (#4.7.0)")

        client = self.client(Enough())
        self.assertEqual(client.codes(package(MESSAGE, b"", b"a@mx.test") * 2), [b"Z4.7.0"])
        self.assertTrue(client.transport.half_closed)

    def test_slow_policies_keep_the_order(self) -> None:
        asked: list[Deferred[Any]] = []

        class Slow(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                asked.append(Deferred())
                return asked[-1]

        client = self.client(Slow())
        data = package(MESSAGE, b"", b"a@mx.test", b"b@mx.test")
        self.assertEqual(client.say(data * 2), b"")
        for number, opinion in enumerate((None, refuse(550, b"no"), refuse(450, b"later"), None)):
            self.assertEqual(len(asked), number + 1)
            asked[number].callback(opinion)
        self.assertEqual(client.answers(), OK + b"3:Dno," + b"6:Zlater," + OK)

    def test_half_closed_while_asking(self) -> None:
        """What lies unread when the client has ended its side is looked at all the same."""
        asked: list[Deferred[Any]] = []

        class Slow(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                asked.append(Deferred())
                return asked[-1]

        client = self.client(Slow())
        client.say(package(MESSAGE, b"", b"a@mx.test") * 2)
        client.protocol.readConnectionLost()
        for number in (0, 1):
            self.assertFalse(client.transport.disconnecting)
            asked[number].callback(None)
        self.assertEqual(client.answers(), OK * 2)
        self.assertTrue(client.transport.disconnecting)

    def test_lost_while_asking(self) -> None:
        cancelled = []

        class Slow(Policy):
            def message(self, session: Session, message: ReceivedMessage) -> Any:
                return Deferred(cancelled.append)

        client = self.client(Slow())
        client.say(package(MESSAGE, b"", b"a@mx.test"))
        client.hang_up()
        self.assertEqual(len(cancelled), 1)
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertIsNone(self.queue.messages[0].envelope)
        self.flushLoggedErrors()


class FlowTests(WithFactory):
    def test_commits_run_side_by_side(self) -> None:
        """Packages are read while earlier ones are on their way to the disk; the answers keep the order."""
        commits: list[Deferred[Accepted]] = [Deferred() for _ in range(40)]
        self.queue.results = list(commits)
        client = self.client()
        client.say(package(MESSAGE, b"", b"a@mx.test") * 40)
        self.assertEqual(len(self.queue.messages), 32)
        commits[1].callback(Accepted(2, 2))
        self.assertEqual(client.answers(), b"")
        commits[0].callback(Accepted(1, 1))
        self.assertEqual(client.answers(), b"19:Kok 1792983845 qp 1,19:Kok 1792983845 qp 2,")
        self.assertEqual(len(self.queue.messages), 34)
        for number in range(2, 40):
            commits[number].callback(Accepted(number, number))
        self.assertEqual(client.answers().count(b"Kok"), 38)
        self.assertEqual(len(self.queue.messages), 40)

    def test_slow_disk(self) -> None:
        """What is not written yet is not read on; the client is held back."""
        slow: Deferred[None] = Deferred()
        client = self.client()
        client.say(encode(b"\n" + b"x" * 300_000)[:9])
        self.queue.slow = [slow]
        client.say(b"x" * 70_000)
        client.say(b"x" * 70_000)
        self.assertTrue(client.transport.paused)
        size = len(self.queue.messages[0].data)
        slow.callback(None)
        self.assertFalse(client.transport.paused)
        self.assertEqual(len(self.queue.messages[0].data), size + 70_000)

    def test_a_client_that_does_not_read(self) -> None:
        """§17.1: a thousand packages and nobody who takes the answers: we do not read them all."""
        client = self.client()
        data = package(b"\n" + b"x" * 1000, b"", b"a@mx.test")
        self.assertEqual(client.say(data), OK)
        client.protocol.pauseProducing()  # as a transport does whose buffer is full
        self.assertTrue(client.transport.paused)
        self.assertEqual(client.say(data * 1000), b"")
        self.assertEqual(len(self.queue.messages), 1)
        client.protocol.resumeProducing()
        self.assertEqual(client.answers(), OK * 1000)
        self.assertFalse(client.transport.paused)

    def test_lost_while_committing(self) -> None:
        """A commit that has begun is not taken back."""
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client = self.client()
        client.say(package(MESSAGE, b"", b"a@mx.test"))
        client.hang_up()
        commit.callback(Accepted(1, 1))
        self.assertFalse(self.queue.messages[0].aborted)
        self.assertEqual(client.answers(), b"")

    def test_timeout(self) -> None:
        """§17.1: an hour for all of it; the unfinished package is forgotten."""
        client = self.client()
        for _ in range(35):
            self.clock.advance(100)
            self.assertEqual(client.say(package(MESSAGE, b"", b"a@mx.test")), OK)
        client.say(package(MESSAGE, b"", b"a@mx.test")[:-1])
        self.clock.advance(99)
        self.assertFalse(client.transport.half_closed)
        self.clock.advance(1)
        self.assertTrue(client.transport.half_closed)
        self.assertTrue(self.queue.messages[-1].aborted)
        self.assertEqual(client.say(b","), b"")

    def test_timeout_while_committing(self) -> None:
        self.put("timeoutqmtpd", "5\n")
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client = self.client()
        client.say(package(MESSAGE, b"", b"a@mx.test"))
        self.clock.advance(5)
        self.assertFalse(client.transport.half_closed)
        commit.callback(Accepted(457, 4711))
        self.assertEqual(client.answers(), OK)
        self.assertTrue(client.transport.half_closed)

    def test_timeout_while_asking(self) -> None:
        class Slow(Policy):
            def rcpt(self, session: Session, recipient: Address) -> Any:
                return Deferred()

        self.put("timeoutqmtpd", "5\n")
        client = self.client(Slow())
        client.say(package(MESSAGE, b"", b"a@mx.test"))
        self.clock.advance(5)
        self.assertTrue(client.transport.half_closed)
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(client.answers(), b"")

    def test_timeout_while_held_back(self) -> None:
        """Who is left is read to the end, or the end would be a reset."""
        client = self.client()
        client.say(encode(b"\n" + b"x" * 300_000)[:9])
        self.queue.slow = [Deferred()]
        client.say(b"x" * 70_000)
        client.say(b"x" * 70_000)
        self.assertTrue(client.transport.paused)
        self.clock.advance(3600)
        self.assertTrue(client.transport.half_closed)
        self.assertFalse(client.transport.paused)

    def test_timeout_of_a_client_that_does_not_read(self) -> None:
        client = self.client()
        client.protocol.pauseProducing()
        self.clock.advance(3600)
        self.assertTrue(client.transport.aborted)

    def test_who_is_refused_does_not_stay(self) -> None:
        """The answer is for the first package; whoever sends none is left soon."""
        self.put("maxconnip", "1\n")
        factory = self.factory()
        served, refused = Client(factory), Client(factory)
        self.clock.advance(REFUSED_SECONDS)
        self.assertTrue(refused.transport.half_closed)
        self.assertFalse(served.transport.half_closed)

    def test_too_many_connections(self) -> None:
        self.put("concurrencyincoming", "2\n")
        factory = self.factory()
        clients = [Client(factory) for _ in range(3)]
        self.assertEqual([one.transport.aborted for one in clients], [False, False, True])
        for one in clients:
            one.hang_up()
        self.assertEqual(factory.connections, set())

    def test_unreadable_control(self) -> None:
        self.put("databytes", "x\n")
        os.mkdir(os.path.join(self.directory, "timeoutqmtpd"))
        self.assertTrue(self.client().transport.aborted)

    def test_drain(self) -> None:
        """An idle client is left; one in a package may end that, and gets its answer."""
        factory = self.factory()
        idle, busy = Client(factory), Client(factory)
        data = package(MESSAGE, b"", b"a@mx.test")
        busy.say(data[:5])
        drained = factory.drain()
        self.assertTrue(idle.transport.half_closed)
        self.assertFalse(busy.transport.half_closed)
        self.assertEqual(busy.say(data[5:] + data), OK)
        self.assertTrue(busy.transport.half_closed)
        self.assertTrue(Client(factory).transport.aborted)
        for connection in list(factory.connections):
            connection.connectionLost()
        self.successResultOf(drained)


def make_control(directory: str) -> None:
    os.mkdir(directory)
    for name in ("me", "rcpthosts"):
        with open(f"{directory}/{name}", "w") as file:
            file.write("mx.test\n")


class SocketTests(TestCase):
    """Over TCP."""

    timeout = 60

    async def serve(self) -> int:
        directory = self.mktemp()
        make_control(directory)
        self.queue = FakeQueue()
        self.factory = QMTPFactory(Control(directory), self.queue)  # type: ignore[arg-type]
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self.factory)
        self.addCleanup(self.factory.drain)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def test_half_close(self) -> None:
        """Send all, end our side, read the answers."""
        port = await self.serve()
        data = package(MESSAGE, b"", b"a@mx.test", b"b@else.test")
        answers = await deferToThread(talk, port, data * 1000)
        self.assertEqual(answers.count(b":Kok "), 1000)
        self.assertEqual(answers.count(b"(#5.7.1),"), 1000)
        self.assertEqual(len(self.queue.messages), 1000)

    async def test_answers_survive_garbage(self) -> None:
        """No reset takes the answers away from a client that goes on sending after our end."""
        port = await self.serve()
        data = package(MESSAGE, b"", b"a@mx.test") + b"garbage" + b"x" * 1_000_000
        answers = await deferToThread(talk, port, data)
        self.assertEqual(answers.count(b":Kok "), 1)
