"""Milters, played by a filter that says what a test wants, over a real socket (doc/content.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from qtwist.mail.address import Address
from qtwist.policy import asking
from qtwist.policy.base import Opinion
from qtwist.policy.content import Content, Discarded
from qtwist.policy.milters import Milters
from qtwist.policy.session import Session
from qtwist.tls.info import TLSInfo
from qtwist.wire.milter import Milter, packet
from tests.policy_tools import session
from tests.test_policy_content import MESSAGE, content
from tests.test_policy_scanners import ScannerCase

reactor: Any = _reactor
CONTINUE = packet(b"c")


class FakeFilter(Factory):
    """Answers each packet with what `answers` has for its letter, `c` by default; None says nothing, b"" hangs up.
    `heard` is what came, without negotiation and macros; `macros` those by the letter that they belong to."""

    noisy = False

    def __init__(self, version: int = 6, actions: int = 0, protocol: int = 0) -> None:
        self.negotiation = packet(b"O", struct.pack(">LLL", version, actions, protocol))
        self.answers: dict[bytes, bytes | None] = {b"D": None, b"A": None, b"Q": None}
        self.heard: list[bytes] = []
        self.macros: dict[bytes, bytes] = {}
        self.gone = 0

    def buildProtocol(self, addr: Any) -> _Filter:
        return _Filter(self)


class _Filter(Protocol):
    transport: Any

    def __init__(self, played: FakeFilter) -> None:
        self.played = played
        self.reader = Milter()

    def dataReceived(self, data: bytes) -> None:
        played = self.played
        for one in self.reader.receive(data):
            if one.letter == b"O":
                self.transport.write(played.negotiation)
                continue
            if one.letter == b"D":
                played.macros[one.rest[:1]] = one.rest[1:]
                continue
            played.heard.append(one.letter + one.rest)
            answer = played.answers.get(one.letter, CONTINUE)
            if answer == b"":
                self.transport.abortConnection()
            elif answer is not None:
                self.transport.write(answer)

    def connectionLost(self, reason: Any = None) -> None:
        self.played.gone += 1


class MilterCase(ScannerCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("me", "mx.test\n")
        self.put("milters", f"unix:{self.path}\n")
        self.policy = Milters(self.surroundings())
        self.session = session(TCPREMOTEHOST="cli.test")
        self.addCleanup(lambda: self.policy.end(self.session))

    def play(self, played: FakeFilter | None = None, **answers: bytes | None) -> FakeFilter:
        played = played or FakeFilter()
        played.answers.update({letter.encode(): answer for letter, answer in answers.items()})
        self.serve(played)
        return played

    async def connect(self) -> Opinion:
        return await self.policy.connect(self.session)

    async def transaction(self, message: Content, recipients: tuple[bytes, ...] = (b"joe@mx.test",)) -> Opinion:
        """MAIL to the end of the message; the first refusal."""
        opinion = await self.begin(message.sender)
        for recipient in recipients:
            opinion = opinion or await self.policy.rcpt(self.session, Address(recipient))
        opinion = opinion or await self.policy.data(self.session)
        return opinion or await self.policy.content(self.session, message)

    async def begin(self, sender: bytes = b"a@b.test") -> Opinion:
        """MAIL, as the servers give it."""
        address = Address(sender)
        opinion = await self.policy.mail(self.session, address)
        self.session.sender = address
        return opinion

    async def whole(self, message: Content | None = None) -> Opinion:
        return await self.connect() or await self.transaction(message or content(MESSAGE))

    async def until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn


class Dialogue(MilterCase):
    async def test_all_of_it(self) -> None:
        """What a filter hears that wants everything, with the macros that Postfix gives, too."""
        played = self.play()
        self.assertIsNone(await self.connect())
        self.session.tls, self.session.user, self.session.mechanism = TLSInfo("TLSv1.3", "X"), b"joe", "PLAIN"
        self.assertIsNone(await self.policy.helo(self.session, b"helo.test"))
        self.assertIsNone(await self.transaction(content(b"A: b\n\tc\nD:e\n\nbody\n"), (b"a b@mx.test", b"x@mx.test")))
        self.policy.end(self.session)
        await self.until(lambda: played.gone == 1)
        self.assertEqual(
            played.heard,
            [
                b"Ccli.test\x004\x9c\x40192.0.2.9\0",
                b"Hhelo.test\0",
                b"M<a@b.test>\0",
                b'R<"a b"@mx.test>\0',
                b"R<x@mx.test>\0",
                b"T",
                b"LA\0b\n\tc\0",
                b"LD\0e\0",
                b"N",
                b"Bbody\r\n",
                b"E",
                b"Q",
            ],
        )
        self.assertEqual(played.macros[b"C"], b"j\0mx.test\0v\0qtwist\0{daemon_name}\0qtwist\0")
        self.assertEqual(played.macros[b"H"], b"{tls_version}\0TLSv1.3\0{cipher}\0X\0")
        self.assertEqual(played.macros[b"M"], b"i\0x\0{mail_addr}\0a@b.test\0{auth_authen}\0joe\0{auth_type}\0PLAIN\0")
        self.assertEqual(played.macros[b"E"], b"i\0x\0")

    async def test_what_it_does_not_want(self) -> None:
        """No connect, HELO, header and body; no answers to MAIL and RCPT; the spaces of values; version 2."""
        played = self.play(FakeFilter(protocol=0x1 | 0x2 | 0x10 | 0x20 | 0x40 | 0x4000 | 0x8000), M=None, R=None)
        self.assertIsNone(await self.whole())
        self.assertEqual(played.heard, [b"M<a@b.test>\0", b"R<joe@mx.test>\0", b"T", b"E"])
        self.policy.end(self.session)
        await self.until(lambda: played.gone == 1)
        played.negotiation = packet(b"O", struct.pack(">LLL", 6, 0, 0x100080 | 0x80000))
        played.answers.update({b"L": None, b"B": None, b"M": CONTINUE, b"R": CONTINUE})
        played.heard.clear()
        self.assertIsNone(await self.whole())
        self.assertEqual(played.heard[-5:], [b"LFrom\0 a@b.test\0", b"LSubject\0 x\0", b"N", b"Bbody\r\n", b"E"])
        self.policy.end(self.session)
        played.negotiation = packet(b"O", struct.pack(">LLL", 2, 0, 0))
        played.answers.update({b"L": CONTINUE, b"B": CONTINUE})
        played.heard.clear()
        self.assertIsNone(await self.whole())
        self.assertNotIn(b"T", played.heard)

    async def test_a_large_body(self) -> None:
        """In pieces that are no longer than 65,535 octets; until it has seen enough (SKIP)."""
        played = self.play(FakeFilter(protocol=0x400))
        body = b"0123456\n" * 40_000
        self.assertIsNone(await self.whole(content(b"\n" + body, 65536)))
        pieces = [one[1:] for one in played.heard if one[:1] == b"B"]
        self.assertEqual(b"".join(pieces), body.replace(b"\n", b"\r\n"))
        self.assertLessEqual(max(map(len, pieces)), 65535)
        played.answers[b"B"] = packet(b"s")
        played.heard.clear()
        self.assertIsNone(await self.transaction(content(b"\n" + body, 65536)))
        self.assertEqual(len([one for one in played.heard if one[:1] == b"B"]), 1)
        self.assertEqual(played.heard[-1], b"E")

    async def test_progress(self) -> None:
        self.play(E=packet(b"p") + packet(b"p") + CONTINUE, M=packet(b"p") + CONTINUE)
        self.assertIsNone(await self.whole())

    async def test_the_next_transaction(self) -> None:
        """One that came to no end is ended by ABORT (RSET, or nobody got it)."""
        played = self.play()
        await self.connect()
        await self.begin()
        self.assertIsNone(await self.transaction(content(MESSAGE)))
        self.assertIsNone(await self.transaction(content(MESSAGE)))
        letters = b"".join(one[:1] for one in played.heard)
        self.assertEqual(letters, b"CMA" + b"MRTLLNBE" * 2)


class Answers(MilterCase):
    async def test_refusals(self) -> None:
        """At each step, in its own words or in ours."""
        played = self.play()
        for letter in (b"C", b"M", b"R", b"T", b"L", b"N", b"B", b"E"):
            for answer, code, text in (
                (packet(b"r"), 554 if letter == b"C" else 550, b"rejected (#5.7.1)"),
                (packet(b"t"), 451, b"try again later (#4.7.1)"),
                (packet(b"y", b"554 5.7.9 go 100%% away\0"), 554, b"go 100% away (#5.7.9)"),
                (packet(b"y", b"450-4.7.1 one\r\n450 4.7.1 two\0"), 450, b"one\ntwo (#4.7.1)"),
                (packet(b"y", b"550\0"), 550, b"refused"),
            ):
                played.answers[letter] = answer
                with self.subTest(letter=letter, answer=answer):
                    self.check(await self.whole(), code, text, self.path)
                self.policy.end(self.session)
            played.answers[letter] = CONTINUE

    async def test_accepted(self) -> None:
        """At connect for the whole connection, later for the message; a recipient alone can be refused."""
        played = self.play(C=packet(b"a"))
        self.assertIsNone(await self.whole())
        self.assertEqual([one[:1] for one in played.heard], [b"C"])
        self.policy.end(self.session)
        played.answers.update({b"C": CONTINUE, b"M": packet(b"a")})
        self.assertIsNone(await self.whole())
        self.assertIsNone(await self.transaction(content(MESSAGE)))
        self.assertEqual([one[:1] for one in played.heard if one != b"Q"], [b"C", b"C", b"M", b"M"])
        self.policy.end(self.session)
        played.answers.update({b"M": CONTINUE, b"R": packet(b"r")})
        await self.connect()
        await self.begin()
        self.check(await self.policy.rcpt(self.session, Address(b"x@mx.test")), 550, b"rejected (#5.7.1)", "")
        played.answers[b"R"] = CONTINUE
        self.assertIsNone(await self.policy.rcpt(self.session, Address(b"y@mx.test")))

    async def test_discarded(self) -> None:
        """The client hears nothing of it before the end of the message."""
        played = self.play(E=packet(b"d"))
        self.assertIsInstance(await self.whole(), Discarded)
        self.policy.end(self.session)
        played.answers.update({b"M": packet(b"d"), b"E": CONTINUE})
        await self.connect()
        self.assertIsNone(await self.begin())
        self.assertIsNone(await self.policy.rcpt(self.session, Address(b"y@mx.test")))
        self.assertIsNone(await self.policy.data(self.session))
        self.assertIsInstance(await self.policy.content(self.session, content(MESSAGE)), Discarded)
        played.answers[b"M"] = CONTINUE
        self.assertIsNone(await self.transaction(content(MESSAGE)), "the next one goes")


class Changes(MilterCase):
    async def changed(self, *changes: bytes) -> Content:
        self.play(E=b"".join(changes) + CONTINUE)
        message = content(MESSAGE)
        self.opinion = await self.whole(message)
        return message

    async def test_header_and_body(self) -> None:
        message = await self.changed(
            packet(b"h", b"X-Last\0one\r\n two\0"),
            packet(b"i", b"\0\0\0\0X-First\0 1\0"),
            packet(b"m", b"\0\0\0\1subject\0new\0"),
            packet(b"m", b"\0\0\0\1From\0\0"),
            packet(b"b", b"line 1\r"),
            packet(b"b", b"\nline 2\r\n"),
        )
        self.assertIsNone(self.opinion)
        self.assertEqual(
            b"".join(message.blocks()),
            b"X-First: 1\nsubject: new\nX-Last: one\n two\n\nline 1\nline 2\n",
        )

    async def test_envelope(self) -> None:
        message = await self.changed(
            packet(b"e", b"<new@b.test>\0SIZE=1\0"),
            packet(b"+", b"<ann@mx.test>\0"),
            packet(b"2", b'<"a b"@mx.test>\0NOTIFY=NEVER\0'),
            packet(b"+", b"ann@mx.test\0"),
            packet(b"-", b"<joe@mx.test>\0"),
            packet(b"-", b"<nobody@mx.test>\0"),
            packet(b"q", b"odd\n\0"),
        )
        self.assertIsNone(self.opinion)
        self.assertEqual((message.sender, message.recipients), (b"new@b.test", [b"ann@mx.test", b"a b@mx.test"]))
        [line] = self.logged.find("wants to quarantine a message")
        self.assertTrue(line.startswith(f"{self.session.id}: "), line)  # so `qtwist log why` shows it with the client
        self.assertIn(" a message (odd?), ", line)

    async def test_what_cannot_be(self) -> None:
        """Nothing is half done that could pass for the filter's will: no answer, and what counts then."""
        played = self.play()
        for change, why in (
            (packet(b"h", b"X\0y\nBcc: z\0"), "a header field that cannot be"),
            (packet(b"h", b"X y\0z\0"), "a header field that cannot be"),
            (packet(b"h", b"X"), "incomplete"),
            (packet(b"m", b"\0"), "incomplete"),
            (packet(b"+", b"<>\0"), "a recipient that cannot be"),
            (packet(b"+", b"<" + b"x" * 2000 + b">\0"), "an address that cannot be"),
            (packet(b"e", b"<a\nb>\0"), "an address that cannot be"),
            (packet(b"z"), "it answered b'z'"),
        ):
            played.answers[b"E"] = change + CONTINUE
            self.check(await self.whole(), 451, asking._TEXT, why)
            self.policy.end(self.session)

    async def test_two_filters(self) -> None:
        """The second sees what the first has changed."""
        first = self.play(E=packet(b"h", b"X-One\0" + b"1\0") + CONTINUE)
        second = FakeFilter()
        second.answers.update({b"E": packet(b"h", b"X-Two\0" + b"2\0") + CONTINUE})
        port = reactor.listenTCP(0, second, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.put("milters", f"{self.path}\ninet:{port.getHost().port}@127.0.0.1\n")
        message = content(MESSAGE)
        self.assertIsNone(await self.whole(message))
        self.assertIn(b"LX-One\0" + b"1\0", second.heard)
        self.assertNotIn(b"LX-One\0" + b"1\0", first.heard)
        self.assertIn(b"X-One: 1\nX-Two: 2\n", bytes(message.fields))

    async def test_too_many(self) -> None:
        """A filter that does nothing but want, or tell of progress, is no filter."""
        played = self.play()
        for flood, why in (
            (packet(b"-") * 30_000, "it wants too much"),
            (packet(b"p") * 30_000, "it wants too much"),
            (packet(b"m", b"\0\0\0\x63X-A\0b\0") * 2000, "too many header fields"),
            (packet(b"h", b"A\0b\0") * 2000, "too many header fields"),
        ):
            played.answers[b"E"] = flood
            self.check(await self.whole(), 451, asking._TEXT, why)
            self.policy.end(self.session)

    async def test_it_speaks_first(self) -> None:
        """What comes before it was asked waits in the socket, not in memory."""
        played = self.play(C=CONTINUE + packet(b"p") * 200_000)
        await self.connect()
        [one] = self.policy._conversations[self.session.id].filters
        assert one.link is not None
        link = one.link
        await self.until(lambda: len(link._arrived) > 100)
        for _ in range(50):
            await self.until(lambda: True)
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn
        self.assertLess(len(link._arrived), 30_000)
        del played


class Others(MilterCase):
    """What one filter says is not for the others to find out by a dialogue that makes no sense."""

    def two(self, **answers: bytes) -> tuple[FakeFilter, FakeFilter]:
        first, second = self.play(**answers), FakeFilter()
        port = reactor.listenTCP(0, second, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.put("milters", f"{self.path}\n127.0.0.1:{port.getHost().port}\n")
        return first, second

    async def test_discarded_by_the_first(self) -> None:
        """The second hears nothing of a message of which it has not heard MAIL."""
        first, second = self.two(M=packet(b"d"))
        self.assertIsInstance(await self.whole(), Discarded)
        self.assertEqual([one[:1] for one in second.heard], [b"C"])
        first.answers[b"M"] = CONTINUE
        self.assertIsNone(await self.transaction(content(MESSAGE)))
        self.assertEqual(b"".join(one[:1] for one in second.heard), b"CMRTLLNBE")

    async def test_refused_by_the_first(self) -> None:
        """The second has heard the beginning: it is told that there is no end."""
        first, second = self.two(E=packet(b"r"))
        self.check(await self.whole(), 550, b"rejected (#5.7.1)", self.path)
        first.answers[b"E"] = CONTINUE
        self.assertIsNone(await self.transaction(content(MESSAGE)))
        self.assertEqual(b"".join(one[:1] for one in second.heard), b"CMRTAMRTLLNBE")

    async def test_accepted_by_another_policy(self) -> None:
        """One that comes before and says yes to MAIL keeps it from all filters, and so the whole message."""
        played = self.play()
        await self.connect()
        await self.begin()
        self.session.sender = Address(b"other@b.test")
        self.assertIsNone(await self.policy.rcpt(self.session, Address(b"joe@mx.test")))
        self.assertIsNone(await self.policy.data(self.session))
        self.assertIsNone(await self.policy.content(self.session, content(MESSAGE)))
        self.assertEqual(b"".join(one[:1] for one in played.heard), b"CM")


class WithoutAnswer(MilterCase):
    async def test_nobody_there(self) -> None:
        self.check(await self.connect(), 451, asking._TEXT, "no connection")
        self.policy.end(self.session)
        self.put("milters", f"{self.path} accept\n")
        self.assertIsNone(await self.whole())
        self.policy.end(self.session)
        self.put("milters", f"{self.path} reject\n")
        self.check(await self.connect(), 554, asking._REJECTED, "no connection")

    async def test_it_dies(self) -> None:
        """At any step; the rest of the connection has the same answer, or goes on without it."""
        played = self.play()
        for letter in (b"C", b"M", b"R", b"T", b"L", b"N", b"B", b"E"):
            played.answers[letter] = b""
            self.put("milters", f"{self.path}\n")
            self.check(await self.whole(), 451, asking._TEXT, "it closed the connection")
            if letter != b"C":
                self.check(await self.transaction(content(MESSAGE)), 451, asking._TEXT, "it closed the connection")
            self.policy.end(self.session)
            self.put("milters", f"{self.path} accept\n")
            self.assertIsNone(await self.whole())
            self.assertIsNone(await self.transaction(content(MESSAGE)))
            self.policy.end(self.session)
            played.answers[letter] = CONTINUE

    async def test_nonsense(self) -> None:
        for played, why in (
            (FakeFilter(version=9), "it speaks version 9"),
            (FakeFilter(actions=0x20), "it wants to do what there is not here"),
        ):
            port = reactor.listenTCP(0, played, interface="127.0.0.1")
            self.addCleanup(port.stopListening)
            self.put("milters", f"127.0.0.1:{port.getHost().port}\n")
            self.check(await self.connect(), 451, asking._TEXT, why)
            self.policy.end(self.session)
        other = self.play(M=b"\xff\xff\xff\xffc")
        self.put("milters", f"{self.path}\n")
        self.check(await self.whole(), 451, asking._TEXT, "a packet claims 4294967295 octets")
        self.policy.end(self.session)
        for answer, why in ((packet(b"y", b"250 ok\0"), "wants to reply"), (packet(b"f"), "shuts down")):
            other.answers[b"M"] = answer
            self.check(await self.whole(), 451, asking._TEXT, why)
            self.policy.end(self.session)

    async def test_it_hangs(self) -> None:
        """A command has 30 seconds, the end of the message as long as its line says."""
        clock = Clock()
        add_timeout = Deferred.addTimeout
        self.patch(Deferred, "addTimeout", lambda one, seconds, _clock, told: add_timeout(one, seconds, clock, told))
        played = self.play(M=None)
        self.put("milters", f"{self.path} timeout=90\n")
        for letter, seconds in ((b"M", 30), (b"E", 90)):
            played.heard.clear()
            played.answers.update({b"M": CONTINUE, letter: None})
            hanging = Deferred.fromCoroutine(self.whole())
            await self.until(lambda letter=letter: any(one[:1] == letter for one in played.heard))  # type: ignore[misc]
            clock.advance(seconds - 1)
            self.assertFalse(hanging.called)
            clock.advance(1)
            self.check(await hanging, 451, asking._TEXT, f"no answer in {seconds} seconds")
            self.policy.end(self.session)

    async def test_a_session_that_was_not_announced(self) -> None:
        """The file came when the client was connected already."""
        other = Session("y")
        self.assertIsNone(await self.policy.mail(other, Address(b"")))
        self.assertIsNone(await self.policy.helo(other, b"x"))
        self.assertIsNone(await self.policy.content(other, content(MESSAGE)))
        self.policy.end(other)
