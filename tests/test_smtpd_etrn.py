"""ETRN and AutoTURN: who may ask for which mail, and what is answered (RFC 1985; spec/related.md §8.5)."""

from __future__ import annotations

import json
import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from qtwist.policy import Policy
from qtwist.smtpd.factory import SMTPFactory
from qtwist.smtpd.turning import ask
from tests.test_smtpd import ENVELOPE, Client, WithFactory


class Asking(SMTPFactory):
    """A factory without a queue manager."""

    outcome: Any = 3

    def send_for(self, domain: bytes) -> Deferred[int]:
        self.asked = [*getattr(self, "asked", []), domain]
        outcome = self.outcome
        if isinstance(outcome, Deferred):
            return outcome
        return fail(outcome) if isinstance(outcome, Exception) else succeed(outcome)


class EtrnCase(WithFactory):
    def setUp(self) -> None:
        super().setUp()
        self.put("etrnclients", "Far.test:10.0.0.9\nnet.test:10.0.0.0/24\nsix.test:2001:db8::/32\n")

    def made(self, *policies: Policy, host: str = "10.0.0.9") -> Client:
        factory = self.factory(*policies, kind=Asking)
        client = Client(factory, host=host)
        client.replies()
        return client


class Etrn(EtrnCase):
    def test_answers(self) -> None:
        """RFC 1985 §5.2: 250, 251, 253; 458 where the queue cannot be asked."""
        for outcome, wanted in (
            (3, b"253 2.0.0 ok, 3 messages for far.test are tried"),
            (0, b"251 2.0.0 ok, no mail waits for far.test"),
            (-1, b"250 2.0.0 ok, the mail for far.test is tried"),
            (OSError(111, "refused"), b"458 4.3.0 the queue cannot be asked now"),
        ):
            client = self.made()
            factory: Any = client.protocol.factory
            factory.outcome = outcome
            self.assertEqual(client.say(b"EHLO c")[-1], b"250 ETRN")
            self.assertEqual(client.say(b"ETRN FAR.test", b"NOOP"), [wanted, b"250 2.0.0 ok"])
            self.assertEqual(factory.asked, [b"far.test"])

    def test_whose_mail(self) -> None:
        """459 for other domains; clients that are not listed do not know of the command."""
        client = self.made()
        self.assertEqual(client.codes(b"ETRN far.test", b"ETRN net.test", b"ETRN six.test"), [253, 253, 459])
        client = self.made(host="10.0.0.8")
        self.assertEqual(client.codes(b"ETRN far.test", b"ETRN net.test"), [459, 253])
        client = self.made(host="2001:db8::5")
        self.assertEqual(client.codes(b"ETRN six.test"), [253])
        client = self.made(host="10.0.1.9")
        self.assertNotIn(b"ETRN", b"".join(client.say(b"EHLO c")))
        self.assertEqual(client.codes(b"ETRN far.test"), [502])

    def test_syntax(self) -> None:
        client = self.made()
        for argument in (b"", b"@far.test", b"#far", b"far.test x", b"far.test\0", b"-far", b"f\xe4r.test", b"x" * 256):
            self.assertEqual(client.codes(b"ETRN " + argument)[0] // 100, 5, argument)
        self.assertFalse(hasattr(client.protocol.factory, "asked"))
        self.assertEqual(client.codes(b"EHLO c", ENVELOPE[0], b"ETRN far.test")[-1], 503)

    def test_while_the_queue_is_asked(self) -> None:
        """Commands wait; a client that goes does not wait."""
        client = self.made()
        factory: Any = client.protocol.factory
        factory.outcome = waiting = Deferred()
        self.assertEqual(client.say(b"ETRN far.test", b"NOOP"), [])
        waiting.callback(1)
        self.assertEqual(client.replies(), [b"253 ok, 1 messages for far.test are tried", b"250 ok"])
        cancelled = []
        factory.outcome = Deferred(cancelled.append)
        client.say(b"ETRN far.test")
        client.hang_up()
        self.assertEqual(len(cancelled), 1)

    def test_behind_a_front_end(self) -> None:
        """It is the client of XCLIENT who may ask."""
        self.put("xclients", "10.0.1.1\n")
        client = self.made(host="10.0.1.1")
        self.assertEqual(client.codes(b"ETRN far.test", b"XCLIENT ADDR=10.0.0.9", b"ETRN far.test"), [502, 220, 253])
        self.assertEqual(client.codes(b"XCLIENT ADDR=10.0.1.9", b"ETRN far.test"), [220, 502])


class AutoTurn(EtrnCase):
    def test_after_the_connection(self) -> None:
        """Spec §8.5: after each session of the client, whatever it was for."""
        self.put("autoturn", "far.test:10.0.0.9\nother.test:10.0.0.9\nnet.test:10.0.0.8\n")
        client = self.made()
        factory: Any = client.protocol.factory
        client.say(b"QUIT")
        self.assertFalse(hasattr(factory, "asked"))
        client.hang_up()
        self.assertEqual(factory.asked, [b"far.test", b"other.test"])

    def test_others(self) -> None:
        self.put("autoturn", "far.test:10.0.0.8\n")
        client = self.made()
        client.hang_up()
        self.assertFalse(hasattr(client.protocol.factory, "asked"))

    def test_trouble(self) -> None:
        """It is logged, and concerns nobody else."""
        self.put("autoturn", "far.test:10.0.0.9\n")
        client = self.made()
        client.protocol.factory.outcome = OSError(2, "no such file")  # type: ignore[attr-defined]
        client.hang_up()
        client = self.made()
        self.put("autoturn", "far.test\n")
        client.hang_up()


class Desk(TestCase):
    """The question over a real socket."""

    async def asked(self, answer: bytes, depth: int = 0) -> tuple[int | str, bytes]:
        home = os.path.join(os.path.abspath(self.mktemp()), *["x" * 100] * depth)
        os.makedirs(os.path.join(home, "run"))
        heard = []

        class Manager(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)
                assert self.transport is not None
                self.transport.write(answer)
                self.transport.loseConnection()

        holder = os.open(os.path.join(home, "run"), os.O_RDONLY)
        self.addCleanup(os.close, holder)
        factory: Any = Factory.forProtocol(Manager)
        port = reactor.listenUNIX(f"/proc/self/fd/{holder}/control", factory)  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        try:
            count: int | str = await ask(reactor, home, b"far.test")
        except Exception as error:  # what it is differs
            count = str(error)
        return count, b"".join(heard)

    async def test_question(self) -> None:
        for depth in (0, 2):
            count, heard = await self.asked(b'12:{"count": 7},', depth)
            self.assertEqual(count, 7)
            self.assertEqual(json.loads(heard.partition(b":")[2][:-1]), {"op": "flush", "domain": "far.test"})

    async def test_no_answer(self) -> None:
        for answer in (b"", b"x", b"2:{},", b'14:{"error": "x"},', b"4:null,", b"x" * 5000):
            count, _ = await self.asked(answer)
            self.assertIsInstance(count, str)

    async def test_nobody_there(self) -> None:
        home = os.path.abspath(self.mktemp())
        for name in (home, os.path.join(home, *["x" * 100] * 2)):
            await self.assertFailure(ask(reactor, name, b"far.test"), Exception)
