"""Several recipients in one transaction: who goes with whom, and that everybody hears what they would have alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.envelope import Report
from qtwist.remote import reports
from qtwist.remote.batches import GATHER_SECONDS, Batches
from qtwist.remote.carrier import _reports
from qtwist.remote.client import Connection, Message
from qtwist.wire.smtp_client import Transaction
from tests.scripted_smtp import CLOSE, ScriptedSMTP
from tests.test_remote_spawn import ACCEPTED, WIRE, SpawnerCase, TCPTransport

K = Report.success(b"ok\n")


@attrs.define
class Sent:
    """A transaction that was asked for."""

    recipients: tuple[bytes, ...]
    result: Deferred[Sequence[Report | None]]


class BatchesCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.batches = Batches(self.clock)
        self.sent: list[Sent] = []
        self.addCleanup(lambda: self.assertEqual(self.clock.getDelayedCalls(), []))

    def send(self, recipients: tuple[bytes, ...]) -> Deferred[Sequence[Report | None]]:
        self.sent.append(Sent(recipients, Deferred()))
        return self.sent[-1].result

    def join(
        self, recipient: bytes, siblings: int = 3, most: int = 50, place: str = "here", number: int = 1
    ) -> Deferred[Report | None]:
        result = self.batches.join(number, place, recipient, siblings, most, self.send)  # type: ignore[arg-type]
        return result.addBoth(self.ended, number)

    def ended(self, report: Report | None, number: int) -> Report | None:
        if report is None:
            self.batches.end(number)
        return report

    def asked(self) -> list[tuple[bytes, ...]]:
        return [one.recipients for one in self.sent]


class GatherTests(BatchesCase):
    def test_all_here(self) -> None:
        """With the last one that was told of, all go, and nobody waits for a clock."""
        results = [self.join(name) for name in (b"a", b"b", b"c")]
        self.assertEqual(self.asked(), [(b"a", b"b", b"c")])
        later = Report.deferral(b"full\n")
        self.sent[0].result.callback([K, later, None])
        self.assertEqual([self.successResultOf(result) for result in results], [K, later, None])

    def test_some_under_way(self) -> None:
        """Those that are under way count: the next ones do not wait for them to come again."""
        for name in (b"a", b"b"):
            self.join(name, siblings=2)
        self.join(b"c", siblings=4)
        self.join(b"d", siblings=4)
        self.assertEqual(self.asked(), [(b"a", b"b"), (b"c", b"d")])

    def test_nobody_comes(self) -> None:
        """The queue manager may have other things to do: after a moment without news, whoever is here goes."""
        self.join(b"a")
        self.clock.advance(0.8 * GATHER_SECONDS)
        self.join(b"b")
        self.clock.advance(0.8 * GATHER_SECONDS)
        self.assertEqual(self.asked(), [])
        self.clock.advance(0.2 * GATHER_SECONDS)
        self.assertEqual(self.asked(), [(b"a", b"b")])

    def test_next_ones_at_once(self) -> None:
        """Who hears of a result may start the next delivery at once: it waits for those that the others start."""
        for name, after in ((b"a", b"c"), (b"b", b"d")):
            self.join(name, siblings=2).addCallback(lambda _, after=after: self.join(after, siblings=2) and None)
        self.sent[0].result.callback([K, K])
        self.assertEqual(self.asked(), [(b"a", b"b"), (b"c", b"d")])

    def test_alone(self) -> None:
        """Who is alone with a place has no transaction here."""
        results = [self.join(b"a"), self.join(b"b", place="there"), self.join(b"c", place="elsewhere")]
        self.assertEqual(self.asked(), [])
        self.assertEqual([self.successResultOf(result) for result in results], [None, None, None])

    def test_full(self) -> None:
        for name in (b"a", b"b", b"c", b"d"):
            self.join(name, siblings=4, most=2)
        self.assertEqual(self.asked(), [(b"a", b"b"), (b"c", b"d")])

    def test_messages(self) -> None:
        """Messages do not mix."""
        self.join(b"a", siblings=2)
        self.join(b"a", siblings=2, number=2)
        self.join(b"b", siblings=2, number=2)
        self.join(b"b", siblings=2)
        self.assertEqual(self.asked(), [(b"a", b"b"), (b"a", b"b")])

    def test_twice(self) -> None:
        """Who is named twice gets two messages, as with qmail; a server makes one of two equal RCPTs."""
        self.join(b"a")
        again = self.join(b"a")
        self.assertIsNone(self.successResultOf(again))
        self.join(b"b")
        self.clock.advance(GATHER_SECONDS)
        self.assertEqual(self.asked(), [(b"a", b"b")])

    def test_trouble(self) -> None:
        """An error of ours is nobody's result."""
        results = [self.join(name, siblings=2) for name in (b"a", b"b")]
        self.sent[0].result.errback(OSError("no"))
        self.assertEqual([self.successResultOf(result) for result in results], [None, None])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.integers(1, 2), st.sampled_from("xyz"), st.sampled_from([b"a", b"b", b"c", b"d"])),
                st.just("answer"),
                st.just("wait"),
            ),
            max_size=40,
        ),
        st.integers(2, 5),
        st.integers(2, 4),
    )
    def test_any_order(self, steps: list[tuple[int, str, bytes] | str], siblings: int, most: int) -> None:
        """Everybody has one result; nobody is in two transactions at a time, no transaction is too large."""
        self.setUp()
        waiting: list[Deferred[Report | None]] = []

        def answer() -> None:
            for one in self.sent:
                if not one.result.called:
                    one.result.callback([K] * len(one.recipients))

        for step in steps:
            if step == "answer":
                answer()
            elif step == "wait":
                self.clock.advance(GATHER_SECONDS)
            else:
                number, place, recipient = step
                waiting.append(self.join(recipient, siblings, most, place, number))  # type: ignore[arg-type]
        self.clock.advance(GATHER_SECONDS)
        answer()
        reports = [self.successResultOf(result) for result in waiting]
        for recipients in self.asked():
            self.assertTrue(1 < len(recipients) <= most, recipients)
            self.assertEqual(len(set(recipients)), len(recipients))
        self.assertEqual(reports.count(K), sum(map(len, self.asked())))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.batches._here, {})


class SpawnerTests(SpawnerCase):
    """Whole deliveries, over sockets on loopback."""

    def deliveries(self, *recipients: bytes, siblings: int = 0, **changes: Any) -> Deferred[list[Report]]:
        """Start one for each recipient, as the queue manager does; the reports."""
        number = siblings or len(recipients)
        return gatherResults(
            [
                self.spawner.deliver(attrs.evolve(self.delivery(recipient, **changes), siblings=number))
                for recipient in recipients
            ]
        )

    @staticmethod
    def verbs(server: ScriptedSMTP) -> list[str]:
        """What was said to a server, from MAIL on."""
        words = [command[:4].decode() for session in server.sessions for command in session]
        return [word for word in words if word not in ("EHLO", "QUIT")]

    async def test_together(self) -> None:
        server = ScriptedSMTP(RCPT=[b"250 ok", b"550 who?", b"250 ok"])
        self.serve(server)
        found = await self.deliveries(b"a@x.test", b"b@y.test", b"c@x.test")
        self.assertEqual(found[0], Report.success(ACCEPTED))
        self.assertEqual(found[1].letter, b"D")
        self.assertIn(b"Remote host said: 550 who?", found[1].text)
        self.assertEqual(found[2], Report.success(ACCEPTED))
        self.assertEqual(self.verbs(server), ["MAIL", "RCPT", "RCPT", "RCPT", "DATA"])
        self.assertEqual(server.messages, [WIRE])

    async def test_as_qmail(self) -> None:
        """§15: one recipient, one transaction; and so where the queue manager says that this one goes alone."""
        server = ScriptedSMTP()
        self.serve(server)
        await self.deliveries(b"a@x.test", b"b@x.test", siblings=1)
        self.write("control/remoterecipients", b"1\n")
        await self.deliveries(b"a@x.test", b"b@x.test", number=2)
        self.assertEqual(self.verbs(server), 4 * ["MAIL", "RCPT", "DATA"])

    async def test_verp(self) -> None:
        """§9.12: each recipient has a sender of its own."""
        server = ScriptedSMTP()
        self.serve(server)
        reports = [
            self.spawner.deliver(attrs.evolve(self.delivery(b"%c@x.test" % name, sender=b"me-%c@y" % name), siblings=2))
            for name in b"ab"
        ]
        await gatherResults(reports)
        self.assertEqual(self.verbs(server), 2 * ["MAIL", "RCPT", "DATA"])

    async def test_too_many(self) -> None:
        """RFC 5321 §4.5.3.1.10: whom a server does not take with others is sent the message at once, alone."""
        server = ScriptedSMTP(RCPT=[b"250 ok", b"452 too many", b"250 ok"])
        self.serve(server)
        found = await self.deliveries(b"a@x.test", b"b@x.test")
        self.assertEqual([report.letter for report in found], [b"K", b"K"])
        self.assertEqual(self.verbs(server), ["MAIL", "RCPT", "RCPT", "DATA", "MAIL", "RCPT", "DATA"])

    async def test_refused_content(self) -> None:
        """What is said of the message may be due to one recipient's rules: each hears it alone."""
        server = ScriptedSMTP(message=[b"550 not for both", b"550 no", b"250 yes"])
        self.serve(server)
        found = await self.deliveries(b"a@x.test", b"b@x.test")
        self.assertEqual(sorted(report.letter for report in found), [b"D", b"K"])

    async def test_lost_after_the_dot(self) -> None:
        """Nobody knows whether the message was taken: for all of them, later; nothing is sent again now."""
        server = ScriptedSMTP(message=CLOSE)
        self.serve(server)
        found = await self.deliveries(b"a@x.test", b"b@x.test")
        for report in found:
            self.assertEqual(report.letter, b"Z")
            self.assertIn(b"possible duplicate", report.text)
        self.assertEqual(len(server.messages), 1)

    async def test_no_connection(self) -> None:
        self.write("control/smtproutes", b":[127.0.0.1]:9\n")
        found = await self.deliveries(b"a@x.test", b"b@x.test")
        self.assertEqual(found, [reports.NO_CONNECTION] * 2)

    async def test_other_places(self) -> None:
        """Without a relay, each domain is a place of its own, whatever its case."""
        own, server = ScriptedSMTP(), ScriptedSMTP()
        self.serve(own, server)
        for name in (b"x.test", b"X.test", b"y.test"):
            self.resolver._addresses[name] = ("127.0.0.2",)
        self.write("control/smtproutes", b"::%d\n" % self.port)
        found = await self.deliveries(b"a@X.test", b"b@x.test", b"a@y.test")
        self.assertEqual([report.letter for report in found], [b"K"] * 3)
        self.assertEqual((self.verbs(server).count("MAIL"), self.verbs(server).count("RCPT")), (2, 3))


# What the server says.

GOOD = b"250 ok"
RCPT_REPLIES = (GOOD, GOOD, GOOD, GOOD, b"450 4.2.1 later", b"550 5.1.1 who?", b"451 4.7.1 greylisted")
TOO_MANY = (b"452 4.5.3 too many", b"552 too many", b"451 4.5.3 too many", b"550 5.5.3 too many", b"421 bye")


@attrs.frozen
class Server:
    """How a server treats a message: what it says to each recipient, how many it takes and what it says to more, whose
    mail it does not want to see (alone or with others), and after how many RCPTs it hangs up."""

    mail: bytes
    replies: dict[bytes, bytes]
    most: int
    too_many: bytes
    refuses: frozenset[bytes]
    refusal: bytes
    at_data: bool
    hangs_up_after: int
    pipelining: bool

    def talk(self, connection: Connection, transport: StringTransport) -> None:
        """Answer until nothing more is asked."""
        accepted: set[bytes] = set()
        asked = 0
        pending = b""
        while True:
            pending += transport.value()
            transport.clear()
            if not pending:
                return
            command, _, pending = pending.partition(b"\r\n")
            if command.startswith(b"MAIL"):
                reply = self.mail
            elif command.startswith(b"RCPT"):
                asked += 1
                if asked > self.hangs_up_after:
                    connection.connectionLost(Failure(ConnectionLost()))
                    return
                name = command[len(b"RCPT TO:<") : -1]
                reply = self.too_many if asked > self.most else self.replies[name]
                if reply == GOOD:
                    accepted.add(name)
            elif command == b"DATA":
                if not accepted:
                    reply = b"554 no valid recipients"
                elif self.at_data and accepted & self.refuses:
                    reply = self.refusal
                else:
                    reply = b"354 go"
            elif command == b"RSET":
                reply = b"250 reset"
            elif command == b".":
                reply = b"554 an empty message"
            else:
                while command != b".":  # the message, which may not be here to its end
                    pending += transport.value()
                    transport.clear()
                    command, _, pending = pending.partition(b"\r\n")
                reply = self.refusal if accepted & self.refuses else b"250 queued"
            connection.dataReceived(reply + b"\r\n")
            if reply.startswith(b"421"):
                connection.connectionLost(Failure(ConnectionLost()))
                return


NAMES = (b"a@far.test", b"b@far.test", b"c@far.test", b"d@far.test")
SERVERS = st.builds(
    Server,
    st.sampled_from((*9 * (GOOD,), b"550 no", b"450 later")),
    st.fixed_dictionaries(dict.fromkeys(NAMES, st.sampled_from(RCPT_REPLIES))),
    st.sampled_from((9, 9, 9, 1, 2, 3)),
    st.sampled_from(TOO_MANY),
    st.frozensets(st.sampled_from(NAMES)),
    st.sampled_from((b"550 content", b"451 content")),
    st.booleans(),
    st.sampled_from((9, 9, 9, 1, 2, 3)),
    st.booleans(),
)


class DifferentialTests(SynchronousTestCase):
    def setUp(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"Subject: x\n\nhello\n")
        self.fd = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, self.fd)

    def reports(self, server: Server, *recipients: bytes) -> Sequence[Report | None]:
        """What one transaction with `server` reports."""
        clock = Clock()
        connection = Connection(b"me.test", 60, clock)
        transport = TCPTransport()
        connection.makeConnection(transport)
        connection.dataReceived(b"220 far.test\r\n")
        transport.clear()
        connection.dataReceived(b"250-far.test\r\n250 PIPELINING\r\n" if server.pipelining else b"250 far.test\r\n")
        transport.clear()
        message = Message.read(self.fd)
        transaction = Transaction(b"me@here.test", recipients, message.size, False)
        result = connection.send(transaction, message)
        server.talk(connection, transport)
        return _reports("192.0.2.1", transaction, self.successResultOf(result), connection)

    @settings(max_examples=400)
    @given(SERVERS, st.integers(2, 4))
    def test_same_as_alone(self, server: Server, recipients: int) -> None:
        """Together, and then alone where together said nothing: the same reports, texts included, as each alone."""
        names = NAMES[:recipients]
        together = self.reports(server, *names)
        self.assertEqual(len(together), recipients)
        for name, report in zip(names, together, strict=True):
            [alone] = self.reports(server, name)
            self.assertIsNotNone(alone)
            if report is not None:
                self.assertEqual(report, alone, name)

    def test_good(self) -> None:
        """The differential test would pass as well if nothing ever came of a transaction."""
        server = Server(GOOD, dict.fromkeys(NAMES, GOOD), 5, GOOD, frozenset(), GOOD, False, 5, True)
        reports = self.reports(server, *NAMES)
        self.assertEqual([report.letter for report in reports if report is not None], [b"K"] * len(NAMES))
        server = attrs.evolve(server, replies={**server.replies, NAMES[1]: b"550 5.1.1 who?"})
        reports = self.reports(server, *NAMES)
        self.assertEqual([report.letter for report in reports if report is not None], [b"K", b"D", b"K", b"K"])
