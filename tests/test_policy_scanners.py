"""ClamAV and rspamd, played by servers that say what a test wants, over real sockets (doc/content.md)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from qtwist.control import Control, ControlError
from qtwist.mail.header_fields import HeaderFields
from qtwist.policy import asking
from qtwist.policy.base import Opinion, Refusal
from qtwist.policy.clamd import Clamd
from qtwist.policy.content import Content, Discarded
from qtwist.policy.rspamd import Rspamd, verdict
from qtwist.policy.surroundings import Surroundings
from qtwist.tls.info import TLSInfo
from tests.policy_tools import session
from tests.test_policy_content import MESSAGE, content
from tests.test_tls_servers import Logged

reactor: Any = _reactor


class ScannerCase(TestCase):
    """A home, and a service behind a socket in it."""

    timeout = 10

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-scanner-")
        self.addCleanup(shutil.rmtree, self.home)
        os.mkdir(f"{self.home}/control")
        self.control = Control(f"{self.home}/control")
        self.path = f"{self.home}/socket"
        self.logged = Logged(self)

    def put(self, name: str, text: str) -> None:
        with open(f"{self.home}/control/{name}.new", "w") as file:
            file.write(text)
        os.rename(f"{self.home}/control/{name}.new", f"{self.home}/control/{name}")

    def surroundings(self) -> Surroundings:
        return Surroundings(self.control, reactor)

    def serve(self, factory: Any) -> None:
        port = reactor.listenUNIX(self.path, factory)
        self.addCleanup(port.stopListening)

    def check(self, opinion: Opinion, code: int, text: bytes, reason: str) -> None:
        assert isinstance(opinion, Refusal)
        self.assertEqual((opinion.code, opinion.text), (code, text))
        self.assertIn(reason, opinion.reason)


class FakeClamd(Protocol):
    """Takes what INSTREAM brings, and answers as `answer` says; None: never."""

    transport: Any
    answer: ClassVar[bytes | None] = b"stream: OK\0"
    early: ClassVar[bool] = False
    streams: ClassVar[list[bytes]] = []

    def __init__(self) -> None:
        self.data = b""

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        if not self.early and not self.data.endswith(bytes(4)):
            return
        rest, stream = self.data.removeprefix(b"zINSTREAM\0"), b""
        while len(rest) >= 4 and (length := struct.unpack(">L", rest[:4])[0]):
            stream, rest = stream + rest[4 : 4 + length], rest[4 + length :]
        if self.early or rest == bytes(4):
            self.streams.append(stream)
            if self.answer is not None:
                self.transport.write(self.answer)
                if not self.early:
                    self.transport.loseConnection()


class ClamdTests(ScannerCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("clamd", f"{self.path}\n")
        FakeClamd.answer, FakeClamd.early, FakeClamd.streams = b"stream: OK\0", False, []
        self.policy = Clamd(self.surroundings())

    def look(self, message: Content | None = None) -> Deferred[Opinion]:
        return Deferred.fromCoroutine(self.policy.content(session(), message or content(MESSAGE)))

    def start(self) -> None:
        self.serve(Factory.forProtocol(FakeClamd))

    async def test_clean(self) -> None:
        """It gets the message octet for octet."""
        self.start()
        large = b"A: b\n\n" + b"0123456789" * 300_000
        self.assertIsNone(await self.look())
        self.assertIsNone(await self.look(content(large, 65536)))
        self.assertEqual(FakeClamd.streams, [MESSAGE, large])

    async def test_virus(self) -> None:
        self.start()
        FakeClamd.answer = b"stream: Eicar-\nTest FOUND\0"
        opinion = await self.look()
        self.check(opinion, 554, b"the message has a virus: Eicar-?Test (#5.7.1)", f"Eicar-?Test, by {self.path}")

    async def test_an_answer_in_two_pieces(self) -> None:
        class Slow(FakeClamd):
            def dataReceived(self, data: bytes) -> None:
                self.data += data
                if self.data.endswith(bytes(4)):
                    self.transport.write(b"stream: Eic")
                    reactor.callLater(0.05, self.transport.write, b"ar FOUND\0")

        self.serve(Factory.forProtocol(Slow))
        self.check(await self.look(), 554, b"the message has a virus: Eicar (#5.7.1)", "Eicar")

    async def test_an_early_answer(self) -> None:
        """Before it has got all: it knows enough."""
        self.start()
        FakeClamd.early, FakeClamd.answer = True, b"stream: X FOUND\0"
        opinion = await self.look(content(b"x" * 10_000_000, 65536))
        self.assertEqual(opinion.code if opinion else 0, 554)

    async def test_odd_answers(self) -> None:
        self.start()
        for answer, why in (
            (b"INSTREAM size limit exceeded. ERROR\0", "it said 'INSTREAM size limit exceeded. ERROR"),
            (b"", "it closed the connection without an answer"),
            (b"stream: OK FOUND OK", "it said"),
            (b"x" * 100_000, "it said 'xxxx"),
        ):
            FakeClamd.answer = answer
            self.check(await self.look(), 451, asking._TEXT, why)

    async def test_nobody_there(self) -> None:
        """tempfail, accept, reject; the log says what is wrong each time."""
        self.check(await self.look(), 451, asking._TEXT, "no connection")
        self.put("clamd", f"{self.path} accept\n")
        self.assertIsNone(await self.look())
        self.put("clamd", f"{self.path} reject\n")
        self.check(await self.look(), 554, asking._REJECTED, "no connection")
        self.put("clamd", "127.0.0.1:1\n")
        self.check(await self.look(), 451, asking._TEXT, "127.0.0.1:1: no connection")
        self.assertEqual(len(self.logged.find("is of no help: no connection")), 4)

    async def test_a_hanging_one(self) -> None:
        """It has as long as its line says; nothing is left open."""
        self.start()
        self.put("clamd", f"{self.path} timeout=7\n")
        FakeClamd.answer = None
        clock = Clock()
        addTimeout = Deferred.addTimeout
        self.patch(Deferred, "addTimeout", lambda one, seconds, _clock, told: addTimeout(one, seconds, clock, told))
        looking = self.look()
        while not FakeClamd.streams:
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn
        clock.advance(6.9)
        self.assertFalse(looking.called)
        clock.advance(0.2)
        self.check(await looking, 451, asking._TEXT, "no answer in 7 seconds")

    async def test_two(self) -> None:
        """Each line is asked; the first that finds something counts."""
        self.start()
        self.put("clamd", f"{self.path}\n{self.home}/other accept\n{self.path}\n")
        self.assertIsNone(await self.look())
        self.assertEqual(len(FakeClamd.streams), 2)

    async def test_a_wrong_file(self) -> None:
        self.put("clamd", "# here\nclamd\n")
        error = await self.assertFailure(self.look(), ControlError)
        self.assertIn("clamd, line 2: found 'clamd', expected a service", str(error))


class FakeRspamd(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.code = 200
        self.answer: Any = {"action": "no action"}
        self.asked: list[tuple[dict[bytes, list[bytes]], bytes]] = []

    def render_POST(self, request: Any) -> bytes:
        self.asked.append((dict(request.requestHeaders.getAllRawHeaders()), request.content.read()))
        assert request.path == b"/checkv2"
        request.setResponseCode(self.code)
        return self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()


class RspamdTests(ScannerCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("rspamd", f"{self.path}\n")
        self.policy = Rspamd(self.surroundings())
        self.rspamd = FakeRspamd()

    def look(self, message: Content | None = None) -> Deferred[Opinion]:
        about = session(TCPREMOTEHOST="cli.test")
        about.helo, about.user, about.tls = b"helo.test", b"joe", TLSInfo("TLSv1.3", "X")
        return Deferred.fromCoroutine(self.policy.content(about, message or content(MESSAGE)))

    async def test_what_it_hears(self) -> None:
        self.serve(Site(self.rspamd))
        self.assertIsNone(await self.look())
        [(headers, body)] = self.rspamd.asked
        self.assertEqual(body, MESSAGE)
        for name, value in (
            (b"From", b"a@b.test"),
            (b"Rcpt", b"joe@mx.test"),
            (b"Ip", b"192.0.2.9"),
            (b"Helo", b"helo.test"),
            (b"Hostname", b"cli.test"),
            (b"User", b"joe"),
            (b"Queue-Id", b"x"),
        ):
            self.assertEqual({key.title(): known for key, known in headers.items()}[name], [value], name)

    async def test_a_large_message(self) -> None:
        self.serve(Site(self.rspamd))
        large = b"A: b\n\n" + b"0123456789" * 300_000
        self.assertIsNone(await self.look(content(large, 65536)))
        self.assertEqual(self.rspamd.asked[0][1], large)

    async def test_answers_of_no_use(self) -> None:
        self.serve(Site(self.rspamd))
        for code, answer, why in (
            (500, b"oops", "it answered 500 'oops'"),
            (200, b"nonsense", "its answer makes no sense"),
            (200, b"[]", "its answer makes no sense"),
            (200, b"[" * 100_000, "its answer makes no sense"),
            (200, {"action": "dance"}, "unknown action 'dance'"),
            (200, {"action": "no action", "milter": {"add_headers": {"A\nB": "x"}}}, "makes no sense"),
            (200, b"x" * (2 << 20), "its answer has more than 1048576 octets"),
        ):
            self.rspamd.code, self.rspamd.answer = code, answer
            self.check(await self.look(), 451, asking._TEXT, why)

    async def test_nobody_there(self) -> None:
        self.check(await self.look(), 451, asking._TEXT, "no connection")


ADD_TIMEOUT = Deferred.addTimeout


class Stubborn(Protocol):
    """Takes a request, says `said`, and then nothing; with `deaf`, it stops reading. `lost` fires when it is left."""

    transport: Any
    said: ClassVar[bytes] = b""
    deaf: ClassVar[bool] = False
    asked: ClassVar[Deferred[None]]
    lost: ClassVar[Deferred[None]]

    def __init__(self) -> None:
        self.begun = False

    def dataReceived(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            self.transport.write(self.said)
            if self.deaf:
                self.transport.pauseProducing()
            self.asked.callback(None)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


class RspamdThatHangs(ScannerCase):
    """Wherever it stops: what its line says counts, and nothing of the conversation is left."""

    HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"

    async def hang(self, said: bytes, deaf: bool = False, otherwise: str = "tempfail") -> Opinion:
        self.put("rspamd", f"{self.path} timeout=7 {otherwise}\n")
        clock = Clock()
        self.patch(
            Deferred, "addTimeout", lambda one, seconds, _clock, told=None: ADD_TIMEOUT(one, seconds, clock, told)
        )
        Stubborn.said, Stubborn.deaf, Stubborn.asked, Stubborn.lost = said, deaf, Deferred(), Deferred()
        port = reactor.listenUNIX(self.path, Factory.forProtocol(Stubborn))
        message = content(b"A: b\n\n" + b"x" * 8_000_000, 65536) if deaf else content(MESSAGE)
        looking = Deferred.fromCoroutine(Rspamd(self.surroundings()).content(session(), message))
        await Stubborn.asked
        for _ in range(20):  # what it has said arrives
            turn: Deferred[None] = Deferred()
            reactor.callLater(0, turn.callback, None)
            await turn
        clock.advance(7)
        opinion = await looking
        if not deaf:
            await Stubborn.lost
        await port.stopListening()
        return opinion

    async def test_after_the_header(self) -> None:
        self.check(await self.hang(self.HALF), 451, asking._TEXT, "no answer in 7 seconds")
        self.assertIsNone(await self.hang(self.HALF, otherwise="accept"))
        self.check(await self.hang(self.HALF, otherwise="reject"), 554, asking._REJECTED, "no answer in 7 seconds")

    async def test_before_it(self) -> None:
        self.check(await self.hang(b""), 451, asking._TEXT, "no answer in 7 seconds")

    async def test_an_early_answer(self) -> None:
        """It reads no further: the answer counts, and nobody waits until it does."""
        answer = b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"action":"no action"}'
        before = len(reactor.getWriters())
        self.assertIsNone(await self.hang(answer, deaf=True))
        self.assertEqual(len(reactor.getWriters()), before)


class VerdictTests(SynchronousTestCase):
    """What rspamd's answers mean (its protocol description, "milter headers" included)."""

    def verdict(self, **answer: Any) -> tuple[int, bytes, bytes]:
        fields = HeaderFields(b"Subject: x\nX-Old: 1\n")
        opinion = verdict(answer, fields, "rspamd")
        return (opinion.code, opinion.text, bytes(fields)) if opinion else (0, b"", bytes(fields))

    def test_refusals(self) -> None:
        self.assertEqual(self.verdict(action="reject")[:2], (554, b"the message is taken for spam (#5.7.1)"))
        said = {"smtp_message": "Gtube\r\npattern"}
        self.assertEqual(self.verdict(action="reject", messages=said)[:2], (554, b"Gtube??pattern (#5.7.1)"))
        self.assertEqual(self.verdict(action="soft reject")[:2], (451, b"try again later (#4.7.1)"))
        self.assertIsInstance(verdict({"action": "discard"}, HeaderFields(b""), "r"), Discarded)

    def test_marks(self) -> None:
        old = b"Subject: x\nX-Old: 1\n"
        self.assertEqual(self.verdict(action="no action"), (0, b"", old))
        self.assertEqual(self.verdict(action="greylist"), (0, b"", old))  # it says "soft reject" when it is time
        self.assertEqual(self.verdict(action="add header"), (0, b"", old + b"X-Spam: Yes\n"))
        rewritten = self.verdict(action="rewrite subject", subject="***SPAM*** x")
        self.assertEqual(rewritten, (0, b"", b"Subject: ***SPAM*** x\nX-Old: 1\n"))

    def test_headers(self) -> None:
        milter = {
            "remove_headers": {"x-old": 0},
            "add_headers": {"X-A": "1", "X-B": {"value": "2\n 3", "order": 0}, "X-C": [{"value": "4"}, {"value": "5"}]},
        }
        _, _, fields = self.verdict(action="no action", milter=milter)
        self.assertEqual(fields, b"X-B: 2\n 3\nSubject: x\nX-A: 1\nX-C: 4\nX-C: 5\n")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda one: (
                st.lists(one)
                | st.dictionaries(
                    st.sampled_from(
                        ["action", "milter", "add_headers", "remove_headers", "subject", "value", "messages"]
                    ),
                    one,
                )
            ),
        )
    )
    def test_any_json(self, answer: Any) -> None:
        """Nothing but the errors that are named; a header stays one."""
        fields = HeaderFields(b"A: b\n")
        with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError):
            verdict(answer, fields, "r")
        self.assertEqual(HeaderFields(bytes(fields) + b"\n").length, len(bytes(fields)))
