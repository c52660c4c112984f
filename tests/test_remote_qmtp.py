"""Remote deliveries by QMTP, over real sockets on loopback: spec/qmail.md §27, spec/related.md §13.1."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from qtwist.control import Control
from qtwist.mail.envelope import Envelope, Report
from qtwist.qmtpd.factory import QMTPFactory
from qtwist.remote import reports
from qtwist.remote.qmtp import is_qmtp_preference
from tests.memory_queue import MemoryQueue
from tests.scripted_smtp import ScriptedSMTP
from tests.test_remote_spawn import BODY, WIRE, SpawnerCase

reactor: Any = _reactor


class Scripted(Protocol):
    """Says `says` when it has got as many octets as `after`, and then closes, or keeps silent for ever."""

    factory: Any
    transport: Any

    def connectionMade(self) -> None:
        self.factory.connections.append(self)
        self.got = b""
        self.dataReceived(b"")

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        if len(self.got) >= self.factory.after and self.factory.says is not None:
            self.transport.write(self.factory.says)
            if self.factory.closes:
                self.transport.loseConnection()


class QMTPCase(SpawnerCase):
    def listen(self, factory: Any) -> int:
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    def scripted(self, says: bytes | None, after: int = 0, closes: bool = False) -> Any:
        factory: Any = Factory.forProtocol(Scripted)
        factory.noisy = False
        factory.says, factory.after, factory.closes, factory.connections = says, after, closes, []
        self.write("control/qmtproutes", b":[127.0.0.1]:%d\n" % self.listen(factory))
        return factory

    def qmtpd(self) -> MemoryQueue:
        """A server of ours that takes mail for example.org."""
        os.makedirs(f"{self.home}/other")
        for name, text in (("me", b"mx.test\n"), ("rcpthosts", b"example.org\n")):
            with open(f"{self.home}/other/{name}", "wb") as file:
                file.write(text)
        self.queue = MemoryQueue(self.clock)
        self.factory = QMTPFactory(Control(f"{self.home}/other"), self.queue, clock=self.clock)
        self.write("control/qmtproutes", b":[127.0.0.1]:%d\n" % self.listen(self.factory))
        return self.queue


class DeliveryTests(QMTPCase):
    async def deliver_and_close(self, *arguments: Any, **changes: Any) -> Report:
        report = await self.deliver(*arguments, **changes)
        while self.factory.connections:
            await self.turn()
        return report

    async def test_accepted(self) -> None:
        """The message arrives as it is, by its own line ends; the answer is in the report."""
        queue = self.qmtpd()
        report = await self.deliver_and_close(sender=b"a b@example.net")
        self.assertRegex(report.text, rb"^127\.0\.0\.1 accepted message\.\nRemote host said: ok \d+ qp 101\n$")
        self.assertEqual(report.letter, b"K")
        [(envelope, message)] = queue.accepted
        self.assertEqual(envelope, Envelope(b"a b@example.net", (b"joe@example.org",)))
        self.assertTrue(message.endswith(b"\n" + BODY))

    async def test_large(self) -> None:
        """A message of many blocks is streamed; one without a last line end stays without."""
        body = b"Subject: x\n\n" + b"0123456789\n" * 200_000 + b"no end"
        queue = self.qmtpd()
        report = await self.deliver_and_close(body=body)
        self.assertEqual(report.letter, b"K")
        self.assertTrue(queue.accepted[0][1].endswith(b"\n" + body))

    async def test_refused_recipient(self) -> None:
        self.qmtpd()
        report = await self.deliver_and_close(recipient=b"joe@elsewhere.test")
        self.assertEqual(report.letter, b"D")
        self.assertRegex(report.text, rb"^127\.0\.0\.1 does not like recipient\.\nRemote host said: .*\(#5\.7\.1\)\n")

    async def test_queue_trouble(self) -> None:
        self.qmtpd().refuse = 53
        self.assertEqual((await self.deliver_and_close()).letter, b"Z")


class FallbackTests(QMTPCase):
    async def test_nobody_listens(self) -> None:
        """SMTP is spoken where nobody answers QMTP: to the relay of qmtproutes, which smtproutes names too."""
        smtp = ScriptedSMTP()
        self.serve(smtp)
        self.resolver._addresses[b"relay.test"] = ("127.0.0.1",)
        closed = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        number = closed.getHost().port
        await closed.stopListening()
        self.write("control/qmtproutes", b"example.org:relay.test:%d\n" % number)
        report = await self.deliver()
        self.assertEqual(report.letter, b"K")
        self.assertEqual(smtp.messages, [WIRE])

    async def test_no_second_try(self) -> None:
        """Once there was a connection, SMTP is not tried: the message may have arrived."""
        server = self.scripted(b"", after=60, closes=True)
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"QMTP connection died. The message may arrive all the same: possible duplicate.", report.text)
        self.assertEqual(len(server.connections), 1)

    async def test_closed_before_the_end(self) -> None:
        """A package that was cut off counts for nothing: no duplicate to warn of."""
        self.scripted(b"", closes=True)
        report = await self.deliver(body=BODY * 500_000)
        self.assertEqual(report.letter, b"Z")
        self.assertNotIn(b"duplicate", report.text)

    async def test_nonsense(self) -> None:
        self.scripted(b"220 mx.test ESMTP\r\n")
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"its QMTP answer makes no sense.", report.text)
        self.assertIn(b"Remote host said: 220 mx.test ESMTP", report.text)

    async def test_answer_before_the_end(self) -> None:
        """Nobody can have accepted what was not sent yet."""
        self.scripted(b"3:Kok,")
        report = await self.deliver(body=BODY * 500_000)
        self.assertEqual(report.letter, b"Z")

    async def test_silence(self) -> None:
        server = self.scripted(None)
        result: Deferred[Report] = self.deliver()
        while not server.connections or not server.connections[0].got.endswith(b",,"):
            await self.turn()
        self.clock.advance(1199)
        self.assertNoResult(result)
        self.clock.advance(1)
        report = await result
        self.assertIn(b"QMTP connection died (nothing in 1200 seconds).", report.text)

    async def test_long_address(self) -> None:
        """What servers of QMTP refuse for its length goes by SMTP."""
        smtp = ScriptedSMTP()
        self.serve(smtp)
        server = self.scripted(b"3:Kok,")
        self.write("control/smtproutes", b":[127.0.0.1]:%d\n" % self.port)
        report = await self.deliver(sender=b"x" * 990 + b"@example.net")
        self.assertEqual((report.letter, len(server.connections)), (b"K", 0))

    async def test_wrong_route(self) -> None:
        self.write("control/qmtproutes", b"example.org:mx:qmtp\n")
        self.assertEqual(await self.deliver(), reports.unusable_route(b"example.org", b"qmtproutes"))

    async def test_mail_exchangers(self) -> None:
        """MX preferences tell who speaks QMTP; on its own port, where nobody answers here, so that SMTP follows."""
        ours, smtp = ScriptedSMTP(), ScriptedSMTP()
        self.serve(ours, smtp)  # 127.0.0.1 is this host's own address: 127.0.0.2 is another's
        self.write("control/smtproutes", b"example.org::%d\n" % self.port)
        asked: list[int] = []
        connect = reactor.connectTCP

        def watched(host: str, port: int, *arguments: Any, **options: Any) -> Any:
            asked.append(port)
            return connect(host, port, *arguments, **options)

        self.patch(reactor, "connectTCP", watched)
        self.resolver._mx[b"example.org"] = [(12801, b"mx.test")]
        self.resolver._addresses[b"mx.test"] = ("127.0.0.2",)
        report = await self.deliver()
        self.assertEqual((report.letter, asked), (b"K", [209, self.port]))

    def test_preferences(self) -> None:
        """§13.1: 12801, 12817, … 13041."""
        self.assertEqual([p for p in range(65536) if is_qmtp_preference(p)], list(range(12801, 13042, 16)))
