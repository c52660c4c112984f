"""STARTTLS and STLS in the engines of servers and of the client: nothing that was said before TLS counts after it (RFC
3207, RFC 2595 §4)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import pop3_events, smtp_client
from qtwist.wire.pop3_server import POP3Server
from qtwist.wire.smtp_client import Broken, NoTLS, Ready, Refused, SMTPClient, Stage
from qtwist.wire.smtp_events import Connect, Helo, StartTLS
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import SMTPServer
from tests.test_wire_smtp_server import Transcript


def offering() -> SMTPServer:
    engine = SMTPServer(b"mx.test")
    engine.offer_tls = True
    return engine


class SMTPTests(Transcript):
    def test_a_session(self) -> None:
        """RFC 3207 §4.2: it is offered until TLS has begun; greeting and transaction are forgotten."""
        engine = offering()
        events = self.play(
            """
            S: 220 mx.test ESMTP
            C: EHLO a
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250-SIZE
            S: 250 STARTTLS
            C: MAIL FROM:<a@b>
            S: 250 2.1.0 ok
            C: RCPT TO:<a@b>
            S: 250 2.1.5 ok
            C: starttls
            S: 220 2.0.0 ready to start TLS
            C: DATA
            S: 503 MAIL first (#5.5.1)
            C: EHLO a
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250-SIZE
            S: 250 REQUIRETLS
            C: STARTTLS
            S: 503 5.5.1 TLS has begun already
            """,
            engine,
        )
        self.assertEqual([event for event in events if isinstance(event, StartTLS)], [StartTLS()])
        self.assertTrue(engine.secured)

    def test_refusals(self) -> None:
        """RFC 3207 §4: 501 with a parameter, 454 when it cannot be now; without a certificate it is unknown."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: STARTTLS now
            S: 501 STARTTLS has no parameters (#5.5.4)
            C: STARTTLS
            S: 454 not now (#4.7.0)
            C: NOOP
            S: 250 ok
            """,
            offering(),
            lambda event: Reply(454, b"not now (#4.7.0)") if isinstance(event, StartTLS) else None,
        )
        self.play("S: 220 mx.test ESMTP\nC: STARTTLS\nS: 502 unimplemented (#5.5.1)")

    def ask(self, *pieces: bytes) -> SMTPServer:
        """An engine that has been given these pieces, and has been answered as far as that is possible."""
        engine = offering()
        self.assertEqual(engine.next_event(), Connect())
        engine.accept()
        for piece in pieces:
            engine.receive(piece)
            while (event := engine.next_event()) is not None:
                if isinstance(event, StartTLS):
                    break
                engine.accept()
        engine.data_to_send()
        return engine

    def test_injection(self) -> None:
        """What comes behind STARTTLS in the clear must never be taken as said through TLS (CVE-2011-0411)."""
        for pieces in (
            (b"STARTTLS\r\nMAIL FROM:<evil@a>\r\n",),
            (b"EHLO a\r\nSTARTTLS\r\nR",),
            (b"STARTTLS\r\n\r\n",),
            (b"STARTTLS\r\n", b"RSET\r\n"),
            (b"STARTTLS\r\n", b"\x16\x03\x01"),
        ):
            engine = self.ask(*pieces)
            if not engine.closed:
                engine.accept()
            self.assertTrue(engine.closed, pieces)
            self.assertFalse(engine.secured, pieces)
            self.assertIsNone(engine.next_event())

    def test_the_answer(self) -> None:
        engine = offering()
        engine.next_event()
        engine.accept()
        engine.receive(b"STARTTLS\r\nRSET\r\n")
        self.assertIsNone(engine.next_event())
        self.assertEqual(engine.data_to_send().split(b"\r\n")[1][:4], b"554 ")
        self.assertRaises(ValueError, self.ask(b"STARTTLS\r\n").reply, Reply(250, b"ok"))

    @given(st.binary(min_size=1, max_size=40), st.integers(0, 40))
    def test_nothing_survives(self, rest: bytes, cut: int) -> None:
        """Whatever follows, in one piece or two, before the answer: no event but the question, and no TLS."""
        text = b"STARTTLS\r\n" + rest
        engine = offering()
        engine.next_event()
        engine.accept()
        engine.receive(text[:cut])
        events = []
        for piece in (b"", text[cut:]):
            engine.receive(piece)
            while (event := engine.next_event()) is not None:
                events.append(event)
        if events:
            self.assertEqual(events, [StartTLS()])
            engine.accept()
        self.assertTrue(engine.closed)
        self.assertFalse(engine.secured)

    def test_from_the_start(self) -> None:
        """On an implicit port it is not offered (RFC 8314 §3.3)."""
        engine = offering()
        engine.secured = True
        engine.next_event()
        engine.accept()
        engine.receive(b"EHLO a\r\n")
        self.assertEqual(engine.next_event(), Helo(b"a", True))
        engine.accept()
        self.assertNotIn(b"STARTTLS", engine.data_to_send())


class POP3Tests(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine = POP3Server(b"<1.2@mx.test>")
        self.engine.offer_tls = True

    def say(self, text: bytes) -> list[pop3_events.Event]:
        self.engine.receive(text)
        events = []
        while (event := self.engine.next_event()) is not None:
            events.append(event)
            if isinstance(event, pop3_events.StartTLS):
                self.engine.start_tls()
        return events

    def test_a_session(self) -> None:
        """STLS is offered where passwords are not yet taken; what was said before is forgotten."""
        self.assertEqual(self.say(b"CAPA\r\nSTLS now\r\n"), [])
        before, _, rest = self.engine.data_to_send().partition(b".\r\n")
        self.assertIn(b"STLS\r\n", before)
        self.assertNotIn(b"USER\r\n", before.split(b"UTF8 USER\r\n")[1])
        self.assertEqual(rest, b"-ERR STLS has no argument\r\n")
        self.assertEqual(self.say(b"stls\r\n"), [pop3_events.StartTLS()])
        self.assertEqual(self.engine.data_to_send(), b"+OK begin TLS now\r\n")
        self.assertTrue(self.engine.secured)
        self.assertEqual(self.say(b"CAPA\r\nSTLS\r\n"), [])
        after = self.engine.data_to_send()
        self.assertNotIn(b"\r\nSTLS\r\n", after)
        self.assertIn(b"\r\nUSER\r\n", after)
        self.assertTrue(after.endswith(b"-ERR TLS has begun already\r\n"))

    def test_the_name_is_forgotten(self) -> None:
        self.engine = POP3Server(b"<1.2@mx.test>", plaintext=True)
        self.engine.offer_tls = True
        self.say(b"USER joe\r\n")
        self.say(b"STLS\r\n")
        self.engine.data_to_send()
        self.assertEqual(self.say(b"PASS secret\r\n"), [])
        self.assertEqual(self.engine.data_to_send(), b"-ERR USER first\r\n")

    def test_where_it_cannot_be(self) -> None:
        """Not without a certificate, not after a login."""
        self.engine.offer_tls = False
        self.say(b"STLS\r\n")
        self.assertEqual(self.engine.data_to_send(), b"-ERR no such command\r\n")
        digest = b"0" * 32
        self.engine.offer_tls = True
        self.say(b"APOP joe " + digest + b"\r\n")
        self.engine.logged_in(0)
        self.engine.data_to_send()
        self.say(b"STLS\r\n")
        self.assertEqual(self.engine.data_to_send(), b"-ERR you have logged in already\r\n")

    def test_injection(self) -> None:
        for text in (b"STLS\r\nCAPA\r\n", b"STLS\r\nU", b"STLS\r\n\n"):
            self.setUp()
            self.assertEqual(self.say(text), [])
            self.assertTrue(self.engine.closed and not self.engine.secured)
            self.assertTrue(self.engine.data_to_send().startswith(b"-ERR nothing may follow STLS"))
        self.setUp()
        self.engine.receive(b"STLS\r\n")
        self.assertEqual(self.engine.next_event(), pop3_events.StartTLS())
        self.engine.receive(b"CAPA\r\n")
        self.engine.start_tls()
        self.assertTrue(self.engine.closed and not self.engine.secured)


class ClientTests(SynchronousTestCase):
    """The client's side: EHLO, STARTTLS where it is offered, EHLO again (RFC 3207 §4)."""

    def engine(self, **how: bool) -> SMTPClient:
        """One that has said EHLO."""
        engine = SMTPClient(b"me.test", **(how or {"start_tls": True}))
        self.assertEqual(engine.receive(b"220 hi\r\n"), [])
        self.assertEqual(engine.take_output(), b"EHLO me.test\r\n")
        return engine

    def offered(self, **how: bool) -> SMTPClient:
        """One that has been offered STARTTLS, and takes it."""
        engine = self.engine(**how)
        self.assertEqual(engine.receive(b"250-mx\r\n250-PIPELINING\r\n250 starttls\r\n"), [])
        self.assertEqual(engine.take_output(), b"STARTTLS\r\n")
        return engine

    def test_a_session(self) -> None:
        """What was offered before counts no more."""
        engine = self.offered()
        self.assertEqual(engine.receive(b"220 go\r\n"), [smtp_client.StartTLS()])
        self.assertFalse(engine.idle)
        engine.secured()
        self.assertEqual(engine.take_output(), b"EHLO me.test\r\n")
        self.assertEqual(engine.receive(b"250-mx\r\n250-STARTTLS\r\n250 SIZE 5\r\n"), [Ready()])
        self.assertEqual(engine.take_output(), b"")
        self.assertEqual(engine.extensions, {b"STARTTLS": b"", b"SIZE": b"5"})
        self.assertRaises(RuntimeError, engine.secured)

    def test_where_there_is_none(self) -> None:
        """Not offered, refused, HELO only: the session goes on; not so when TLS is required."""
        plain = self.engine()
        self.assertEqual(plain.receive(b"250 mx\r\n"), [Ready()])
        refused = self.offered()
        self.assertEqual(refused.receive(b"454 no\r\n"), [Ready()])
        self.assertIn(b"PIPELINING", refused.extensions)
        helo = self.engine()
        helo.receive(b"502 no\r\n")
        self.assertEqual(helo.receive(b"250 mx\r\n"), [Ready()])

    def test_where_it_is_required(self) -> None:
        plain = self.engine(require_tls=True)
        self.assertEqual(plain.receive(b"250 mx\r\n"), [NoTLS(None)])
        refused = self.offered(require_tls=True)
        self.assertEqual(refused.receive(b"501 no\r\n"), [NoTLS(smtp_client.Reply(501, b"501 no\n"))])
        helo = self.engine(require_tls=True)
        helo.receive(b"502 no\r\n")
        helo.take_output()
        self.assertEqual(helo.receive(b"250 mx\r\n"), [NoTLS(None)])
        for engine in (plain, refused, helo):
            self.assertTrue(engine.closed)
            self.assertEqual(engine.take_output(), b"QUIT\r\n")

    def test_injection(self) -> None:
        """An answer that is there before TLS is not the server's (the other half of CVE-2011-0411)."""
        for rest in (b"250 injected\r\n", b"2", b"\r\n"):
            engine = self.offered()
            self.assertEqual(engine.receive(b"220 go\r\n" + rest), [Broken(Stage.STARTTLS, False, rest)])
            self.assertTrue(engine.closed)

    def test_odd_answers(self) -> None:
        self.assertEqual(self.offered().receive(b"250 ok\r\n"), [Broken(Stage.STARTTLS, False, b"250 ok")])
        bye = smtp_client.Reply(421, b"421 bye\n")
        self.assertEqual(self.offered().receive(b"421 bye\r\n"), [Refused(Stage.STARTTLS, bye)])
        waiting, handshaking = self.offered(), self.offered()
        handshaking.receive(b"220 go\r\n")
        for engine in (waiting, handshaking):
            self.assertEqual(engine.lost(), [Broken(Stage.STARTTLS, False)])

    @given(st.binary(max_size=60), st.booleans())
    def test_never_in_the_clear(self, answers: bytes, helo: bool) -> None:
        """Whatever a server answers, an engine that requires TLS is never ready without it."""
        engine = self.engine(require_tls=True)
        events = engine.receive(b"502 no\r\n") if helo else engine.receive(b"250-mx\r\n250 STARTTLS\r\n")
        events += engine.receive(answers) + engine.receive(b"\r\n220 ok\r\n250 ok\r\n")
        self.assertNotIn(Ready(), events)
        self.assertFalse(engine.idle)
