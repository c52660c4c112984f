"""The POP3 server on a transport: logins, mailboxes, streaming, limits, time, shutdown (RFC 1939; spec §18)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from OpenSSL import SSL
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides, implementer
from zope.interface.verify import verifyObject

from qtwist.auth.errors import LoginUnavailable
from qtwist.clock import shift
from qtwist.control import Control
from qtwist.pop3d.factory import POP3Factory
from qtwist.pop3d.interfaces import (
    IMaildrop,
    IMessageSource,
    MaildropError,
    MaildropInUse,
    MaildropTrouble,
    MessageGone,
)
from qtwist.pop3d.maildrop import Maildrop
from qtwist.wire.pop3_server import INPUT_ENOUGH

NOW = 1_700_000_000.0


@implementer(IMessageSource)
class Source:
    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = list(blocks)
        self.closed = 0

    def read(self) -> Deferred[bytes]:
        block = self.blocks.pop(0) if self.blocks else b""
        return block if isinstance(block, Deferred) else succeed(block)

    def close(self) -> None:
        self.closed += 1


@implementer(IMaildrop)
class Mailbox:
    """A mailbox in memory. An attribute that is set to a Deferred is what the method of that name returns."""

    def __init__(self, *messages: bytes | Sequence[Any]) -> None:
        self.messages = [[message] if isinstance(message, bytes) else message for message in messages]
        self.answers: dict[str, Deferred[Any]] = {}
        self.sources: list[Source] = []
        self.finished: tuple[Collection[int], Collection[int]] | None = None
        self.closed = 0

    def answer(self, name: str, value: Any) -> Deferred[Any]:
        return self.answers.pop(name) if name in self.answers else succeed(value)

    def open(self) -> Deferred[int]:
        return self.answer("open", len(self.messages))

    def sizes(self) -> Deferred[Sequence[int]]:
        return self.answer("sizes", [100] * len(self.messages))

    def uids(self) -> Deferred[Sequence[bytes]]:
        return self.answer("uids", [b"u%d" % index for index in range(len(self.messages))])

    def fetch(self, index: int) -> Deferred[IMessageSource]:
        if "fetch" in self.answers:
            return self.answers.pop("fetch")
        self.sources.append(Source(self.messages[index]))
        return succeed(self.sources[-1])

    def finish(self, deleted: Collection[int], retrieved: Collection[int]) -> Deferred[int]:
        self.finished = (deleted, retrieved)
        return self.answer("finish", 0)

    def close(self) -> None:
        self.closed += 1


class FakeAuthenticator:
    """Knows joe with his password or his APOP secret "tanstaaf". `answer` comes in place of that, once."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.asked: list[tuple[str, str]] = []
        self.answer: Deferred[Any] | None = None
        self.logouts = 0

    def logout(self) -> None:
        self.logouts += 1

    def mechanisms(self) -> Deferred[tuple[bytes, ...]]:
        return succeed((b"PLAIN", b"LOGIN"))

    def login(self, credentials: Any, remote_ip: str, service: str, *interfaces: Any) -> Deferred[Any]:
        assert interfaces == (IMaildrop,)
        self.asked.append((remote_ip, service))
        if self.answer is not None:
            answer, self.answer = self.answer, None
            return answer
        if IUsernameHashedPassword.providedBy(credentials) and not IUsernamePassword.providedBy(credentials):
            right = credentials.checkPassword(b"tanstaaf")
        else:
            right = (credentials.username, credentials.password) == (b"joe", b"secret")
        return succeed((self.mailbox, self.logout)) if right else fail(UnauthorizedLogin())


class Transport(StringTransport):
    """Chokes its producer when it holds more than 64 KiB, as a socket does; `take` is the client reading."""

    aborted = False
    holds = False

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.holds and self.producer is not None and len(self.value()) > 65536:
            self.producer.pauseProducing()

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def setTcpNoDelay(self, enabled: bool) -> None:
        """As a socket has it."""

    def getHandle(self) -> SSL.Connection:
        """Of a connection that is said to be encrypted."""
        return SSL.Connection(SSL.Context(SSL.TLS_SERVER_METHOD))


class Client:
    def __init__(self, factory: POP3Factory, host: str = "127.0.0.1", secure: bool = False, unix: bool = False) -> None:
        kind = IPv6Address if ":" in host else IPv4Address
        peer: Any = UNIXAddress(None) if unix else kind("TCP", host, 40000)
        self.transport = Transport(peerAddress=peer)
        if secure:
            directlyProvides(self.transport, ISSLTransport)
        self.protocol = factory.buildProtocol(peer)
        self.protocol.makeConnection(self.transport)
        if secure:
            self.protocol.handshakeCompleted()
        self.greeting = self.output()

    def say(self, *lines: bytes) -> bytes:
        self.protocol.dataReceived(b"".join(line + b"\r\n" for line in lines))
        return self.output()

    def output(self) -> bytes:
        output: bytes = self.transport.value()
        self.transport.clear()
        return output

    def take(self) -> bytes:
        """Read all there is until nothing more comes."""
        parts = []
        while part := self.output():
            parts.append(part)
            if self.transport.producer is not None:
                self.transport.producer.resumeProducing()
        return b"".join(parts)

    def hang_up(self) -> None:
        self.protocol.connectionLost(Failure(connectionDone.value))


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.put("me", "mx.test\n")
        self.clock = Clock()
        self.mailbox = Mailbox(b"Subject: a\n\none\n", b"Subject: b\n\n.two")
        self.authenticator = FakeAuthenticator(self.mailbox)
        self.factory = POP3Factory(
            Control(self.directory),
            self.authenticator,  # type: ignore[arg-type]
            clock=self.clock,
            now=lambda: NOW,
        )
        self.logged: list[str] = []

        @implementer(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "qtwist.pop3d" and event["log_level"] > LogLevel.debug:
                self.logged.append(formatEvent(event).partition(": ")[2])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def put(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        with open(path + ".new", "w") as file:
            file.write(text)
        os.rename(path + ".new", path)

    def client(self, **how: Any) -> Client:
        """One that has logged in."""
        client = Client(self.factory, **how)
        self.assertEqual(client.say(b"USER joe", b"PASS secret"), b"+OK \r\n+OK \r\n")
        return client


class Memory(Case):
    def test_too_little(self) -> None:
        """RFC 3206 §4: [SYS/TEMP] to those who come; who is there may go on (doc/running.md)."""
        there = self.client()
        self.put("memoryminfree", f"{10**18}\n")
        self.clock.advance(2)
        client = Client(self.factory)
        self.assertEqual(client.greeting, b"-ERR [SYS/TEMP] not enough memory, try again later\r\n")
        self.assertTrue(client.transport.disconnecting)
        self.assertIn("refused 127.0.0.1, not enough memory (control/memoryminfree)", self.logged)
        self.assertEqual(there.say(b"STAT")[:6], b"+OK 2 ")
        self.put("memoryminfree", "0\n")
        self.clock.advance(2)
        self.client()


class Sessions(Case):
    def test_a_session(self) -> None:
        verifyObject(IMaildrop, self.mailbox)
        client = self.client()
        self.assertEqual(client.say(b"STAT", b"UIDL 2"), b"+OK 2 200\r\n+OK 2 u1\r\n")
        self.assertEqual(client.say(b"RETR 2"), b"+OK \r\nSubject: b\r\n\r\n..two\r\n.\r\n")
        self.assertEqual(client.say(b"TOP 1 0"), b"+OK \r\nSubject: a\r\n\r\n.\r\n")
        self.assertEqual(client.say(b"DELE 1", b"QUIT"), b"+OK \r\n+OK \r\n")
        self.assertEqual(self.mailbox.finished, ((0,), (1,)))
        self.assertTrue(client.transport.disconnecting)
        client.hang_up()
        self.assertEqual((self.mailbox.closed, self.authenticator.logouts), (1, 1))
        self.assertEqual([source.closed for source in self.mailbox.sources], [1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(
            self.logged,
            [
                "login of 'joe' from 127.0.0.1 by USER, 2 messages",
                "end (quit) of 'joe': 32 octets, 1 retrieved, 1 deleted",
            ],
        )

    def test_the_greeting_is_what_apop_wants(self) -> None:
        """RFC 1939 §7; the time stamp is never the same twice."""
        first, second = Client(self.factory), Client(self.factory)
        self.assertNotEqual(first.greeting, second.greeting)
        match = re.fullmatch(rb"\+OK (<[0-9.]+@mx\.test>)\r\n", second.greeting)
        assert match is not None
        digest = hashlib.md5(match[1] + b"tanstaaf").hexdigest().encode()
        self.assertEqual(first.say(b"APOP joe " + digest), b"-ERR [AUTH] wrong name or password\r\n")
        self.assertEqual(second.say(b"APOP joe " + digest), b"+OK \r\n")

    def test_without_quit_nothing_changes(self) -> None:
        """RFC 1939 §6."""
        client = self.client()
        client.say(b"DELE 1")
        client.hang_up()
        self.assertIsNone(self.mailbox.finished)
        self.assertEqual(self.mailbox.closed, 1)

    def test_a_maildir(self) -> None:
        path = self.mktemp()
        for folder in ("", "new", "cur", "tmp"):
            os.mkdir(os.path.join(path, folder))
        text = b"\0" * 1_000_000 + b"\n.\nx\r\n" + b"y" * 70_000
        with open(os.path.join(path, "new", "1.a"), "wb") as file:
            file.write(text)
        os.utime(os.path.join(path, "new", "1.a"), (NOW - 9, NOW - 9))
        self.authenticator.mailbox = Maildrop(os.fsencode(path), execute, lambda: NOW)
        client = self.client()
        wire = text.replace(b"\n", b"\r\n") + b"\r\n"
        self.assertEqual(client.say(b"LIST 1"), b"+OK 1 %d\r\n" % len(wire))
        client.transport.holds = True
        client.protocol.dataReceived(b"RETR 1\r\n")
        self.assertLess(len(client.transport.value()), 400_000)
        self.assertEqual(client.take(), b"+OK \r\n" + wire.replace(b"\n.", b"\n..") + b".\r\n")
        self.assertEqual(client.say(b"QUIT"), b"+OK \r\n")
        self.assertEqual(os.listdir(os.path.join(path, "cur")), ["1.a:2,S"])


class Logins(Case):
    def test_wrong(self) -> None:
        client = Client(self.factory)
        self.assertEqual(client.say(b"USER joe", b"PASS x"), b"+OK \r\n-ERR [AUTH] wrong name or password\r\n")
        self.authenticator.answer = fail(LoginUnavailable("the disk is on fire"))
        self.assertEqual(
            client.say(b"USER joe", b"PASS x"),
            b"+OK \r\n-ERR [SYS/TEMP] logins cannot be checked now, try again later\r\n",
        )
        self.assertEqual(client.say(b"USER joe", b"PASS secret"), b"+OK \r\n+OK \r\n")

    def test_a_broken_checker(self) -> None:
        client = Client(self.factory)
        self.authenticator.answer = fail(ZeroDivisionError())
        self.assertIn(b"-ERR [SYS/TEMP]", client.say(b"USER joe", b"PASS x"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_passwords_in_the_clear(self) -> None:
        """From this host, or encrypted, or where control/plaintextauth says so."""
        for how, allowed in (
            ({}, True),
            ({"unix": True}, True),
            ({"host": "::1"}, True),
            ({"host": "::ffff:127.0.0.2"}, True),
            ({"host": "192.0.2.1"}, False),
            ({"host": "192.0.2.1", "secure": True}, True),
            ({"host": "2001:db8::1"}, False),
        ):
            client = Client(self.factory, **how)
            self.assertEqual(b"\r\nUSER\r\n" in client.say(b"CAPA"), allowed, how)
            self.assertEqual(client.say(b"USER joe").startswith(b"+OK"), allowed, how)
        self.put("plaintextauth", "1\n")
        self.client(host="192.0.2.1")
        self.assertEqual(self.authenticator.asked, [("192.0.2.1", "pop3")])

    def test_pipelined_commands_wait(self) -> None:
        """A login may take its time; what comes after it is answered after it (RFC 2449 §6.6)."""
        login = self.authenticator.answer = Deferred()
        client = Client(self.factory)
        self.assertEqual(client.say(b"USER joe", b"PASS secret", b"STAT", b"QUIT"), b"+OK \r\n")
        login.callback((self.mailbox, self.authenticator.logout))
        self.assertEqual(client.output(), b"+OK \r\n+OK 2 200\r\n+OK \r\n")

    def test_a_client_that_leaves_before_the_answer(self) -> None:
        cancelled: list[Deferred[Any]] = []
        self.authenticator.answer = Deferred(cancelled.append)
        client = Client(self.factory)
        client.say(b"USER joe", b"PASS secret")
        client.hang_up()
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.mailbox.closed, 0)

    def test_a_login_that_ends_all_the_same(self) -> None:
        """What was opened is closed again when nobody is there any more."""
        answer = (self.mailbox, self.authenticator.logout)
        self.authenticator.answer = Deferred(lambda deferred: deferred.callback(answer))
        client = Client(self.factory)
        client.say(b"USER joe", b"PASS secret")
        client.hang_up()
        self.assertEqual((self.mailbox.closed, self.authenticator.logouts), (1, 1))

    def test_mailboxes_that_do_not_open(self) -> None:
        for error, answer in (
            (MaildropError("x"), b"-ERR [SYS/PERM] there is no mailbox that can be read\r\n"),
            (MaildropTrouble("x"), b"-ERR [SYS/TEMP] the mailbox cannot be read now, try again later\r\n"),
            (MaildropInUse("x"), b"-ERR [IN-USE] the mailbox is in use\r\n"),
        ):
            client = Client(self.factory)
            self.mailbox.answers["open"] = fail(error)
            self.assertEqual(client.say(b"USER joe", b"PASS secret"), b"+OK \r\n" + answer)
            client.hang_up()
        self.assertEqual((self.mailbox.closed, self.authenticator.logouts), (3, 3))

    def test_no_password_is_logged(self) -> None:
        client = self.client()
        client.say(b"QUIT")
        client.hang_up()
        self.assertNotIn("secret", " ".join(self.logged))


class Trouble(Case):
    def test_a_message_that_has_gone(self) -> None:
        client = self.client()
        self.mailbox.answers["fetch"] = fail(MessageGone("x"))
        self.assertEqual(client.say(b"RETR 1", b"NOOP"), b"-ERR the message is no longer there\r\n+OK \r\n")

    def test_a_broken_mailbox(self) -> None:
        client = self.client()
        self.mailbox.answers["sizes"] = fail(ZeroDivisionError())
        self.assertIn(b"-ERR [SYS/TEMP]", client.say(b"STAT"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(client.say(b"STAT"), b"+OK 2 200\r\n")

    def test_a_message_that_breaks_off(self) -> None:
        """The client must not take the half for the whole: no dot, no QUIT."""
        self.mailbox.messages[0] = [b"Subject: x\n", fail(MaildropTrouble("input/output error"))]
        client = self.client()
        self.assertEqual(client.say(b"RETR 1", b"NOOP"), b"+OK \r\nSubject: x\r\n")
        self.assertTrue(client.transport.aborted)
        self.assertEqual(self.mailbox.sources[0].closed, 1)

    def test_failed_deletions(self) -> None:
        """§26.5."""
        client = self.client()
        self.mailbox.answers["finish"] = succeed(1)
        self.assertEqual(
            client.say(b"DELE 1", b"DELE 2", b"QUIT"),
            b"+OK \r\n+OK \r\n-ERR 1 deleted messages could not be removed\r\n",
        )
        client.hang_up()
        self.assertIn("1 deleted", self.logged[-1])

    def test_a_client_that_vanishes_in_a_message(self) -> None:
        slow: Deferred[bytes] = Deferred()
        self.mailbox.messages[0] = [b"x\n", slow]
        client = self.client()
        client.say(b"RETR 1")
        client.hang_up()
        self.assertEqual(self.mailbox.sources[0].closed, 0)  # a thread is reading
        slow.callback(b"y\n")
        self.assertEqual(self.mailbox.sources[0].closed, 1)

    def test_a_client_that_vanishes_while_a_message_is_opened(self) -> None:
        client = self.client()
        slow = self.mailbox.answers["fetch"] = Deferred()
        client.say(b"RETR 1")
        client.hang_up()
        source = Source([b"x"])
        slow.callback(source)
        self.assertEqual(source.closed, 1)


class Flow(Case):
    def test_a_client_that_does_not_read(self) -> None:
        """No block is read before the last one has left; nothing is read from the client meanwhile."""
        self.mailbox.messages[0] = [b"x" * 65536] * 10
        client = self.client()
        client.transport.holds = True
        client.protocol.dataReceived(b"RETR 1\r\nNOOP\r\n")
        self.assertGreaterEqual(len(self.mailbox.sources[0].blocks), 8)
        self.assertEqual(client.transport.producerState, "paused")
        self.assertEqual(client.take(), b"+OK \r\n" + b"x" * 655360 + b"\r\n.\r\n+OK \r\n")
        self.assertEqual(client.transport.producerState, "producing")

    def test_a_long_list(self) -> None:
        """It is not written faster than the client reads."""
        self.mailbox.messages = [[b"x"]] * 50_000
        client = self.client()
        client.transport.holds = True
        client.protocol.dataReceived(b"UIDL\r\n")
        self.assertLess(len(client.transport.value()), 100_000)
        self.assertEqual(client.take().count(b"\r\n"), 50_002)

    def test_a_client_that_says_too_much(self) -> None:
        self.authenticator.answer = Deferred()
        client = Client(self.factory)
        client.say(b"USER joe", b"PASS secret", b"NOOP" * INPUT_ENOUGH)
        self.assertEqual(client.transport.producerState, "paused")


class Limits(Case):
    def test_connections(self) -> None:
        self.put("concurrencypop3", "2\n")
        clients = [Client(self.factory) for _ in range(3)]
        self.assertEqual([client.greeting[:4] for client in clients], [b"+OK ", b"+OK ", b"-ERR"])
        self.assertTrue(clients[2].transport.disconnecting)
        for client in clients:
            client.hang_up()
        self.assertTrue(Client(self.factory).greeting.startswith(b"+OK "))

    def test_clients_and_networks(self) -> None:
        """As for SMTP (issue 8, item 1): at once, and in a minute; rules of tcp.pop3 override; not this host."""
        self.put("maxconnip", "2\n")
        self.put("maxconnc", "3\n")
        hosts = ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.1", *4 * ("127.0.0.1",))
        clients = [Client(self.factory, host=host) for host in hosts]
        self.assertEqual([client.greeting[:1] for client in clients], [b"+", b"+", b"-", b"+", b"-", *5 * [b"+"]])
        self.assertEqual(clients[2].greeting, b"-ERR [SYS/TEMP] too many connections from you, try again later\r\n")
        self.assertIn(
            "connection answered 421 rule=limits (192.0.2.1 has 2 connections here (control/maxconnip is 2))"
            " ip=192.0.2.1",
            self.logged,
        )
        for client in clients:
            client.hang_up()
        self.put("tcp.pop3", '192.0.2.:allow,MAXCONNIP="1",DIEMSG="slowly"\n')
        clients = [Client(self.factory, host="192.0.2.1") for _ in range(2)]
        self.assertEqual(clients[0].greeting[:1], b"+")  # those who have left are not counted
        self.assertEqual(clients[1].greeting, b"-ERR [SYS/TEMP] slowly\r\n")
        self.put("maxconnip", "50\n")
        self.put("maxconnc", "50\n")
        self.put("connrateip", "3\n")
        taken = [Client(self.factory, host="198.51.100.2").greeting[:1] for _ in range(4)]
        self.assertEqual(taken, [b"+", b"+", b"+", b"-"])

    def test_trace(self) -> None:
        """Of a client in control/trace, from its next connection; passwords are not written."""
        self.put("trace", "192.0.2.0/24\n")
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        for host in ("192.0.2.1", "198.51.100.1"):
            client = Client(self.factory, host=host, secure=True)
            client.say(b"USER joe", b"PASS secret", b"STAT", b"QUIT")
            client.hang_up()
            client = Client(self.factory, host=host, secure=True)
            client.say(b"AUTH PLAIN", b"AGpvZQBzZWNyZXQ=")
            client.say(b"QUIT")
            client.hang_up()
        lines = [formatEvent(event).partition(": ")[2] for event in events if event["log_namespace"] == "qtwist.trace"]
        self.assertEqual([line for line in lines if not line.startswith("192.0.2.1 ")], [])
        said = [line.removeprefix("192.0.2.1 ") for line in lines]
        self.assertEqual(
            [line for line in said if line.startswith("<")],
            ["< USER joe", "< PASS ***", "< STAT", "< QUIT", "< [EOF]", "< AUTH PLAIN", "< ***", "< QUIT", "< [EOF]"],
        )
        self.assertIn("> +OK 2 200", said)
        self.assertNotIn("secret", "".join(lines))
        self.assertNotIn("AGpv", "".join(lines))

    def test_configuration(self) -> None:
        self.put("concurrencypop3", "many\n")
        client = Client(self.factory)
        self.assertEqual(client.greeting, b"-ERR [SYS/TEMP] the configuration cannot be read\r\n")
        self.assertTrue(client.transport.disconnecting)

    def test_timeout(self) -> None:
        """RFC 1939 §3: without a word, and without deleting anything."""
        self.put("timeoutpop3d", "600\n")
        client = self.client()
        client.say(b"DELE 1")
        self.clock.advance(599)
        client.say(b"NOOP")
        self.clock.advance(599)
        self.assertFalse(client.transport.aborted)
        self.clock.advance(1)
        self.assertTrue(client.transport.aborted)
        self.assertEqual(client.output(), b"")
        client.hang_up()
        self.assertIsNone(self.mailbox.finished)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIn("end (timeout)", self.logged[-1])

    def test_clock_set_back(self) -> None:
        """By a day, and the timers with it (qtwist.clock): whoever is silent is left all the same."""
        client = self.client()
        self.clock.rightNow -= 86_400
        shift(self.clock, -86_400)
        self.clock.advance(1200)
        self.clock.advance(1200)
        self.assertTrue(client.transport.aborted)

    def test_an_octet_at_a_time(self) -> None:
        """A command has to be whole in time."""
        client = self.client()
        for octet in b"NOOP                ":
            self.clock.advance(59)
            client.protocol.dataReceived(bytes([octet]))
        self.assertFalse(client.transport.aborted)
        self.clock.advance(20)
        self.assertTrue(client.transport.aborted)

    def test_our_own_slowness_is_no_timeout(self) -> None:
        client = self.client()
        slow = self.mailbox.answers["sizes"] = Deferred()
        client.say(b"STAT")
        self.clock.advance(2000)
        self.assertFalse(client.transport.aborted)
        slow.callback([1, 2])
        self.assertEqual(client.output(), b"+OK 2 3\r\n")
        self.clock.advance(1200)
        self.assertTrue(client.transport.aborted)


class Draining(Case):
    def test_drain(self) -> None:
        """Who has not logged in is sent away; who has may go on until QUIT."""
        idle, busy, asking = Client(self.factory), self.client(), Client(self.factory)
        self.authenticator.answer = Deferred()
        asking.say(b"USER joe", b"PASS secret")
        drained = self.factory.drain()
        for client in (idle, asking, Client(self.factory)):
            text = client.output() or client.greeting
            self.assertEqual(text, b"-ERR [SYS/TEMP] the service is shutting down, try again later\r\n")
            self.assertTrue(client.transport.disconnecting)
            client.hang_up()
        self.assertNoResult(drained)
        self.assertEqual(busy.say(b"DELE 1", b"QUIT"), b"+OK \r\n+OK \r\n")
        self.assertEqual(self.mailbox.finished, ((0,), ()))
        busy.hang_up()
        self.successResultOf(drained)

    def test_abort(self) -> None:
        client = self.client()
        self.factory.drain()
        self.factory.abort()
        self.assertTrue(client.transport.aborted)
