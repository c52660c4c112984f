"""The SMTP server on a transport: policies, queue, limits, time, shutdown (spec/qmail.md §7, §16; issue 2 item 3)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qtwist.clock import shift
from qtwist.control import Control, ControlError
from qtwist.files.watching import DirectoryWatch
from qtwist.interfaces import Accepted, AnswerLost, IIncomingMessage, QueueError
from qtwist.mail.address import Address
from qtwist.mail.envelope import Envelope, Origin
from qtwist.policy import Policy, ReceivedMessage, Reply, Session, accept, refuse
from qtwist.smtpd.factory import SMTPFactory
from qtwist.smtpd.protocol import SLOWEST

NOW = 1792983845.5  # 2026-10-25 22:24:05 UTC


@implementer(IIncomingMessage)
class FakeIncoming:
    def __init__(self, queue: FakeQueue, origin: Origin) -> None:
        self.queue = queue
        self.origin = origin
        self.data = b""
        self.envelope: Envelope | None = None
        self.aborted = False

    def write(self, data: bytes) -> Deferred[None] | None:
        self.data += data
        return self.queue.slow.pop(0) if self.queue.slow else None

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        assert not self.aborted and self.envelope is None
        self.envelope = envelope
        return self.queue.results.pop(0) if self.queue.results else succeed(Accepted(457, 4711))

    def abort(self) -> None:
        self.aborted = True


class FakeQueue:  # IQueue has much more, for send
    """As much of IQueue as a server uses. `slow` are answers to write, `results` to commit."""

    def __init__(self) -> None:
        self.messages: list[FakeIncoming] = []
        self.slow: list[Deferred[None]] = []
        self.results: list[Deferred[Accepted]] = []
        self.broken: Exception | None = None

    def begin(self, origin: Origin) -> FakeIncoming:
        if self.broken:
            raise self.broken
        self.messages.append(FakeIncoming(self, origin))
        return self.messages[-1]


class Transport(StringTransport):
    """Knows abortConnection apart from loseConnection, and whether it is being read."""

    aborted = False
    nodelay = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.nodelay = enabled

    @property
    def paused(self) -> bool:
        return bool(self.producerState == "paused")


class Client:
    """One connection to a factory, over a transport in memory."""

    def __init__(
        self, factory: SMTPFactory, host: str = "10.0.0.9", local: str = "10.0.0.1", address: Any = None
    ) -> None:
        kind = IPv6Address if ":" in host else IPv4Address
        self.transport = Transport(
            hostAddress=address or kind("TCP", local, 25), peerAddress=address or kind("TCP", host, 40000)
        )
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def say(self, *lines: bytes) -> list[bytes]:
        """Send lines, in one piece, and take the replies."""
        self.protocol.dataReceived(b"".join(line + b"\r\n" for line in lines))
        return self.replies()

    def replies(self) -> list[bytes]:
        output: bytes = self.transport.value()
        self.transport.clear()
        return output.split(b"\r\n")[:-1]

    def codes(self, *lines: bytes) -> list[int]:
        return [int(reply[:3]) for reply in self.say(*lines)]

    def hang_up(self) -> None:
        self.protocol.connectionLost(Failure(connectionDone.value))


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

    def factory(self, *policies: Policy, kind: type[SMTPFactory] = SMTPFactory) -> SMTPFactory:
        return kind(self.control, self.queue, policies, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]

    def client(self, *policies: Policy, **addresses: Any) -> Client:
        """A client that has got its greeting."""
        client = Client(self.factory(*policies), **addresses)
        self.assertEqual(client.replies(), [b"220 mx.test ESMTP"])
        return client


ENVELOPE = (b"MAIL FROM:<joe@cli.test>", b"RCPT TO:<ann@mx.test>")
MESSAGE = (*ENVELOPE, b"DATA")


class Looking(WithFactory):
    """Control files that change are noticed by the next thing that is said, at one look for all of them."""

    def test_change_between_commands(self) -> None:
        client = self.client()
        self.assertEqual(client.codes(b"EHLO cli.test", *ENVELOPE)[-2:], [250, 250])
        self.put("rcpthosts", "other.test\n")
        self.assertEqual(client.codes(ENVELOPE[1]), [553])
        self.put("rcpthosts", "mx.test\n")
        self.assertEqual(client.codes(ENVELOPE[1]), [250])

    def test_looks_of_a_connection(self) -> None:
        try:
            DirectoryWatch(self.directory).close()
        except OSError as error:
            self.skipTest(f"nothing can be watched here: {error}")
        factory = self.factory()
        Client(factory).hang_up()
        with mock.patch.object(DirectoryWatch, "version", autospec=True, side_effect=DirectoryWatch.version) as asked:
            client = Client(factory)
            self.assertEqual(asked.call_count, 1)
            for line in (b"EHLO cli.test", *MESSAGE, b"Subject: hi\r\n\r\n.", b"QUIT"):
                client.say(line)
            client.hang_up()
        self.assertEqual(len(self.queue.messages), 1)
        self.assertLessEqual(asked.call_count, 4)


class Accepting(WithFactory):
    def test_a_message(self) -> None:
        """The 250 names the queue id (spec §16.2); what is queued is our Received line and the body (§16.6, §28.8)."""
        client = self.client()
        self.assertTrue(client.transport.nodelay)
        self.assertEqual(client.say(b"HELO cli.test"), [b"250 mx.test"])
        self.assertEqual(client.codes(*MESSAGE), [250, 250, 354])
        self.assertEqual(client.say(b"Subject: hi", b"", b"..x", b"."), [b"250 ok 1792983845 qp 4711"])
        (message,) = self.queue.messages
        self.assertEqual(message.origin, Origin.network(os.getuid()))
        self.assertEqual(message.envelope, Envelope(b"joe@cli.test", (b"ann@mx.test",)))
        self.assertEqual(
            message.data,
            b"Received: from unknown (HELO cli.test) (10.0.0.9)\n"
            b"  by 10.0.0.1 with SMTP; 26 Oct 2026 03:04:05 -0000\n"
            b"Subject: hi\n\n.x\n",
        )
        self.assertFalse(message.aborted)
        self.assertEqual(client.say(b"QUIT"), [b"221 mx.test"])
        self.assertTrue(client.transport.disconnecting)
        client.hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_message_by_bdat(self) -> None:
        """RFC 3030: the same message, without transparency; the queue gets it as it comes."""
        client = self.client()
        client.say(b"EHLO cli.test", *ENVELOPE)
        self.assertEqual(client.say(b"BDAT 13\r\nSubject: hi"), [b"250 2.0.0 ok, go on"])
        self.assertEqual(client.say(b"BDAT 6 LAST\r\n\r\n.x"), [b"250 2.0.0 ok 1792983845 qp 4711"])
        (message,) = self.queue.messages
        self.assertTrue(message.data.endswith(b"-0000\nSubject: hi\n\n.x\n"), message.data)
        self.assertEqual(message.envelope, Envelope(b"joe@cli.test", (b"ann@mx.test",)))

    def test_chunks_now_and_then(self) -> None:
        """The answers to small chunks do not keep a connection: the message has to come on."""
        self.put("timeoutsmtpd", "100\n")
        client = self.client()
        client.say(b"EHLO cli.test", *ENVELOPE)
        chunks = 0
        while not client.transport.disconnecting and chunks < 100:
            client.protocol.dataReceived(b"BDAT 1\r\nx")
            self.clock.advance(90)
            chunks += 1
        self.assertLess(chunks, 15)
        self.assertEqual(client.replies()[-1], b"451 4.4.2 timeout")

    def test_ehlodiscard(self) -> None:
        """What control/ehlodiscard names is not announced; BDAT is not taken then, and replies are qmail's."""
        self.put("ehlodiscard", "chunking\nENHANCEDSTATUSCODES\nSIZE\nDSN\n")
        client = self.client()
        self.assertEqual(
            client.say(b"EHLO cli.test"),
            [b"250-mx.test", b"250-PIPELINING", b"250-8BITMIME", b"250-SMTPUTF8", b"250 LIMITS RCPTMAX=10000"],
        )
        self.assertEqual(client.say(*ENVELOPE, b"BDAT 2 LAST\r\n")[2:], [b"502 unimplemented (#5.5.1)"])

    def test_smtputf8(self) -> None:
        """RFC 6531 §3.4, §4.3: addresses are UTF-8 then, and the Received line keeps it, for this message alone."""
        client = self.client()
        self.assertIn(b"250-SMTPUTF8", client.say(b"EHLO x"))
        joe = "RCPT TO:<jürgen@mx.test>".encode()
        for line, code in (
            (b"MAIL FROM:<m\xfcller@b.test> SMTPUTF8", b"553"),
            (b"MAIL FROM:<a@b.test> SMTPUTF8=1", b"501"),
            ("MAIL FROM:<müller@b.test> smtputf8".encode(), b"250"),
            (b"RCPT TO:<j\xfcrgen@mx.test>", b"553"),
            (joe, b"250"),
            (b"DATA", b"354"),
        ):
            self.assertEqual(client.say(line)[-1][:3], code, line)
        self.assertEqual(client.say("Subject: für\r\n\r\n.".encode())[-1][:3], b"250")
        [message] = self.queue.messages
        self.assertIn(b" with UTF8SMTP; ", message.data)
        self.assertEqual(message.envelope, Envelope("müller@b.test".encode(), ("jürgen@mx.test".encode(),)))
        client.say(b"MAIL FROM:<a@b.test>")
        self.assertEqual(client.say(b"RCPT TO:<j\xfcrgen@mx.test>")[-1][:3], b"250")

    def test_bdat_given_up(self) -> None:
        """RSET, a greeting, and the end of the connection throw away what has come."""
        for command in (b"RSET", b"EHLO cli.test", b"HELO cli.test", b"QUIT"):
            client = self.client(Hooks())
            client.say(b"EHLO cli.test", *ENVELOPE, b"BDAT 3\r\na")
            client.say(command)
            if command == b"QUIT":
                client.hang_up()
            else:
                self.assertEqual(client.codes(*ENVELOPE, b"BDAT 3 LAST\r\nb"), [250, 250, 250])
            given_up = self.queue.messages.pop(0)
            self.assertTrue(given_up.aborted, command)
            self.assertIsNone(given_up.envelope)
            if command != b"QUIT":
                self.assertTrue(self.queue.messages.pop(0).data.endswith(b"-0000\nb\n"))

    def test_received(self) -> None:
        """Spec §28.8 and §16.7: names from the environment, odd bytes as ``?``."""

        class Names(Policy):
            def __init__(self, names: dict[bytes, bytes]) -> None:
                self.names = names

            def connect(self, session: Session) -> None:
                session.environment.update(self.names)

        host = {b"TCPREMOTEHOST": b"cli.test", b"TCPLOCALHOST": b"mx.local"}
        for names, greeting, wanted in (
            (host, b"HELO CLI.test", b"Received: from cli.test (10.0.0.9)\n  by mx.local with SMTP; "),
            (host, b"NOOP", b"Received: from cli.test (10.0.0.9)\n  by mx.local with SMTP; "),
            (
                {b"TCPREMOTEINFO": b"ide(nt"},
                b"EHLO foo;bar",
                b"Received: from unknown (HELO foo?bar) (ide?nt@10.0.0.9)\n  by 10.0.0.1 with SMTP; ",
            ),
        ):
            client = self.client(Names(names))
            client.say(greeting, *MESSAGE, b".")
            self.assertTrue(self.queue.messages[-1].data.startswith(wanted), self.queue.messages[-1].data)

    def test_addresses_of_the_transport(self) -> None:
        """An IPv4 client of an IPv6 socket is an IPv4 client; a Unix socket has no addresses."""
        client = self.client(host="::ffff:192.0.2.7", local="::ffff:192.0.2.1")
        session = client.protocol.session
        self.assertEqual((session.remote_ip, session.local_ip), ("192.0.2.7", "192.0.2.1"))
        self.assertEqual(session.environment, {b"TCPREMOTEIP": b"192.0.2.7", b"TCPLOCALIP": b"192.0.2.1"})
        client = self.client(address=UNIXAddress("/x"))
        client.say(*MESSAGE, b".")
        self.assertIn(b"from unknown (unknown)\n  by unknown with", self.queue.messages[0].data)

    def test_chunks_stream_to_the_queue(self) -> None:
        client = self.client()
        client.say(*MESSAGE)
        (message,) = self.queue.messages
        size = len(message.data)
        client.say(b"x" * 1000)
        self.assertGreaterEqual(len(message.data), size + 999)
        self.assertIsNone(message.envelope)

    def test_the_interface(self) -> None:
        verifyObject(IIncomingMessage, self.queue.begin(Origin.network(1)))

    def test_what_was_asked_for_is_of_one_message(self) -> None:
        """NOTIFY is of the RCPT that it came with (RFC 3461 §4.1): not of the next message to the same recipient."""
        client = self.client()
        client.say(
            b"EHLO cli.test", b"MAIL FROM:<joe@cli.test> RET=HDRS", b"RCPT TO:<ann@mx.test> NOTIFY=NEVER", b"RSET"
        )
        client.say(b"MAIL FROM:<joe@cli.test> RET=HDRS", b"RCPT TO:<ann@mx.test>", b"DATA", b"x\r\n.")
        envelope = self.queue.messages[-1].envelope
        assert envelope is not None and envelope.asked is not None
        self.assertEqual((envelope.asked.mail, envelope.asked.recipients), (b"RET=HDRS", (b"",)))

    def test_what_was_asked_for_is_kept(self) -> None:
        client = self.client()
        client.say(b"EHLO cli.test", b"MAIL FROM:<joe@cli.test> ret=full ENVID=a+2Bb", b"RCPT TO:<ann@mx.test>")
        client.say(b"RCPT TO:<eve@mx.test> notify=success,delay ORCPT=rfc822;e@x", b"DATA", b"x\r\n.")
        envelope = self.queue.messages[-1].envelope
        assert envelope is not None and envelope.asked is not None
        self.assertEqual(envelope.asked.mail, b"RET=FULL ENVID=a+2Bb")
        self.assertEqual(envelope.asked.recipients, (b"", b"NOTIFY=SUCCESS,DELAY ORCPT=rfc822;e@x"))

    def test_two_messages(self) -> None:
        client = self.client()
        for number in (1, 2):
            self.assertEqual(client.codes(*MESSAGE, b"%d" % number, b"."), [250, 250, 354, 250])
        self.assertEqual([m.data[-2:] for m in self.queue.messages], [b"1\n", b"2\n"])

    def test_localiphost(self) -> None:
        """Spec §16.3: an own address in brackets becomes localiphost, me by default."""
        client = self.client()
        self.assertEqual(
            client.codes(
                b"MAIL FROM:<joe@[10.0.0.1]>",
                b"RCPT TO:<a@[10.0.0.1]>",
                b"RCPT TO:<b@[0.0.0.0]>",
                b"RCPT TO:<c@[10.0.0.9]>",
            ),
            [250, 250, 250, 553],
        )
        self.assertEqual(client.protocol.session.sender, Address(b"joe@mx.test"))
        self.assertEqual(client.protocol.session.recipients, [Address(b"a@mx.test"), Address(b"b@mx.test")])

    def test_settings_from_control(self) -> None:
        """Spec §3: read per connection; DATABYTES overrides databytes (§4)."""
        self.put("smtpgreeting", "hello.test at your service\n")
        self.put("databytes", "5\n")
        self.put("maxrecipients", "1\n")
        factory = self.factory()
        client = Client(factory)
        self.assertEqual(client.replies(), [b"220 hello.test at your service ESMTP"])
        self.assertEqual(client.say(b"EHLO x")[-1], b"250 SIZE 5")
        self.assertEqual(client.codes(b"MAIL FROM:<> SIZE=6", *ENVELOPE, ENVELOPE[1]), [552, 250, 250, 452])
        self.assertEqual(client.codes(b"DATA", b"12345", b"."), [354, 552])
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertIsNone(self.queue.messages[0].envelope)
        self.put("databytes", "6\n")
        client = Client(factory)
        client.replies()
        self.assertEqual(client.codes(*MESSAGE, b"12345", b"."), [250, 250, 354, 250])

    def test_databytes_of_the_environment(self) -> None:
        class Bound(Policy):
            def __init__(self, value: bytes) -> None:
                self.value = value

            def connect(self, session: Session) -> None:
                session.environment[b"DATABYTES"] = self.value

        self.put("databytes", "5\n")
        for value, reply in ((b"77x", b"250 SIZE 77"), (b"x", b"250 SIZE"), (b"", b"250 SIZE"), (b"0", b"250 SIZE")):
            self.assertEqual(self.client(Bound(value)).say(b"EHLO x")[-1], reply)

    def test_refused_bodies_never_reach_the_queue(self) -> None:
        client = self.client()
        self.assertEqual(client.codes(*MESSAGE, b"a\nb", b".", b"NOOP"), [250, 250, 354, 554])
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertTrue(client.transport.disconnecting)

    def test_a_client_that_goes_away(self) -> None:
        client = self.client()
        client.say(*MESSAGE, b"half a message")
        client.hang_up()
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class LifeWithQmail(WithFactory):
    """The tests of Life with qmail, appendix D.4, that come in by SMTP."""

    def test_remote_to_local(self) -> None:
        self.assertEqual(self.client().codes(*MESSAGE, b"x", b"."), [250, 250, 354, 250])

    def test_relay_bad(self) -> None:
        client = self.client()
        self.assertEqual(client.codes(ENVELOPE[0], b"RCPT TO:<ann@elsewhere.test>", b"DATA"), [250, 553, 503])
        self.assertEqual(client.codes(b"RCPT TO:<ann@mx.test>"), [250])

    def test_relay_good(self) -> None:
        self.put("relayclients", "10.0.0.9\n")
        client = self.client()
        self.assertEqual(
            client.codes(ENVELOPE[0], b"RCPT TO:<ann@elsewhere.test>", b"DATA", b"."), [250, 250, 354, 250]
        )
        envelope = self.queue.messages[0].envelope
        assert envelope is not None
        self.assertEqual(envelope.recipients, (b"ann@elsewhere.test",))
        self.assertEqual(self.client(host="10.0.0.8").codes(ENVELOPE[0], b"RCPT TO:<ann@elsewhere.test>"), [250, 553])

    def test_relay_from_loopback_is_bad(self) -> None:
        for host in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
            client = self.client(host=host, local=host)
            self.assertEqual(client.codes(ENVELOPE[0], b"RCPT TO:<ann@elsewhere.test>"), [250, 553])

    def test_relayclient_is_appended(self) -> None:
        """Spec §16.5: the value of RELAYCLIENT is appended to every recipient."""

        class Fix(Policy):
            def connect(self, session: Session) -> None:
                session.environment[b"RELAYCLIENT"] = b"@fixme"

        client = self.client(Fix())
        client.say(ENVELOPE[0], b"RCPT TO:<a@else.test>", b"RCPT TO:<b@mx.test>", b"DATA", b".")
        envelope = self.queue.messages[0].envelope
        assert envelope is not None
        self.assertEqual(envelope.recipients, (b"a@else.test@fixme", b"b@mx.test@fixme"))

    def test_badmailfrom(self) -> None:
        """Spec §16.2, §16.4: MAIL is accepted, each RCPT refused; before the relay rules are looked at."""
        self.put("badmailfrom", "@cli.test\n")
        client = self.client()
        self.assertEqual(client.codes(*ENVELOPE, b"MAIL FROM:<joe@ok.test>", ENVELOPE[1]), [250, 553, 250, 250])
        reply = client.say(ENVELOPE[0], b"RCPT TO:<ann@elsewhere.test>")[-1]
        self.assertIn(b"from this sender", reply)


class Hooks(Policy):
    """Answers each hook by what `answers` has for it, and remembers the call."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.calls: list[tuple[Any, ...]] = []

    def _call(self, hook: str, *arguments: Any) -> Any:
        self.calls.append((hook, *arguments))
        answer = self.answers.get(hook)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def connect(self, session: Session) -> Any:
        return self._call("connect")

    def helo(self, session: Session, name: bytes) -> Any:
        return self._call("helo", name)

    def mail(self, session: Session, sender: Address) -> Any:
        return self._call("mail", sender, session.declared_size)

    def rcpt(self, session: Session, recipient: Address) -> Any:
        return self._call("rcpt", recipient, len(session.recipients))

    def data(self, session: Session) -> Any:
        return self._call("data", session.sender, tuple(session.recipients))

    def message(self, session: Session, message: ReceivedMessage) -> Any:
        return self._call("message", message)


class Policies(WithFactory):
    def test_every_hook(self) -> None:
        hooks = Hooks()
        client = self.client(hooks)
        client.say(b"EHLO x", b"MAIL FROM:<joe@cli.test> SIZE=7", ENVELOPE[1], b"DATA")
        client.say(b"Received: a", b"X: y", b"", b"Received: no header", b".")
        sender, recipient = Address(b"joe@cli.test"), Address(b"ann@mx.test")
        self.assertEqual(
            hooks.calls,
            [
                ("connect",),
                ("helo", b"x"),
                ("mail", sender, 7),
                ("rcpt", recipient, 0),
                ("data", sender, (recipient,)),
                ("message", ReceivedMessage(38, b"Received: a\nX: y\n", 1)),
            ],
        )

    def test_headers_for_the_message_hook(self) -> None:
        for lines, header in (
            ((b"", b"body"), b""),
            ((b"X: y",), b"X: y\n"),
            ((b"X: " + b"y" * 70000, b"", b"z"), b"X: " + b"y" * 65533),
        ):
            hooks = Hooks()
            client = self.client(hooks)
            for piece in (*MESSAGE, *lines, b"."):
                client.say(piece)
            self.assertEqual(hooks.calls[-1][1].header, header)

    def test_refusals(self) -> None:
        for hook, lines, codes in (
            ("helo", (b"HELO x",), [550]),
            ("mail", ENVELOPE, [550, 503]),
            ("rcpt", MESSAGE, [250, 550, 503]),
            ("data", (*MESSAGE, b"NOOP"), [250, 250, 550, 250]),
            ("message", (*MESSAGE, b"x", b".", b"NOOP"), [250, 250, 354, 550, 250]),
        ):
            client = self.client(Hooks(**{hook: refuse(550, b"no")}))
            self.assertEqual(client.codes(*lines), codes, hook)
            self.assertFalse(client.transport.disconnecting)
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertIsNone(self.queue.messages[0].envelope)
        client = Client(self.factory(Hooks(connect=refuse(554, b"not you"))))
        self.assertEqual(client.replies(), [b"554 not you"])
        self.assertTrue(client.transport.disconnecting)

    def test_acceptance_is_final(self) -> None:
        """accept() skips the policies after it, rcpthosts too."""
        later = Hooks(mail=refuse(550, b"no"))
        client = self.client(Hooks(mail=accept(b"welcome"), rcpt=accept(), data=accept(), message=accept()), later)
        replies = client.say(ENVELOPE[0], b"RCPT TO:<a@else.test>", b"DATA", b".")
        self.assertEqual(replies, [b"250 welcome", b"250 ok", b"354 go ahead", b"250 ok 1792983845 qp 4711"])
        self.assertEqual(later.calls, [("connect",)])

    def test_late_answers_under_pipelining(self) -> None:
        """Issue 2: answers stay in order though a policy answers later (Twisted's ticket 8126)."""
        late: Deferred[Reply | None] = Deferred()
        hooks = Hooks(rcpt=late)
        client = self.client(hooks)
        self.assertEqual(client.say(*ENVELOPE, b"NOOP", b"VRFY x", b"DATA"), [b"250 ok"])
        self.assertEqual(client.say(b"the body", b".", b"QUIT"), [])
        late.callback(None)
        codes = [int(reply[:3]) for reply in client.replies()]
        self.assertEqual(codes, [250, 250, 252, 354, 250, 221])
        self.assertTrue(client.transport.disconnecting)

    def test_late_answers_at_every_step(self) -> None:
        for hook in ("connect", "helo", "mail", "rcpt", "data", "message"):
            late: Deferred[Reply | None] = Deferred()
            client = Client(self.factory(Hooks(**{hook: late})))
            before = len(client.codes(b"HELO x", *MESSAGE, b".", b"QUIT"))
            late.callback(None)
            codes = [int(reply[:3]) for reply in client.replies()]
            self.assertEqual([220, 250, 250, 250, 354, 250, 221][before:], codes, hook)

    def test_many_answers_at_once(self) -> None:
        """Answers that are there at once do not nest."""

        class Sync(Policy):
            async def rcpt(self, session: Session, recipient: Address) -> None:
                return None

        client = self.client(Sync())
        self.assertEqual(client.codes(*(ENVELOPE[0], *(ENVELOPE[1],) * 3000)), [250] * 3001)

    def test_input_is_bounded_while_waiting(self) -> None:
        late: Deferred[Reply | None] = Deferred()
        client = self.client(Hooks(mail=late))
        client.say(ENVELOPE[0])
        self.assertFalse(client.transport.paused)
        client.say(*[b"NOOP"] * 20000)
        self.assertTrue(client.transport.paused)
        late.callback(None)
        self.assertFalse(client.transport.paused)
        self.assertEqual(len(client.replies()), 20001)

    def test_a_broken_policy(self) -> None:
        """451, logged, and the connection lives; 421 before the greeting."""

        async def broken() -> None:
            raise RuntimeError

        for hook, codes in (
            ("helo", [451, 250, 250, 354, 250]),
            ("mail", [250, 451, 503, 503, 502]),
            ("rcpt", [250, 250, 451, 503, 502]),
            ("data", [250, 250, 250, 451, 502]),
            ("message", [250, 250, 250, 354, 451]),
        ):
            for answer in (RuntimeError(), fail(RuntimeError()), broken(), b"550 not a Reply"):
                client = self.client(Hooks(**{hook: answer}))
                self.assertEqual(client.codes(b"HELO x", *MESSAGE, b"."), codes, hook)
                self.assertFalse(client.transport.disconnecting)
                expected = TypeError if isinstance(answer, bytes) else RuntimeError
                self.assertEqual(len(self.flushLoggedErrors(expected)), 1)
        client = Client(self.factory(Hooks(connect=RuntimeError())))
        self.assertEqual([reply[:3] for reply in client.replies()], [b"421"])
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_policy_that_never_answers(self) -> None:
        cancelled: list[object] = []
        client = self.client(Hooks(mail=Deferred(cancelled.append)))
        client.say(ENVELOPE[0])
        self.clock.pump([600, 600])
        self.assertEqual([reply[:3] for reply in client.replies()], [b"451"])
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(client.codes(b"NOOP"), [250])
        self.assertEqual(len(self.flushLoggedErrors()), 1)

    def test_a_client_that_does_not_wait_for_the_policy(self) -> None:
        cancelled: list[object] = []
        client = self.client(Hooks(mail=Deferred(cancelled.append)))
        client.say(ENVELOPE[0])
        client.hang_up()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(client.replies(), [])

    def test_control_policies(self) -> None:
        """Those handed to the factory are asked before those of control/policies."""
        self.put("policies", "tests.test_smtpd.Named\n")
        self.assertEqual(self.client().say(b"HELO x"), [b"550 named (#5.7.1)"])
        self.assertEqual(self.client(Hooks(helo=accept())).say(b"HELO x"), [b"250 mx.test"])
        self.put("policies", "tests.test_smtpd.NoSuch\n")
        self.assertRaises(ControlError, self.factory)

    def test_the_example_of_the_manual(self) -> None:
        """doc/extending.md, as it stands there."""
        page = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "doc", "extending.md")
        with open(page, encoding="utf-8") as file:
            found = re.search(r"<!-- example.*?```python\n(.*?)```", file.read(), re.DOTALL)
        assert found is not None
        names: dict[str, Any] = {"__name__": "example"}
        exec(found[1], names)
        self.put("rcpthosts", "mx.test\nspam.test\n")
        for factory in (self.factory(kind=names["QuietFactory"]), self.factory(names["Quiet"]())):
            client = Client(factory)
            client.replies()
            self.assertEqual(
                client.say(ENVELOPE[0], b"RCPT TO:<a@Spam.test>", ENVELOPE[1]),
                [b"250 ok", b"550 no thanks (#5.7.1)", b"250 ok"],
            )


class Named(Policy):
    """For test_control_policies."""

    def helo(self, session: Session, name: bytes) -> Reply:
        return refuse(550, b"named (#5.7.1)")


class Queueing(WithFactory):
    def test_queue_errors(self) -> None:
        """Spec §6.3, §7, §16.2: permanent codes give 554, all others 451; the connection lives."""
        for error, code, text in (
            (QueueError(11), 554, b"(#5.1.3)"),
            (QueueError(31), 554, b"(#5.3.0)"),
            (QueueError(53, "disk full"), 451, b"(#4.3.0)"),
            (QueueError(81), 451, b"(#4.3.0)"),
        ):
            self.queue.results = [fail(error)]
            client = self.client()
            reply = client.say(*MESSAGE, b".")[-1]
            self.assertEqual((int(reply[:3]), text in reply), (code, True), reply)
            self.assertEqual(client.codes(*MESSAGE, b"."), [250, 250, 354, 250])
        self.queue.results = [fail(ZeroDivisionError())]
        self.assertEqual(self.client().codes(*MESSAGE, b"."), [250, 250, 354, 451])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_answer_lost(self) -> None:
        """Neither yes nor no may be said of a message that may have been queued: the connection ends. What was answered
        before is sent."""
        self.queue.results = [fail(AnswerLost(74, "the queue's door closed"))]
        client = self.client()
        self.assertEqual(client.codes(*MESSAGE, b".", b"NOOP"), [250, 250, 354])
        self.assertTrue(client.transport.disconnecting)

    def test_no_queue(self) -> None:
        """451 to DATA when no message can be begun (spec §16.2)."""
        for error in (QueueError(62), OSError(5, "I/O")):
            self.queue.broken = error
            client = self.client()
            self.assertEqual(client.codes(*MESSAGE, b"DATA"), [250, 250, 451, 503])

    def test_back_pressure(self) -> None:
        """What the disk cannot take yet is not read from the client either, and 250 waits for the commit."""
        first, second = Deferred[None](), Deferred[None]()
        commit: Deferred[Accepted] = Deferred()
        self.queue.slow = [first, second]
        self.queue.results = [commit]
        client = self.client()
        self.assertEqual(client.codes(*MESSAGE), [250, 250, 354])
        (message,) = self.queue.messages
        header = len(message.data)
        client.protocol.dataReceived(b"x" * 40000)
        client.protocol.dataReceived(b"x" * 40000)
        self.assertEqual(len(message.data), header)
        self.assertTrue(client.transport.paused)
        first.callback(None)
        self.assertFalse(client.transport.paused)
        self.assertEqual(len(message.data), header + 80000)
        self.assertEqual(client.say(b"", b"."), [])
        self.assertIsNone(message.envelope)
        second.callback(None)
        self.assertIsNotNone(message.envelope)
        self.assertEqual(client.replies(), [])
        commit.callback(Accepted(1, 2))
        self.assertEqual(client.replies(), [b"250 ok 1792983845 qp 2"])

    def test_a_client_that_goes_away_during_the_commit(self) -> None:
        """The queue has the message; nothing is undone."""
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client = self.client()
        client.say(*MESSAGE, b".")
        client.hang_up()
        self.assertFalse(self.queue.messages[0].aborted)
        commit.callback(Accepted(1, 2))
        self.assertEqual(client.replies(), [])

    def test_a_client_that_goes_away_during_a_write(self) -> None:
        slow: Deferred[None] = Deferred()
        self.queue.slow = [slow]
        client = self.client()
        client.say(*MESSAGE, b"x", b".")
        client.hang_up()
        self.assertTrue(self.queue.messages[0].aborted)
        slow.callback(None)
        self.assertIsNone(self.queue.messages[0].envelope)


class Limits(WithFactory):
    def test_timeout(self) -> None:
        """Spec §16.1: timeoutsmtpd seconds of silence, at any point, give 451 (#4.4.2) and the end."""
        self.put("timeoutsmtpd", "30\n")
        client = self.client()
        self.clock.advance(29)
        self.assertEqual(client.codes(*MESSAGE), [250, 250, 354])
        self.clock.advance(29)
        client.say(b"x" * 2900)
        self.clock.pump([10, 10, 9])
        self.assertEqual(client.replies(), [])
        self.clock.advance(1)
        (reply,) = client.replies()
        self.assertTrue(reply.startswith(b"451 ") and b"(#4.4.2)" in reply)
        self.assertTrue(client.transport.disconnecting)
        self.assertEqual(client.say(b"", b"."), [])
        self.assertFalse(client.transport.aborted)
        self.clock.advance(30)
        self.assertTrue(client.transport.aborted)
        client.hang_up()
        self.assertTrue(self.queue.messages[0].aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_octet_at_a_time(self) -> None:
        """A command has to be whole in time, and a message has to come on: nobody holds a connection by an octet now
        and then."""
        client = self.client()
        for octet in b"MAIL FROM:<a@b.test>":
            self.clock.advance(59)
            client.protocol.dataReceived(bytes([octet]))
        self.assertEqual(client.replies(), [])
        self.clock.advance(20)
        self.assertEqual(client.replies()[0][:4], b"451 ")
        client = self.client()
        client.say(*MESSAGE)
        for _ in range(120):  # two hours
            self.assertEqual(client.replies(), [])
            client.protocol.dataReceived(b"x" * (60 * SLOWEST))
            self.clock.advance(60)
        for _ in range(20):
            self.assertEqual(client.replies(), [])
            client.protocol.dataReceived(b"x")
            self.clock.advance(60)
        self.assertEqual(client.replies()[0][:4], b"451 ")
        client.hang_up()
        self.assertTrue(self.queue.messages[0].aborted)

    def test_half_as_fast(self) -> None:
        """§16.1: a slow line is no attack: a message at half the speed still has twice the timeout."""
        client = self.client()
        client.say(*MESSAGE)
        for _ in range(38):
            client.protocol.dataReceived(b"x" * (30 * SLOWEST - 2) + b"\r\n")
            self.clock.advance(60)
            self.assertEqual(client.replies(), [])
        self.assertEqual(client.say(b".")[0][:4], b"250 ")

    def test_clock_set_back(self) -> None:
        """By a day, and the timers with it (qtwist.clock): whoever is silent is left all the same."""
        client = self.client()
        self.clock.rightNow -= 86_400
        shift(self.clock, -86_400)
        self.clock.advance(1200)
        self.clock.advance(1200)
        self.assertEqual(client.replies()[0][:4], b"451 ")

    def test_commands_for_ever(self) -> None:
        """Commands without a message do not hold a connection for ever; a message starts anew."""
        client = self.client()

        def hours() -> float:
            begun = self.clock.seconds()
            while client.codes(b"NOOP") == [250]:
                self.clock.advance(600)
            return (self.clock.seconds() - begun) / 3600

        for _ in range(19):
            self.clock.advance(600)
            self.assertEqual(client.codes(b"NOOP"), [250])
        self.assertEqual(client.codes(*MESSAGE, b"."), [250, 250, 354, 250])
        self.assertEqual(round(hours(), 1), 3.3)
        self.assertEqual(client.say(b"NOOP"), [])

    def test_a_commit_is_never_timed_out(self) -> None:
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        client = self.client()
        client.say(*MESSAGE, b".")
        self.clock.pump([1000] * 10)
        commit.callback(Accepted(1, 2))
        self.assertEqual(client.replies(), [b"250 ok 1792983845 qp 2"])

    def test_a_client_that_does_not_read(self) -> None:
        """Its commands are not looked at, nothing is read from it, and after the timeout it is dropped."""
        client = self.client()
        client.protocol.pauseProducing()
        self.assertTrue(client.transport.paused)
        self.assertEqual(client.say(b"NOOP"), [])
        self.clock.advance(1199)
        client.protocol.resumeProducing()
        self.assertEqual(client.replies(), [b"250 ok"])
        self.assertFalse(client.transport.paused)
        client.protocol.pauseProducing()
        self.clock.pump([1199, 1])
        self.assertTrue(client.transport.aborted)

    def test_concurrencyincoming(self) -> None:
        self.put("concurrencyincoming", "2\n")
        factory = self.factory()
        clients = [Client(factory) for _ in range(3)]
        codes = [int(client.replies()[0][:3]) for client in clients]
        self.assertEqual(codes, [220, 220, 421])
        self.assertTrue(clients[2].transport.disconnecting)
        for client in clients[1:]:
            client.hang_up()
        self.assertEqual(Client(factory).replies(), [b"220 mx.test ESMTP"])

    def test_who_is_sent_away_takes_nobodys_place(self) -> None:
        """However many of one network hear 421 at once, others come in; the log says whom there was no room for."""
        self.put("concurrencyincoming", "2\n")
        self.put("tcp.smtp", ':allow,MAXCONNIP="1"\n')
        factory = self.factory()
        clients = [Client(factory, "192.0.2.9") for _ in range(5)]
        self.assertEqual([int(client.replies()[0][:3]) for client in clients], [220, 421, 421, 421, 421])
        self.assertEqual(Client(factory, "198.51.100.1").replies(), [b"220 mx.test ESMTP"])
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.assertEqual(int(Client(factory, "203.0.113.1").replies()[0][:3]), 421)
        [told] = [event for event in events if event.get("ip") == "203.0.113.1"]
        self.assertEqual((told["rule"], told["code"]), ("limits", 421))
        self.assertIn("control/concurrencyincoming", told["reason"])

    def test_broken_control_files(self) -> None:
        """421 (#4.3.0) and a line in the log (spec §16.1); good again with the next connection."""
        factory = self.factory()
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for name in ("databytes", "rcpthosts", "badmailfrom", "relayclients", "morercpthosts.cdb", "percenthack"):
            path = self.control.path(name)
            saved = os.path.exists(path) and os.path.isfile(path)
            if saved:
                os.rename(path, path + ".saved")
            os.mkdir(path)
            del events[:]
            client = Client(factory)
            (reply,) = client.replies()
            self.assertTrue(reply.startswith(b"421 ") and b"(#4.3.0)" in reply, (name, reply))
            self.assertTrue(client.transport.disconnecting)
            self.assertTrue(any(event["log_namespace"] == "qtwist.smtpd" for event in events), name)
            self.flushLoggedErrors(ControlError, OSError)
            os.rmdir(path)
            if saved:
                os.rename(path + ".saved", path)
            self.assertEqual(Client(factory).replies(), [b"220 mx.test ESMTP"])
        os.remove(self.control.path("me"))
        self.assertEqual(Client(factory).replies()[0][:3], b"421")

    def test_log(self) -> None:
        """One id per connection in all its events; bytes from outside are shown as one harmless line."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        client = self.client()
        client.say(b"MAIL FROM:<>", b"RCPT TO:<{x}@no.test>")
        client.say(b"MAIL FROM:<\x1b\xe9{id}@x>", b"RCPT TO:<a@mx.test>", b"DATA", b".")
        ours = [event for event in events if event.get("log_namespace") == "qtwist.smtpd"]
        self.assertEqual({event["id"] for event in ours}, {client.protocol.session.id})
        (accepted,) = [event for event in ours if "number" in event]
        self.assertEqual((accepted["number"], accepted["qp"], accepted["sender"]), (457, 4711, "?\\xe9{id}@x"))


class Draining(WithFactory):
    def test_drain(self) -> None:
        """TERM: idle connections and new ones get 421, a message that is coming in may end."""
        cancelled: list[object] = []
        hooks = Hooks()
        factory = self.factory(hooks)
        idle, busy, waiting, gone = (Client(factory) for _ in range(4))
        busy.say(*MESSAGE, b"half")
        hooks.answers["mail"] = Deferred(cancelled.append)
        waiting.say(b"MAIL FROM:<>")
        gone.say(b"QUIT")
        for client in (idle, busy, waiting, gone):
            client.replies()
        drained = factory.drain()
        for client in (idle, waiting):
            self.assertEqual([reply[:3] for reply in client.replies()], [b"421"])
            self.assertTrue(client.transport.disconnecting)
        self.assertEqual((len(cancelled), busy.replies(), gone.replies()), (1, [], []))
        self.assertEqual([reply[:3] for reply in Client(factory).replies()], [b"421"])
        codes = busy.codes(b".", *MESSAGE)
        self.assertEqual(codes, [250, 421])
        self.assertTrue(busy.transport.disconnecting)
        self.assertNoResult(drained)
        for client in list(factory.connections):
            client.connectionLost(Failure(connectionDone.value))
        self.successResultOf(drained)

    def test_nothing_to_drain(self) -> None:
        self.successResultOf(self.factory().drain())

    def test_a_commit_ends_first(self) -> None:
        commit: Deferred[Accepted] = Deferred()
        self.queue.results = [commit]
        factory = self.factory()
        client = Client(factory)
        client.say(*MESSAGE, b".")
        drained = factory.drain()
        self.assertEqual(client.replies(), [])
        commit.callback(Accepted(1, 2))
        self.assertEqual([reply[:3] for reply in client.replies()], [b"250", b"421"])
        client.hang_up()
        self.successResultOf(drained)


class Collector(Protocol):
    """A client that waits for replies."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: Deferred[None] = Deferred()
        self._waiting: tuple[int, Deferred[list[bytes]]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self._check()

    def replies(self, count: int) -> Deferred[list[bytes]]:
        """The next `count` lines."""
        waiting: Deferred[list[bytes]] = Deferred()
        self._waiting = (count, waiting)
        self._check()
        return waiting

    def _check(self) -> None:
        if self._waiting is not None and self.data.count(b"\r\n") >= self._waiting[0]:
            count, waiting = self._waiting
            self._waiting = None
            *lines, self.data = self.data.split(b"\r\n", count)
            waiting.callback(lines)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class Sockets(TestCase):
    """The same over real sockets on loopback."""

    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        with open(os.path.join(self.directory, "me"), "w", encoding="ascii") as file:
            file.write("mx.test\n")
        self.queue = FakeQueue()

    async def start(self, policies: Sequence[Policy] = ()) -> tuple[SMTPFactory, Collector]:
        factory = SMTPFactory(Control(self.directory), self.queue, policies)  # type: ignore[arg-type]
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        client = Collector()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), client)
        return factory, client

    async def test_a_large_message(self) -> None:
        """Megabytes stream through with a disk that is slow at times; the policy answers late."""
        late: Deferred[Reply | None] = Deferred()
        factory, client = await self.start([Hooks(data=late)])
        self.queue.slow = [Deferred() for _ in range(5)]
        for number, slow in enumerate(self.queue.slow):
            reactor.callLater(0.001 * number, slow.callback, None)  # type: ignore[attr-defined]
        line = b"x" * 998 + b"\r\n"
        assert client.transport is not None
        client.transport.write(b"\r\n".join((b"HELO cli.test", *MESSAGE)) + b"\r\n")
        client.transport.write(line * 3000 + b".\r\nQUIT\r\n")
        replies = await client.replies(4)
        self.assertEqual(replies[-1], b"250 ok")
        late.callback(None)
        replies = await client.replies(3)
        self.assertEqual([reply[:3] for reply in replies], [b"354", b"250", b"221"])
        await client.lost
        (message,) = self.queue.messages
        self.assertEqual(
            message.data.partition(b"\n  by 127.0.0.1 with SMTP; ")[2][-999 * 3000 :], (line * 3000).replace(b"\r", b"")
        )
        await factory.drain()

    async def test_drain(self) -> None:
        factory, client = await self.start()
        await client.replies(1)
        drained = factory.drain()
        self.assertEqual((await client.replies(1))[0][:3], b"421")
        await client.lost
        await drained

    async def test_a_flood_that_is_not_read(self) -> None:
        """A client that sends commands and never reads makes us stop, not grow."""
        factory, client = await self.start()
        assert client.transport is not None
        await client.replies(1)
        client.transport.pauseProducing()  # type: ignore[attr-defined]
        client.transport.write(b"HELP\r\n" * 500000)
        (connection,) = factory.connections
        stopped: Deferred[None] = Deferred()
        pause = connection.pauseProducing

        def pausing() -> None:
            pause()
            if not stopped.called:
                stopped.callback(None)

        connection.pauseProducing = pausing  # type: ignore[method-assign]
        await stopped
        client.transport.abortConnection()  # type: ignore[attr-defined]
        await client.lost
        await factory.drain()
