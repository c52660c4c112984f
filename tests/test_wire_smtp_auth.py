"""AUTH in the engine of the SMTP server: the dialogues of RFC 4954, and the odd ones."""

from __future__ import annotations

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from qtwist.wire.sasl import Channel, Proof, SaltWanted, Secret
from qtwist.wire.sasl_mechanisms import Claimed, Confirmed
from qtwist.wire.smtp_events import Connect, Event, Helo, Mail
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import Limits, SMTPServer
from tests.scram_client import ScramClient
from tests.test_wire_scram import KEYS, SALT
from tests.test_wire_smtp_server import QUESTIONS, Transcript

WRONG = Reply(535, b"no (#5.7.8)")


def engine_with(*mechanisms: bytes, limits: Limits | None = None) -> SMTPServer:
    engine = SMTPServer(b"mx.test", limits=limits)
    engine.has_auth = True
    engine.mechanisms = mechanisms or (b"PLAIN", b"LOGIN")
    engine.channel = Channel(b"mx.test", lambda: b"nonce")
    return engine


def judge(event: Event) -> Reply | None:
    """Tim's password is tanstaaf."""
    if isinstance(event, Claimed) and isinstance(event.claim, Secret) and event.claim.password != b"tanstaaf":
        return WRONG
    return None


def answered(engine: SMTPServer) -> list[Event]:
    """Take all events; questions of AUTH are answered as by somebody who knows KEYS, all others by yes."""
    events: list[Event] = []
    while (event := engine.next_event()) is not None:
        events.append(event)
        if isinstance(event, SaltWanted):
            engine.salted(SALT, 4096)
        elif isinstance(event, Claimed) and isinstance(event.claim, Proof):
            signature = KEYS.signature_for(event.claim.message, event.claim.proof)
            if signature is None:
                engine.reply(WRONG)
            else:
                engine.confirm(signature)
        elif isinstance(event, (Claimed, Confirmed, *QUESTIONS)):
            engine.accept()
    return events


class Dialogues(Transcript):
    def test_plain(self) -> None:
        """RFC 4954 §4.1: with an initial response, without one, wrong first; then it is over (503)."""
        events = self.play(
            """
            S: 220 mx.test ESMTP
            C: EHLO client
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250-SIZE
            S: 250 AUTH PLAIN LOGIN
            C: AUTH PLAIN AHRpbQBndWVzcw==
            S: 535 5.7.8 no
            C: auth plain
            S: 334\\x20
            C: AHRpbQB0YW5zdGFhZg==
            S: 235 2.7.0 ok, go ahead
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==
            S: 503 5.5.1 you have logged in already
            C: STARTTLS
            S: 502 5.5.1 unimplemented
            C: MAIL FROM:<tim@mx.test> AUTH=tim+40mx.test
            S: 250 2.1.0 ok
            """,
            engine_with(),
            judge,
        )
        claims = [event for event in events if isinstance(event, Claimed)]
        self.assertEqual(claims[1], Claimed(Secret(b"", b"tim", b"tanstaaf"), "PLAIN"))

    def test_login(self) -> None:
        self.play(
            """
            S: 220 mx.test ESMTP
            C: AUTH LOGIN
            S: 334 VXNlcm5hbWU6
            C: dGlt
            S: 334 UGFzc3dvcmQ6
            C: dGFuc3RhYWY=
            S: 235 ok, go ahead (#2.7.0)
            """,
            engine_with(),
            judge,
        )

    def test_pipelined(self) -> None:
        """What stands behind AUTH is its next line, not a command; after it, commands go on."""
        engine = engine_with()
        engine.receive(b"AUTH LOGIN\\r\\ndGlt\\r\\ndGFuc3RhYWY=\\r\\nNOOP\\r\\n".replace(b"\\r\\n", b"\r\n"))
        answered(engine)
        self.assertEqual(
            [line[:3] for line in engine.data_to_send().split(b"\r\n")], [b"220", b"334", b"334", b"235", b"250", b""]
        )

    def test_scram(self) -> None:
        client = ScramClient(b"user", b"pencil")
        engine = engine_with(b"SCRAM-SHA-256")
        answered(engine)
        engine.receive(b"AUTH SCRAM-SHA-256 %b\r\n" % client.first())
        self.assertEqual(answered(engine), [SaltWanted(b"user")])
        challenge = engine.data_to_send().split(b"\r\n")[1]
        self.assertTrue(challenge.startswith(b"334 "))
        engine.receive(client.final(challenge[4:]) + b"\r\n")
        [event] = answered(engine)
        assert isinstance(event, Claimed)
        self.assertEqual(event.mechanism, "SCRAM-SHA-256")
        last = engine.data_to_send()
        self.assertTrue(last.startswith(b"334 ") and client.check(last[4:-2]), last)
        engine.receive(b"\r\n")
        self.assertEqual(answered(engine), [Confirmed()])
        self.assertEqual(engine.data_to_send(), b"235 ok, go ahead (#2.7.0)\r\n")

    def test_gone_back_on(self) -> None:
        """After the signature, too, the client can cancel: nobody has logged in."""
        client = ScramClient(b"user", b"pencil")
        engine = engine_with(b"SCRAM-SHA-256", b"PLAIN")
        engine.receive(b"AUTH SCRAM-SHA-256 %b\r\n" % client.first())
        answered(engine)
        engine.receive(client.final(engine.data_to_send().split(b"\r\n")[1][4:]) + b"\r\n")
        answered(engine)
        engine.data_to_send()
        engine.receive(b"*\r\nAUTH SCRAM-SHA-256\r\n")
        self.assertEqual(answered(engine), [])
        self.assertEqual(engine.data_to_send(), b"501 cancelled (#5.7.0)\r\n334 \r\n")
        engine.receive(b"*\r\nAUTH PLAIN AHRpbQBndWVzcw==\r\n")
        self.assertEqual(engine.next_event(), Claimed(Secret(b"", b"tim", b"guess"), "PLAIN"))

    def test_odd_ones(self) -> None:
        """RFC 4954 §4, §6: cancelled, empty, malformed, unknown, too many words, out of place."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: AUTH
            S: 501 a mechanism and at most one response are needed (#5.5.4)
            C: AUTH PLAIN a b
            S: 501 a mechanism and at most one response are needed (#5.5.4)
            C: AUTH DIGEST-MD5
            S: 504 no such mechanism (#5.5.4)
            C: AUTH SCRAM-SHA-256
            S: 504 no such mechanism (#5.5.4)
            C: AUTH PLAIN =
            S: 501 the response is malformed (#5.5.2)
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZg
            S: 501 the response is malformed (#5.5.2)
            C: AUTH LOGIN
            S: 334 VXNlcm5hbWU6
            C: *
            S: 501 cancelled (#5.7.0)
            C: AUTH LOGIN
            S: 334 VXNlcm5hbWU6
            C: dGlt\\0
            S: 500 the response is too long (#5.5.6)
            C: AUTH PLAIN YW5uAHRpbQB0YW5zdGFhZg==
            S: 535 nobody may act for somebody else (#5.7.8)
            C: MAIL FROM:<tim@mx.test>
            S: 250 ok
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==
            S: 503 not in the middle of a transaction (#5.5.1)
            C: RSET
            S: 250 flushed
            C: AUTH PLAIN dGltAHRpbQB0YW5zdGFhZg==
            S: 235 ok, go ahead (#2.7.0)
            """,
            engine_with(),
            judge,
        )

    def test_long_lines(self) -> None:
        """A response may be longer than a command; what is too long for both ends the exchange alone."""
        engine = engine_with()
        secret = b64encode(b"\0tim\0" + b"x" * 1024)
        engine.receive(b"AUTH PLAIN\r\n" + b64encode(b"t" * 1000 + b"\0" + b"t" * 1000 + b"\0" + b"x" * 1000) + b"\r\n")
        events = answered(engine)
        self.assertIsInstance(events[-1], Claimed)
        engine = engine_with()
        engine.receive(b"AUTH PLAIN\r\n" + b"A" * 5000 + b"\r\nAUTH PLAIN " + secret + b"\r\n")
        self.assertEqual([type(event) for event in answered(engine)], [Connect, Claimed])
        self.assertIn(b"\r\n500 the response is too long", engine.data_to_send())

    def test_not_here(self) -> None:
        """Without TLS, 538; where there is no AUTH at all, the command is unknown; before EHLO nothing is offered."""
        engine = engine_with()
        engine.mechanisms = ()
        self.play("S: 220 mx.test ESMTP\nC: AUTH PLAIN\nS: 538 ...", engine)
        engine = engine_with()
        engine.mechanisms = ()
        engine.secured = True
        self.play("S: 220 mx.test ESMTP\nC: AUTH PLAIN\nS: 503 ...", engine)
        self.play(
            "S: 220 mx.test ESMTP\nC: AUTH PLAIN\nS: 502 ...\nC: MAIL FROM:<a@b> AUTH=<>\nS: 555 ...",
            SMTPServer(b"mx.test"),
        )

    def test_not_offered(self) -> None:
        """RFC 4954 §4: what is known, but not offered on this connection, is 504."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==
            S: 504 no such mechanism (#5.5.4)
            C: AUTH SCRAM-SHA-256
            S: 504 no such mechanism (#5.5.4)
            """,
            engine_with(b"CRAM-MD5"),
        )

    def test_tls_comes_first(self) -> None:
        engine = engine_with()
        engine.offer_tls = True
        self.play(
            """
            S: 220 mx.test ESMTP
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZg==
            S: 235 ok, go ahead (#2.7.0)
            C: STARTTLS
            S: 503 TLS comes before AUTH (#5.5.1)
            """,
            engine,
        )

    def test_guessing_ends(self) -> None:
        self.play(
            """
            S: 220 mx.test ESMTP
            C: AUTH PLAIN AHRpbQBhAA==
            S: 501 ...
            C: AUTH PLAIN AHRpbQBh
            S: 535 ...
            C: AUTH PLAIN AHRpbQBi
            S: 421 too many errors, closing the connection (#4.7.0)
            C: NOOP
            """,
            engine_with(limits=Limits(logins=2)),
            judge,
        )

    def test_parameter(self) -> None:
        """RFC 4954 §5: AUTH= of MAIL is xtext or <>."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: MAIL FROM:<a@b> AUTH=<>
            S: 250 ok
            C: MAIL FROM:<a@b> AUTH=a+3Db
            S: 250 ok
            C: MAIL FROM:<a@b> AUTH=a+3db
            S: 501 ...
            C: MAIL FROM:<a@b> AUTH=
            S: 501 ...
            C: MAIL FROM:<a@b> AUTH
            S: 501 ...
            """,
            engine_with(),
        )

    @given(
        st.lists(st.binary(max_size=40), max_size=6), st.sampled_from([b"PLAIN", b"LOGIN", b"CRAM-MD5", b"EXTERNAL"])
    )
    def test_any_lines(self, lines: list[bytes], mechanism: bytes) -> None:
        """After any answers, a QUIT that is seen as a command is answered 221, and every reply is one line."""
        engine = engine_with(mechanism, limits=Limits(errors=1000))
        answered(engine)
        engine.receive(b"AUTH " + mechanism + b"\r\n" + b"".join(line.replace(b"\n", b"") + b"\r\n" for line in lines))
        answered(engine)
        engine.receive(b"*\r\nQUIT\r\n")
        answered(engine)
        self.assertTrue(engine.closed)
        self.assertTrue(engine.data_to_send().endswith(b"221 mx.test\r\n"))


class HeloTests(Transcript):
    def test_events(self) -> None:
        self.assertEqual(
            self.play("S: 220 mx.test ESMTP\nC: HELO a\nS: 250 mx.test\nC: MAIL FROM:<>\nS: 250 ok", engine_with()),
            [Connect(), Helo(b"a", False), Mail(b"", {})],
        )
