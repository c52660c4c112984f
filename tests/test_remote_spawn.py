"""Remote deliveries over real sockets on loopback: spec/qmail.md §11.4, §15.2 to §15.7, §28 (12, 13)."""

from __future__ import annotations

import os
import shutil
import socket
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.control import Control
from qtwist.interfaces import Delivery, ISpawner
from qtwist.mail.envelope import Report
from qtwist.remote import client, reports
from qtwist.remote.carrier import MAX_SESSIONS, Carrier, Terms
from qtwist.remote.client import Message
from qtwist.remote.hosts import Host
from qtwist.remote.own import OwnAddresses
from qtwist.remote.pool import IDLE_SECONDS, MOST_TRANSACTIONS, Key, Pool
from qtwist.remote.qmtp import Package
from qtwist.remote.spawn import RemoteSpawner
from qtwist.remote.tcpto import TimeoutTable
from qtwist.wire.smtp_client import Transaction
from tests.scripted_smtp import CLOSE, HANG, ScriptedSMTP
from tests.test_remote_hosts import FakeResolver, keep

reactor: Any = _reactor

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
BODY = b"Subject: hi\n\n.dot\nend\n"
WIRE = b"Subject: hi\r\n\r\n..dot\r\nend\r\n.\r\n"
NO_PIPELINING = b"250-mx.test\r\n250 HELP"
ACCEPTED = b"127.0.0.1 accepted message.\nRemote host said: 250-ok\n250 queued\n"


class SpawnerCase(TestCase):
    """A spawner whose clock stands still, and servers on up to three loopback addresses with one port."""

    timeout = 5

    def setUp(self) -> None:
        self.home = self.mktemp()
        os.makedirs(f"{self.home}/control")
        os.makedirs(f"{self.home}/queue/lock")
        self.write("queue/lock/tcpto", bytes(1024))
        self.write("control/me", b"me.test\n")
        self.clock = Clock()
        self.resolver = FakeResolver()
        self.port = 0
        self.made: RemoteSpawner | None = None
        self.addCleanup(self.check_timers)

    def write(self, path: str, data: bytes) -> None:
        with open(f"{self.home}/{path}", "wb") as file:
            file.write(data)

    def table(self) -> bytes:
        with open(f"{self.home}/queue/lock/tcpto", "rb") as file:
            return file.read()

    @property
    def spawner(self) -> RemoteSpawner:
        if self.made is None:
            self.made = RemoteSpawner(
                Control(f"{self.home}/control"),
                self.resolver,
                reactor,
                f"{self.home}/queue",
                clock=self.clock,
                own=OwnAddresses(lambda: frozenset(("127.0.0.1",))),
                shuffle=keep,
                now=lambda: 1_700_000_000 + self.clock.seconds(),
            )
            self.addCleanup(self.stop, self.made)
        return self.made

    async def stop(self, spawner: RemoteSpawner) -> None:
        stopped = spawner.stop()
        self.clock.advance(client.COURTESY_WAIT)
        await stopped

    def check_timers(self) -> None:
        """Nothing is left behind when all is stopped."""
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def serve(self, *servers: ScriptedSMTP) -> None:
        """Listen with each server on an address of its own, on one port, and route all mail there."""
        for server, address in zip(servers, ADDRESSES, strict=False):
            port = reactor.listenTCP(self.port, server, interface=address)
            self.port = port.getHost().port
            self.addCleanup(server.empty)
            self.addCleanup(port.stopListening)
        self.route(*ADDRESSES[: len(servers)])

    def route(self, *addresses: str) -> None:
        self.resolver._addresses[b"relay.test"] = addresses
        self.write("control/smtproutes", b":relay.test:%d\n" % self.port)

    def delivery(self, recipient: bytes = b"joe@example.org", body: bytes = BODY, **changes: Any) -> Delivery:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(body)
        self.fd = os.open(path, os.O_RDONLY)
        return Delivery(changes.pop("number", 1), self.fd, changes.pop("sender", b"me@example.net"), recipient)

    def deliver(self, *args: Any, **changes: Any) -> Deferred[Report]:
        return self.spawner.deliver(self.delivery(*args, **changes))

    async def turn(self) -> None:
        """Let the reactor pass on what is in the sockets: loopback needs no time."""
        for _ in range(10):
            done: Deferred[None] = Deferred()
            reactor.callLater(0, done.callback, None)
            await done

    async def check(self, letter: bytes, text: bytes, **script: Any) -> ScriptedSMTP:
        """One delivery to a server with this script must give this report."""
        server = ScriptedSMTP(**script)
        self.serve(server)
        self.assertEqual(await self.deliver(), Report(letter, text))
        return server


class DialogueTests(SpawnerCase):
    async def test_success(self) -> None:
        """The text of §28 (13); the whole dialogue."""
        server = await self.check(b"K", ACCEPTED)
        self.assertTrue(ISpawner.providedBy(self.spawner))
        self.assertEqual(
            server.sessions,
            [[b"EHLO me.test", b"MAIL FROM:<me@example.net> SIZE=22", b"RCPT TO:<joe@example.org>", b"DATA"]],
        )
        self.assertEqual(server.messages, [WIRE])

    async def test_no_pipelining(self) -> None:
        server = await self.check(b"K", ACCEPTED, EHLO=NO_PIPELINING)
        self.assertEqual(server.sessions[0][1:], [b"MAIL FROM:<me@example.net>", b"RCPT TO:<joe@example.org>", b"DATA"])

    async def test_helo(self) -> None:
        server = await self.check(b"K", ACCEPTED, EHLO=b"502 no")
        self.assertEqual(server.sessions[0][:2], [b"EHLO me.test", b"HELO me.test"])

    async def test_recipient_refused(self) -> None:
        """``h`` and ``s`` of qmail-remote as qmail-rspawn reports them (§11.4, §28 (12))."""
        for ehlo in (b"250-x\r\n250 PIPELINING", NO_PIPELINING):
            for letter, reply in ((b"D", b"550-no\r\n550 joe"), (b"Z", b"450-no\r\n450 joe")):
                said = reply.replace(b"\r", b"")
                text = b"127.0.0.1 does not like recipient.\nRemote host said: %b\nGiving up on 127.0.0.1.\n" % said
                self.port = 0
                server = await self.check(letter, text, EHLO=ehlo, RCPT=reply, message=b"554 nobody")
                self.made = None
                self.assertEqual([m for m in server.messages if m != b".\r\n"], [])

    async def check_replies(self, step: str, text: bytes) -> None:
        for letter, reply in ((b"D", b"554 no"), (b"Z", b"451 later")):
            self.port = 0
            self.made = None
            await self.check(letter, text + b".\nRemote host said: %b\n" % reply, **{step: reply})

    async def test_sender_refused(self) -> None:
        await self.check_replies("MAIL", b"Connected to 127.0.0.1 but sender was rejected")

    async def test_data_refused(self) -> None:
        await self.check_replies("DATA", b"127.0.0.1 failed on DATA command")

    async def test_message_refused(self) -> None:
        await self.check_replies("message", b"127.0.0.1 failed after I sent the message")

    async def test_greeting_refused(self) -> None:
        """Z even for 5xx (§15.4)."""
        text = b"Connected to 127.0.0.1 but greeting failed.\nRemote host said: 554 no\n"
        await self.check(b"Z", text, greeting=b"554 no")

    async def test_name_refused(self) -> None:
        text = b"Connected to 127.0.0.1 but my name was rejected.\nRemote host said: 550 bad name\n"
        await self.check(b"Z", text, EHLO=b"500 no", HELO=b"550 bad name")

    async def test_garbage(self) -> None:
        """At every step a reply that makes no sense is a deferral (§26.5); after the dot it warns of a duplicate."""
        for step in ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "message"):
            server = ScriptedSMTP(**{step: b"lorem \0ipsum"})
            self.port, self.made = 0, None
            self.serve(server)
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z", step)
            self.assertIn(b"Connected to 127.0.0.1 but its reply to %b makes no sense." % step.encode(), report.text)
            self.assertTrue(report.text.endswith(b"Remote host said: lorem ?ipsum\n"))
            self.assertEqual(b"duplicate" in report.text, step == "message")

    async def test_closed(self) -> None:
        """The connection dies at each step: Z, with a warning once the dot was sent (§15.4)."""
        for step in ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "message"):
            server = ScriptedSMTP(**{step: CLOSE})
            self.port, self.made = 0, None
            self.serve(server)
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z", step)
            self.assertTrue(report.text.startswith(b"Connected to 127.0.0.1 but connection died."), report.text)
            self.assertTrue(report.text.endswith(b"(#4.4.2)\n"))
            self.assertEqual(b"possible duplicate" in report.text, step == "message")

    async def test_hangs(self) -> None:
        """No reply within timeoutremote, at each step; each reply has its whole time."""
        self.write("control/timeoutremote", b"30\n")
        for step in ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "message"):
            server = ScriptedSMTP(**{step: HANG})
            self.port, self.made = 0, None
            self.serve(server)
            heard = server.heard(step)
            report = self.deliver()
            await heard
            await self.turn()
            self.clock.advance(29.9)
            self.assertNoResult(report)
            self.clock.advance(0.2)
            text = (await report).text
            self.assertIn(b"connection died (no answer to %b in 30 seconds)." % step.encode(), text)
            self.assertEqual(b"possible duplicate" in text, step == "message")

    async def test_slow_replies(self) -> None:
        """Each reply has its whole time, also of those that are waited for together."""
        steps = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "message")
        server = ScriptedSMTP(**dict.fromkeys(steps, HANG))
        self.serve(server)
        heard = server.heard("greeting")
        report = self.deliver()
        await heard
        replies = (b"220 hi", b"250-x\r\n250 PIPELINING", b"250 ok", b"250 ok", b"354 go", b"250 ok")
        for reply in replies:
            await self.turn()
            self.clock.advance(1000)
            server.open[0].say(reply)
            server.open[0].dataReceived(b"")
        self.assertEqual((await report).letter, b"K")

    async def test_drip(self) -> None:
        """A server that sends a reply byte by byte, without end, has no more time than one that is silent."""
        server = ScriptedSMTP(MAIL=HANG)
        self.serve(server)
        heard = server.heard("MAIL")
        report = self.deliver()
        await heard
        self.clock.advance(1000)
        server.open[0].transport.write(b"250-x\r\n250-")
        await self.turn()
        self.clock.advance(200)
        self.assertIn(b"(#4.4.2)", (await report).text)

    async def test_smuggling(self) -> None:
        """The payload of §26.3 arrives as one message, and nothing of it as a command."""
        server = ScriptedSMTP()
        self.serve(server)
        body = b"x\r.\nMAIL FROM:<evil@example.org>\r\n.\r\nDATA\n\0.\n\r.\r"
        self.assertEqual((await self.deliver(body=body)).letter, b"K")
        self.assertEqual(
            server.messages, [b"x\r\n..\r\nMAIL FROM:<evil@example.org>\r\n..\r\nDATA\r\n .\r\n\r\n..\r\n.\r\n"]
        )
        self.assertEqual(len(server.sessions[0]), 4)

    async def test_large(self) -> None:
        """A message of many blocks arrives whole, and again over the same connection; the offset of its descriptor
        is not touched."""
        server = ScriptedSMTP()
        self.serve(server)
        body = b".\n" + b"0123456789abcdef\xe9\n" * 200_000
        for _ in range(2):
            self.assertEqual((await self.deliver(body=body)).letter, b"K")
            self.assertEqual(server.messages.pop(), b"." + body.replace(b"\n", b"\r\n") + b".\r\n")
        self.assertEqual(len(server.sessions), 1)
        self.assertIn(b"MAIL FROM:<me@example.net> SIZE=%d BODY=8BITMIME" % len(body), server.sessions[0])

    async def test_server_that_does_not_read(self) -> None:
        """A message is sent no faster than it is taken, and not for ever."""
        server = ScriptedSMTP(EHLO=b"250-x\r\n250 PIPELINING")
        self.serve(server)
        heard = server.heard("DATA")
        report = self.deliver(body=b"x" * 30_000_000)
        await heard
        server.open[-1].transport.pauseProducing()
        for _ in range(100):
            await self.turn()
        self.clock.advance(1200)
        text = (await report).text
        self.assertIn(b"no answer to message in 1200 seconds", text)
        self.assertNotIn(b"duplicate", text)
        server.open[-1].transport.resumeProducing()

    async def test_early_refusal(self) -> None:
        """A reply while the message is still being sent counts, and the rest is not sent."""
        server = ScriptedSMTP(EHLO=NO_PIPELINING, DATA=b"354 go\r\n552 too much")
        self.serve(server)
        report = await self.deliver(body=b"x\n" * 4_000_000)
        self.assertEqual(
            report,
            Report(b"D", b"127.0.0.1 failed after I sent the message.\nRemote host said: 552 too much\n"),
        )

    async def test_early_refusal_unread(self) -> None:
        """A server that refuses early and reads no more: the connection is cut at once."""
        server = ScriptedSMTP(DATA=HANG, EHLO=b"250-x\r\n250 PIPELINING")
        self.serve(server)
        heard = server.heard("DATA")
        report = self.deliver(body=b"x" * 30_000_000)
        await heard
        server.open[0].transport.pauseProducing()
        server.open[0].say(b"354 go")
        for _ in range(100):
            await self.turn()
        server.open[0].say(b"552 too much")
        self.assertEqual((await report).letter, b"D")
        await self.turn()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        server.open[0].transport.resumeProducing()
        await server.empty()
        self.assertEqual(server.ends, [ConnectionLost])

    async def test_answers_before_questions(self) -> None:
        """A server that gives all its answers at once is not to be trusted with a message."""
        await self.check(
            b"Z",
            b"Connected to 127.0.0.1 but connection died. (#4.4.2)\n",
            greeting=b"220 mx.test\r\n250 mx.test\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued",
        )
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_too_large(self) -> None:
        """Nothing of the message is sent when the server told a smaller limit (RFC 1870)."""
        server = await self.check(
            b"D",
            b"Connected to 127.0.0.1 but the message is larger than the 21 octets that it accepts. (#5.3.4)\n",
            EHLO=b"250-x\r\n250 SIZE 21",
        )
        self.assertEqual(server.sessions, [[b"EHLO me.test"]])

    async def test_unreadable(self) -> None:
        """A message that shrinks while it is read is never ended by a dot: the server drops what it got."""
        server = ScriptedSMTP(DATA=HANG)
        self.serve(server)
        heard = server.heard("DATA")
        delivery = self.delivery(body=b"x\n" * 400_000)
        report = self.spawner.deliver(delivery)
        await heard
        os.truncate(f"/proc/self/fd/{delivery.fd}", 100_000)
        server.open[0].say(b"354 go")
        self.assertEqual(await report, reports.UNREADABLE)
        self.clock.advance(client.COURTESY_WAIT)
        await server.empty()
        self.assertEqual(server.messages, [])

    async def test_addresses(self) -> None:
        """Quoted local parts, untouched domains, the empty sender (§15.2)."""
        server = ScriptedSMTP()
        self.serve(server)
        await self.deliver(b'a "b"@Example.ORG', sender=b"")
        await self.deliver(b"a@b@example.org", sender=b"root")
        paths = [command.partition(b" SIZE")[0] for command in server.sessions[0] if command[:4] in (b"MAIL", b"RCPT")]
        self.assertEqual(
            paths,
            [
                b"MAIL FROM:<>",
                b'RCPT TO:<"a \\"b\\""@Example.ORG>',
                b"MAIL FROM:<root>",
                b'RCPT TO:<"a@b"@example.org>',
            ],
        )

    async def test_injection(self) -> None:
        """Line ends in an address never reach the wire; neither does what would end the path."""
        server = ScriptedSMTP()
        self.serve(server)
        for bad in (b"a\r\nb@x.org", b"a\rb@x.org", b"a\nb@x.org", b"a@x\n.org", b"a@x> NOTIFY=NEVER", b"a\0@x.org"):
            self.assertEqual(await self.deliver(bad), reports.BAD_RECIPIENT)
            self.assertEqual(await self.deliver(sender=bad), reports.BAD_SENDER)
        self.assertEqual(await self.deliver(sender=b"a\nb"), reports.BAD_SENDER)
        self.assertEqual(server.sessions, [])

    async def test_without_host(self) -> None:
        """§11.1."""
        self.assertEqual(await self.deliver(b"joe"), reports.NO_HOST_PART)


class FallbackTests(SpawnerCase):
    async def test_next_after_trouble(self) -> None:
        """The next address after a session that does not come to MAIL; qmail gives up there (§26.7)."""
        for script in (
            {"greeting": b"421 busy"},
            {"greeting": b"554 no"},
            {"greeting": CLOSE},
            {"greeting": b"hello"},
            {"EHLO": b"421 no"},
            {"EHLO": CLOSE},
            {"EHLO": b"500 no", "HELO": b"550 no"},
        ):
            self.port, self.made = 0, None
            first, second = ScriptedSMTP(**script), ScriptedSMTP()
            self.serve(first, second)
            report = await self.deliver()
            self.assertEqual((report.letter, report.text[:18]), (b"K", b"127.0.0.2 accepted"), script)
            self.assertEqual(len(first.sessions), 1)

    async def test_next_after_a_silent_one(self) -> None:
        first, second = ScriptedSMTP(greeting=HANG), ScriptedSMTP()
        self.serve(first, second)
        heard = first.heard("greeting")
        report = self.deliver()
        await heard
        await self.turn()
        self.clock.advance(1200)
        self.assertEqual((await report).letter, b"K")

    async def test_not_after_mail(self) -> None:
        """From MAIL on the server's word counts, for good or bad."""
        for script in ({"MAIL": b"450 no"}, {"MAIL": CLOSE}, {"RCPT": b"450 no"}, {"message": CLOSE}):
            self.port, self.made = 0, None
            first, second = ScriptedSMTP(**script), ScriptedSMTP()
            self.serve(first, second)
            self.assertEqual((await self.deliver()).letter, b"Z")
            self.assertEqual(second.sessions, [])

    async def test_next_after_refused_connection(self) -> None:
        server = ScriptedSMTP()
        self.serve(server)
        self.route("127.0.0.3", "127.0.0.1")
        self.assertEqual(await self.deliver(), Report(b"K", ACCEPTED))

    async def test_no_connection(self) -> None:
        """§15.3, last sentence. A refused connection is no timeout: tcpto stays empty."""
        self.serve(ScriptedSMTP())
        self.route("127.0.0.3")
        self.assertEqual(await self.deliver(), reports.NO_CONNECTION)
        self.assertEqual(self.table(), bytes(1024))

    async def test_bounded(self) -> None:
        """Not more than a few servers may waste a delivery's time."""
        server = ScriptedSMTP(greeting=b"421 busy")
        self.serve(server)
        self.route(*["127.0.0.1"] * 20)
        report = await self.deliver()
        self.assertEqual(report.text, b"Connected to 127.0.0.1 but greeting failed.\nRemote host said: 421 busy\n")
        self.assertEqual(len(server.sessions), MAX_SESSIONS)

    async def test_exchangers(self) -> None:
        """Without a relay the MX decide; the route still gives the port. Ourselves we do not call."""
        server = ScriptedSMTP()
        second = ScriptedSMTP()
        self.serve(server, second)
        self.write("control/smtproutes", b"example.org::%d\n" % self.port)
        self.resolver._mx[b"example.org"] = [(10, b"me.test"), (5, b"two.test")]
        self.resolver._addresses |= {b"me.test": ["127.0.0.1"], b"two.test": ["127.0.0.2"]}
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual((len(server.sessions), len(second.sessions)), (0, 1))
        self.resolver._mx[b"example.org"] = [(10, b"me.test"), (50, b"two.test")]
        self.assertEqual(await self.deliver(), reports.LOOP)


class ReuseTests(SpawnerCase):
    async def test_reuse(self) -> None:
        """Messages for one host share a connection; each has its own sender, recipient and result."""
        server = ScriptedSMTP(RCPT=[b"250 ok", b"550 no", b"250 ok"], message=[b"250 one", b"554 three", b"250 four"])
        self.serve(server)
        letters = []
        for n in range(4):
            sender = b"list-r%d=example.org@me.test" % n
            letters.append((await self.deliver(b"r%d@example.org" % n, sender=sender)).letter)
            await self.turn()  # the reply to RSET
        # The second is refused at RCPT with DATA on its way: that empty message gets the answer "554 three".
        self.assertEqual(letters, [b"K", b"D", b"K", b"K"])
        self.assertEqual(len(server.sessions), 1)
        self.assertEqual(server.messages, [WIRE, b".\r\n", WIRE, WIRE])
        self.assertEqual([c for c in server.sessions[0] if c.startswith(b"RSET")], [b"RSET"])
        pairs = list(
            zip(
                [c.split(b">")[0] for c in server.sessions[0] if c.startswith(b"MAIL")],
                [c for c in server.sessions[0] if c.startswith(b"RCPT")],
                strict=True,
            )
        )
        self.assertEqual(pairs[3], (b"MAIL FROM:<list-r3=example.org@me.test", b"RCPT TO:<r3@example.org>"))

    async def test_idle_ends(self) -> None:
        """After a few seconds an idle connection is closed with QUIT; the next delivery opens a new one."""
        server = ScriptedSMTP()
        self.serve(server)
        await self.deliver()
        self.clock.advance(IDLE_SECONDS - 0.1)
        await self.deliver()
        self.assertEqual(len(server.sessions), 1)
        quitting = server.heard("QUIT")
        self.clock.advance(IDLE_SECONDS)
        await quitting
        await server.empty()
        await self.deliver()
        self.assertEqual(len(server.sessions), 2)

    async def test_most_transactions(self) -> None:
        server = ScriptedSMTP()
        self.serve(server)
        for _ in range(MOST_TRANSACTIONS + 1):
            await self.deliver(body=b"x\n")
        self.assertEqual([len([c for c in s if c == b"DATA"]) for s in server.sessions], [MOST_TRANSACTIONS, 1])
        self.assertEqual(server.sessions[0][-1], b"QUIT")

    async def sessions_with(self, told: bytes) -> int:
        """How many connections three messages take where EHLO says `told`."""
        server = ScriptedSMTP(EHLO=b"250-mx.test\r\n250 " + told)
        self.serve(server)
        for _ in range(3):
            await self.deliver(body=b"x\n")
        return len(server.sessions)

    async def test_limits_of_the_server(self) -> None:
        """RFC 9422: MAILMAX messages, and then another connection."""
        self.assertEqual(await self.sessions_with(b"LIMITS MAILMAX=2"), 2)

    async def test_limit_of_one(self) -> None:
        self.assertEqual(await self.sessions_with(b"limits rcptmax=1 mailmax=1"), 3)

    async def test_limit_that_is_none(self) -> None:
        self.assertEqual(await self.sessions_with(b"LIMITS MAILMAX=2x"), 1)

    async def test_parallel(self) -> None:
        """Deliveries at the same time have connections of their own."""
        server = ScriptedSMTP()
        self.serve(server)
        results = await gatherResults([self.deliver(b"r%d@example.org" % n) for n in range(5)])
        self.assertEqual([report.letter for report in results], [b"K"] * 5)
        self.assertEqual(len(server.sessions), 5)

    async def test_other_name(self) -> None:
        """A connection that was opened under another name is not used."""
        server = ScriptedSMTP()
        self.serve(server)
        await self.deliver()
        self.write("control/helohost", b"other.test\n")
        await self.deliver()
        self.assertEqual([session[0] for session in server.sessions], [b"EHLO me.test", b"EHLO other.test"])

    async def test_dead_connection(self) -> None:
        """One that is dead before MAIL is answered is replaced without a word: hung up, or 421."""
        for answer in (CLOSE, b"421 idle too long"):
            server = ScriptedSMTP(MAIL=[b"250 ok", answer, b"250 ok"])
            self.port, self.made = 0, None
            self.serve(server)
            self.assertEqual((await self.deliver()).letter, b"K")
            self.assertEqual((await self.deliver()).letter, b"K")
            self.assertEqual(len(server.sessions), 2)
            self.assertEqual(server.messages, [WIRE, WIRE])

    async def test_hung_up_while_idle(self) -> None:
        server = ScriptedSMTP()
        self.serve(server)
        await self.deliver()
        server.open[0].transport.write(b"421 bye\r\n")
        server.open[0].transport.loseConnection()
        await server.empty()
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(len(server.sessions), 2)

    async def test_reused_connection_dies_later(self) -> None:
        """After MAIL was answered nothing is tried again: the delivery is put off."""
        for step in ("RCPT", "DATA", "message"):
            good = {"RCPT": b"250 ok", "DATA": b"354 go", "message": b"250 ok"}[step]
            server = ScriptedSMTP(EHLO=NO_PIPELINING, **{step: [good, CLOSE, good]})
            self.port, self.made = 0, None
            self.serve(server)
            await self.deliver()
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z")
            self.assertEqual(b"duplicate" in report.text, step == "message")
            self.assertEqual(len(server.sessions), 1)

    async def test_new_timeout(self) -> None:
        """timeoutremote counts as it is now, also on a connection that is older."""
        server = ScriptedSMTP(RCPT=[b"250 ok", HANG])
        self.serve(server)
        await self.deliver()
        self.write("control/timeoutremote", b"7\n")
        heard = server.heard("RCPT")
        report = self.deliver()
        await heard
        await self.turn()
        self.clock.advance(7)
        self.assertIn(b"(no answer to RCPT in 7 seconds)", (await report).text)

    async def test_equals(self) -> None:
        """Among hosts of the same preference, the one to which a connection is open comes first."""
        first, second = ScriptedSMTP(greeting=[b"421 busy", b"220 hi"]), ScriptedSMTP()
        self.serve(first, second)
        for _ in range(3):
            self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual((len(first.sessions), len(second.sessions)), (1, 1))


class SpawnerTests(SpawnerCase):
    async def test_descriptor(self) -> None:
        """The spawner closes it, whatever happens."""
        self.serve(ScriptedSMTP(RCPT=b"550 no"))
        self.resolver._addresses[b"bad.test"] = ZeroDivisionError()
        for recipient in (b"joe@example.org", b"joe", b"joe@gone.test"):
            await self.deliver(recipient)
            self.assertRaises(OSError, os.fstat, self.fd)

    async def test_unexpected_error(self) -> None:
        """Never a failure for good, and the log has it."""
        self.serve(ScriptedSMTP())
        self.resolver._addresses[b"relay.test"] = ZeroDivisionError()
        self.assertEqual(await self.deliver(), reports.NO_RESOURCES)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertRaises(OSError, os.fstat, self.fd)

    async def test_no_name(self) -> None:
        """Without helohost and me nothing is sent (§3): Z #4.3.0."""
        self.serve(ScriptedSMTP())
        os.unlink(f"{self.home}/control/me")
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertTrue(b"helohost" in report.text and b"(#4.3.0)" in report.text)
        for bad in (b"\n", b"two names\n", b"crlf\r\n"):
            self.write("control/helohost", bad)
            self.assertEqual((await self.deliver()).letter, b"Z", bad)

    async def test_wrong_route(self) -> None:
        self.write("control/smtproutes", b"example.org:mx:smtp\n")
        self.assertEqual(await self.deliver(), reports.unusable_route(b"example.org"))

    async def test_controls_per_delivery(self) -> None:
        """A change of a route counts from the next delivery on (§3)."""
        server = ScriptedSMTP()
        self.serve(server)
        self.assertEqual((await self.deliver()).letter, b"K")
        self.write("control/smtproutes", b"other.test:127.0.0.1:%d\n" % self.port)
        self.assertEqual(await self.deliver(), reports.no_such_host(b"example.org"))

    def test_limit(self) -> None:
        """concurrencyremote, 1 to 255."""
        for text, limit in ((b"7", 7), (b"9999", 255), (b"0", 1), (b"", 20)):
            self.write("control/concurrencyremote", text)
            self.made = None
            self.assertEqual(self.spawner.limit, limit)

    async def test_over_the_limit(self) -> None:
        self.write("control/concurrencyremote", b"1\n")
        server = ScriptedSMTP()
        self.serve(server)
        first = self.deliver()
        self.assertEqual(await self.deliver(), reports.BUSY)
        self.assertRaises(OSError, os.fstat, self.fd)
        self.assertEqual((await first).letter, b"K")

    async def test_stop(self) -> None:
        """What runs ends as it would, idle connections say QUIT, nothing new is taken."""
        server = ScriptedSMTP(message=[b"250 ok", HANG])
        self.serve(server)
        await self.deliver()
        heard = server.heard("message")
        running = self.deliver()
        await heard
        stopped = self.spawner.stop()
        self.assertEqual(await self.deliver(), reports.STOPPING)
        self.assertRaises(OSError, os.fstat, self.fd)
        self.assertNoResult(stopped)
        server.open[0].say(b"250 at last")
        self.assertEqual((await running).letter, b"K")
        await stopped
        self.assertEqual(server.sessions[0][-1], b"QUIT")
        await self.spawner.stop()

    async def test_stop_without_answer_to_quit(self) -> None:
        """A server that does not answer QUIT delays the stop by a few seconds at most."""
        server = ScriptedSMTP(QUIT=HANG)
        self.serve(server)
        await self.deliver()
        heard = server.heard("QUIT")
        stopped = self.spawner.stop()
        await heard
        self.assertNoResult(stopped)
        self.clock.advance(client.COURTESY_WAIT)
        await stopped

    async def test_starts_with_an_empty_table(self) -> None:
        """§11.4."""
        self.write("queue/lock/tcpto", b"\x01" * 1024)
        self.assertEqual(self.spawner.limit, 20)
        self.assertEqual(self.table(), bytes(1024))


class TCPTransport(StringTransport):
    """A transport of memory with the one option that a client sets."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        assert enabled


class ConnectTests(SynchronousTestCase):
    """Connections that hang, on a reactor of memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.path = self.mktemp()
        with open(self.path, "wb") as file:
            file.write(bytes(1024))
        self.table = TimeoutTable(self.path, self.reactor.seconds, lambda: 0)
        self.carrier = Carrier(self.reactor, self.reactor, self.table, Pool(self.reactor))

    def carry(self, *addresses: str, qmtp_port: int | None = None) -> Deferred[Report]:
        transaction = Transaction(b"", (b"joe@example.org",), 1, False)
        hosts = [Host(address) for address in addresses]
        terms = Terms(b"me.test", 60, 1200)
        return Deferred.fromCoroutine(
            self.carrier.carry(transaction, Package(b"", b""), Message(-1, 0, b""), hosts, 25, terms, qmtp_port)
        ).addCallback(lambda reports: reports[0])

    def test_connect_timeout(self) -> None:
        """timeoutconnect for each address, IPv6 as well; then the table knows them (§15.3)."""
        report = self.carry("192.0.2.1", "2001:db8::1")
        self.reactor.advance(59.9)
        self.assertEqual([call[:2] for call in self.reactor.tcpClients], [("192.0.2.1", 25)])
        self.reactor.advance(0.2)
        self.assertEqual([call[:2] for call in self.reactor.tcpClients[1:]], [("2001:db8::1", 25)])
        self.assertNoResult(report)
        self.reactor.advance(60)
        self.assertEqual(self.successResultOf(report), reports.NO_CONNECTION)
        self.assertTrue(self.table.skip("192.0.2.1")[1])
        self.assertTrue(self.table.skip("2001:db8::1")[1])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_qmtp_back_off(self) -> None:
        """A port that keeps us waiting is not asked for QMTP again for an hour; a refusal costs nothing."""
        ports = []
        for wait in (0, 0, 3600):
            self.reactor.advance(wait)
            before = len(self.reactor.tcpClients)
            self.carry("192.0.2.1", qmtp_port=209)
            self.reactor.advance(60)
            ports.append([client[1] for client in self.reactor.tcpClients[before:]])
        self.assertEqual([209 in asked for asked in ports], [True, False, True])

    def test_back_off(self) -> None:
        """After the second timeout the address is not called for about an hour (§15.7)."""
        self.reactor.advance(1_700_000_000)
        for _ in range(2):
            self.carry("192.0.2.1")
            self.reactor.advance(180)
        self.assertEqual(len(self.reactor.tcpClients), 2)
        self.assertEqual(self.successResultOf(self.carry("192.0.2.1")), reports.NO_CONNECTION)
        self.assertEqual(len(self.reactor.tcpClients), 2)
        self.reactor.advance(3840)
        self.carry("192.0.2.1")
        self.assertEqual(len(self.reactor.tcpClients), 3)

    def test_known_address_answers(self) -> None:
        """An address in the table that answers, or refuses at once, is not counted any more (§15.7)."""
        for refuse in (True, False):
            self.table.clear()
            self.table.timed_out("192.0.2.1")
            report = self.carry("192.0.2.1")
            factory, connector = self.reactor.tcpClients[-1][2], self.reactor.connectors[-1]
            if refuse:
                factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))
                self.assertEqual(self.successResultOf(report), reports.NO_CONNECTION)
            else:
                factory.buildProtocol(None).makeConnection(TCPTransport())
                self.assertNoResult(report)
            with open(self.path, "rb") as file:
                self.assertEqual(file.read(5), bytes((192, 0, 2, 1, 0)))


class FakeConnection:
    """What the pool knows of a connection."""

    def __init__(self) -> None:
        self.transactions = 1
        self.usable = True
        self.used_up = False
        self.on_idle: Any = None
        self.on_gone: Any = None
        self.quits = 0

    def quit(self) -> None:
        self.quits += 1


class PoolTests(SynchronousTestCase):
    KEY = Key("192.0.2.1", 25, b"me.test")

    def make(self, pool: Pool, key: Key = KEY) -> Any:
        connection: Any = FakeConnection()
        pool.add(key, connection)
        connection.on_idle(connection)
        return connection

    def test_last_used_first(self) -> None:
        pool = Pool(Clock())
        first, second = self.make(pool), self.make(pool)
        self.assertFalse(pool.has(Key("192.0.2.2", 25, b"me.test")))
        self.assertIs(pool.take(self.KEY), second)
        self.assertIs(pool.take(self.KEY), first)
        self.assertIsNone(pool.take(self.KEY))
        self.assertFalse(pool.has(self.KEY))

    def test_not_usable(self) -> None:
        """One that the server has given up, but whose end has not been seen, is passed over."""
        pool = Pool(Clock())
        first, second = self.make(pool), self.make(pool)
        second.usable = False
        self.assertIs(pool.take(self.KEY), first)

    def test_bounded(self) -> None:
        """Over the bound a connection is closed at once."""
        pool = Pool(Clock(), most_idle=2)
        self.assertEqual([self.make(pool).quits for _ in range(4)], [0, 0, 1, 1])

    def test_close(self) -> None:
        """It fires when the last connection is gone; an empty pool is closed at once."""
        pool = Pool(Clock())
        first, second = self.make(pool), self.make(pool)
        pool.take(self.KEY)
        closed = pool.close()
        self.assertEqual((first.quits, second.quits), (1, 1))
        first.on_gone(first)
        self.assertNoResult(closed)
        second.on_gone(second)
        self.successResultOf(closed)
        self.successResultOf(Pool(Clock()).close())


class Sink(ProcessProtocol):
    """Postfix's smtp-sink."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self.output = b""

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def errReceived(self, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


class SinkTests(SpawnerCase):
    """Against a server that nobody here wrote."""

    PROGRAM = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    async def start(self, *options: str) -> None:
        if self.PROGRAM is None:
            self.skipTest("needs smtp-sink (package postfix)")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        sink = Sink()
        user = ("-u", "nobody") if os.geteuid() == 0 else ()
        arguments = [self.PROGRAM, *user, *options, f"127.0.0.1:{self.port}", "100"]
        process = reactor.spawnProcess(sink, self.PROGRAM, arguments, env={"PATH": "/usr/bin:/bin"})
        self.addCleanup(self.end, process, sink)
        self.route("127.0.0.1")
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if sink.ended.called:
                self.fail(f"smtp-sink ended: {sink.output!r}")
            done: Deferred[None] = Deferred()
            reactor.callLater(0.01, done.callback, None)
            await done

    async def end(self, process: Any, sink: Sink) -> None:
        if not sink.ended.called:
            process.signalProcess("KILL")
        await sink.ended

    async def deliver_some(self) -> list[Report]:
        bodies = [BODY, b"x\n" * 100_000, b"\r.\nQUIT\n", b""]
        return [await self.deliver(body=body) for body in bodies * 3]

    async def test_pipelining(self) -> None:
        await self.start()
        self.assertEqual({report.letter for report in await self.deliver_some()}, {b"K"})

    async def test_plain(self) -> None:
        """-p: no PIPELINING; -e: no ESMTP at all."""
        await self.start("-e", "-p")
        self.assertEqual({report.letter for report in await self.deliver_some()}, {b"K"})

    async def test_refused(self) -> None:
        """-q, -r, -f: hang up, 4xx or 5xx at a command."""
        await self.start("-f", "RCPT")
        self.assertEqual({report.letter for report in await self.deliver_some()}, {b"D"})

    async def test_hang_up_after_the_dot(self) -> None:
        await self.start("-q", ".")
        report = await self.deliver()
        self.assertEqual((report.letter, b"possible duplicate" in report.text), (b"Z", True))
