"""AUTH in the engine of the SMTP client: logging in at a relay (RFC 4954, 4616, 2195)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.sasl import Secret
from qtwist.wire.sasl_client import Login, choose
from qtwist.wire.sasl_mechanisms import exchange
from qtwist.wire.smtp_client import Broken, Event, NoLogin, Ready, SMTPClient, Stage, StartTLS
from tests.test_wire_smtp_client import JOE, Transcript, reply, to

TIM = Login(b"tim", b"tanstaaftanstaaf")
IN_CLEAR = Login(b"tim", b"tanstaaftanstaaf", in_clear=True)
GREETING = """
    S: 220 hello
    C: EHLO mx.example.net
    S: 250-mx.example.org
"""


class LoginTests(SynchronousTestCase):
    def play(
        self, text: str, login: Login = IN_CLEAR, encrypted: bool = False, greeting: str = GREETING
    ) -> list[Event]:
        self.transcript = Transcript(self, to(JOE))
        self.transcript.engine = SMTPClient(b"mx.example.net", login=login, encrypted=encrypted, start_tls=True)
        return self.transcript.play(greeting + text)

    def test_plain(self) -> None:
        """RFC 4954 §4.1, §5: in one go, and nobody is named as the author."""
        events = self.play(
            """
            S: 250 AUTH LOGIN PLAIN CRAM-MD5
            C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm
            S: 235 welcome
            *start
            C: MAIL FROM:<me@example.net> AUTH=<>
            """,
            TIM,
            encrypted=True,
        )
        self.assertEqual(events, [Ready()])

    def test_login(self) -> None:
        self.play(
            """
            S: 250 AUTH LOGIN
            C: AUTH LOGIN
            S: 334 VXNlcm5hbWU6
            C: dGlt
            S: 334 UGFzc3dvcmQ6
            C: dGFuc3RhYWZ0YW5zdGFhZg==
            S: 235 welcome
            """
        )
        self.assertTrue(self.transcript.engine.idle)

    def test_cram_md5(self) -> None:
        """RFC 2195 §3; in the clear it comes first."""
        self.play(
            """
            S: 250 AUTH PLAIN CRAM-MD5
            C: AUTH CRAM-MD5
            S: 334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+
            C: dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw
            S: 235 welcome
            """
        )
        self.assertTrue(self.transcript.engine.idle)

    def test_after_tls(self) -> None:
        """What is offered before TLS says nothing."""
        events = self.play(
            """
            S: 250-STARTTLS
            S: 250 AUTH CRAM-MD5
            C: STARTTLS
            S: 220 go
            """,
            TIM,
        )
        self.assertEqual(events, [StartTLS()])
        engine = self.transcript.engine
        engine.secured()
        self.assertEqual(engine.take_output(), b"EHLO mx.example.net\r\n")
        self.assertEqual(engine.receive(b"250-mx\r\n250 AUTH PLAIN\r\n"), [])
        self.assertEqual(engine.take_output(), b"AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n")

    def test_not_in_the_clear(self) -> None:
        """The password stays here, and so does the mail."""
        events = self.play("S: 250 AUTH PLAIN\nC: QUIT", TIM)
        self.assertEqual(events, [NoLogin("the connection is not encrypted")])
        self.assertTrue(self.transcript.engine.closed)

    def test_not_offered(self) -> None:
        for offer in ("SIZE", "AUTH", "AUTH GSSAPI DIGEST-MD5"):
            [event] = self.play(f"S: 250 {offer}\nC: QUIT")
            self.assertIsInstance(event, NoLogin)
        [event] = self.play(
            "S: 502 what?\nC: HELO mx.example.net\nS: 250 hello\nC: QUIT", greeting="S: 220 x\nC: EHLO mx.example.net\n"
        )
        self.assertIsInstance(event, NoLogin)

    def test_refused(self) -> None:
        for text in (b"535 wrong", b"454 later", b"501 malformed", b"235"):
            self.assertNotIn(b"tanstaaf", repr(IN_CLEAR).encode())
            events = self.play(
                f"""
                S: 250 AUTH PLAIN
                C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm
                S: {text.decode()}
                {"C: QUIT" if text != b"235" else ""}
                """
            )
            wanted = [NoLogin("the login was refused", reply(text))] if text != b"235" else [Ready()]
            self.assertEqual(events, wanted)

    def test_strange_challenges(self) -> None:
        """They are answered by cancelling; whatever comes then, nobody has logged in."""
        for challenges in (("334 a",), ("334 VXNlcm5hbWU6", "334 VXNlcm5hbWU6", "334 VXNlcm5hbWU6")):
            for last in ("501 cancelled", "235 welcome"):
                engine = SMTPClient(b"mx.example.net", login=IN_CLEAR)
                engine.receive(b"220 x\r\n")
                engine.receive(b"250-x\r\n250 AUTH LOGIN\r\n")
                for challenge in challenges:
                    engine.take_output()
                    self.assertEqual(engine.receive(challenge.encode() + b"\r\n"), [])
                self.assertEqual(engine.take_output(), b"*\r\n")
                [event] = engine.receive(last.encode() + b"\r\n")
                self.assertIsInstance(event, NoLogin)
                self.assertEqual(engine.take_output(), b"QUIT\r\n")

    def test_lost(self) -> None:
        events = self.play(
            "S: 250 AUTH PLAIN\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\n*lost",
        )
        self.assertEqual(events, [Broken(Stage.AUTH, False)])


class ExchangeTests(SynchronousTestCase):
    part = st.binary(min_size=1, max_size=40).filter(lambda octets: b"\0" not in octets)

    @given(part, part)
    def test_against_our_server(self, username: bytes, password: bytes) -> None:
        for mechanism in (b"PLAIN", b"LOGIN"):
            one = choose(Login(username, password), [mechanism], True)
            assert one is not None
            name, _, initial = one.command.partition(b" ")
            server = exchange(name)
            step = server.begin(initial or None)
            while isinstance(step, bytes):
                response = one.answer(step)
                assert response is not None
                step = server.respond(response)
            self.assertEqual(step, Secret(b"", username, password))

    @given(st.lists(st.binary(max_size=30), max_size=4), st.sampled_from([b"PLAIN", b"LOGIN", b"CRAM-MD5"]))
    def test_any_challenges(self, challenges: list[bytes], mechanism: bytes) -> None:
        one = choose(TIM, [mechanism], False)
        assert one is not None
        for challenge in challenges:
            response = one.answer(challenge)
            self.assertNotIn(b"\n", response or b"")
