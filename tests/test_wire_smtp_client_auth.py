"""AUTH in the engine of the SMTP client: logging in at a relay (RFC 4954, 4616, 2195)."""

from __future__ import annotations

import secrets
from base64 import b64decode, b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.scram import ScramKeys
from qtwist.wire.sasl import Channel, Proof, SaltWanted, Secret
from qtwist.wire.sasl_client import MOST_ITERATIONS, Login, choose
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

    def test_cram_md5_answers_once(self) -> None:
        """A relay that goes on asking, or asks for nothing, gets no more made with the password."""
        for asked in (("PDFAeD4=", "PDJAeD4="), ("",)):
            engine = SMTPClient(b"mx.example.net", login=IN_CLEAR)
            engine.receive(b"220 x\r\n")
            engine.receive(b"250-x\r\n250 AUTH CRAM-MD5\r\n")
            for challenge in asked:
                engine.take_output()
                self.assertEqual(engine.receive(b"334 %b\r\n" % challenge.encode()), [])
            self.assertEqual(engine.take_output(), b"*\r\n")

    def test_lost(self) -> None:
        events = self.play(
            "S: 250 AUTH PLAIN\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\n*lost",
        )
        self.assertEqual(events, [Broken(Stage.AUTH, False)])


class ScramTests(SynchronousTestCase):
    """RFC 5802 §3, §5; RFC 7677 §3 has the example."""

    NONCE = "rOprNGfwEbeRWgbNEkqO"
    FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    FINAL = (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    VERIFIER = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="

    def setUp(self) -> None:
        self.patch(secrets, "token_urlsafe", lambda size: self.NONCE)
        self.engine = SMTPClient(b"mx.example.net", login=Login(b"user", b"pencil"), encrypted=True)
        self.engine.receive(b"220 x\r\n")
        self.engine.receive(b"250-x\r\n250 AUTH SCRAM-SHA-256 CRAM-MD5\r\n")
        sent = self.engine.take_output().splitlines()[-1]
        self.assertEqual(sent, b"AUTH SCRAM-SHA-256 " + b64encode(b"n,,n=user,r=" + self.NONCE.encode()))

    def challenge(self, text: bytes) -> bytes:
        """What is said to a challenge, without its base64."""
        self.assertEqual(self.engine.receive(b"334 " + b64encode(text) + b"\r\n"), [])
        sent = self.engine.take_output()
        self.assertTrue(sent.endswith(b"\r\n"))
        return sent[:-2] if sent == b"*\r\n" else b64decode(sent[:-2])

    def test_example(self) -> None:
        self.assertEqual(self.challenge(self.FIRST), self.FINAL)
        self.assertEqual(self.challenge(self.VERIFIER), b"")
        self.assertEqual(self.engine.receive(b"235 welcome\r\n"), [Ready()])

    def test_impostor(self) -> None:
        """A relay that does not know the password's keys gets no mail, whatever it says, and whenever."""
        for said in ((), (self.FIRST,)):
            self.setUp()
            for text in said:
                self.challenge(text)
            [event] = self.engine.receive(b"235 welcome\r\n")
            assert isinstance(event, NoLogin)
            self.assertIn("impostor", event.why)
            self.assertEqual(self.engine.take_output(), b"QUIT\r\n")
        self.setUp()
        self.challenge(self.FIRST)
        self.assertEqual(self.challenge(self.VERIFIER.replace(b"6", b"7", 1)), b"*")
        self.assertIsInstance(self.engine.receive(b"235 welcome\r\n")[0], NoLogin)
        self.setUp()
        self.challenge(self.FIRST)
        self.challenge(self.VERIFIER)
        self.assertEqual(self.challenge(self.VERIFIER), b"*")
        self.setUp()
        self.challenge(self.FIRST)
        self.challenge(self.VERIFIER)
        self.assertEqual(self.challenge(self.FIRST), b"*")  # nothing more is made with the password

    def test_strange_challenges(self) -> None:
        """Another nonce, ours alone; too few iterations, and so many that they would keep others waiting."""
        for text in (
            b"",
            b"x",
            self.FIRST.replace(b"r=rO", b"r=rP"),
            self.FIRST.replace(b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", b""),
            self.FIRST.replace(b"i=4096", b"i=4095"),
            self.FIRST.replace(b"i=4096", b"i=%d" % (MOST_ITERATIONS + 1)),
            self.FIRST.replace(b"i=4096", b"i=" + b"9" * 99),
            self.FIRST.replace(b"s=W22Z", b"s=W 22Z"),
            b"m=x," + self.FIRST,
        ):
            self.setUp()
            self.assertEqual(self.challenge(text), b"*", text)

    def test_order(self) -> None:
        """Over TLS where it alone is left or CRAM-MD5 is the other; in the clear before all others."""
        names = [b"PLAIN", b"CRAM-MD5", b"SCRAM-SHA-256"]
        for offered, encrypted, wanted in (
            (names, True, b"PLAIN"),
            (names[1:], True, b"SCRAM-SHA-256"),
            (names, False, b"SCRAM-SHA-256"),
            (names[:2], False, b"CRAM-MD5"),
        ):
            one = choose(TIM, offered, encrypted)
            assert one is not None
            self.assertEqual(one.command.partition(b" ")[0], wanted)

    def test_what_it_cannot_have(self) -> None:
        """A password that is no text (RFC 4013) goes by another mechanism, or not at all."""
        odd = Login(b"tim", b"\xff")
        self.assertIsNone(choose(odd, [b"SCRAM-SHA-256"], True))
        one = choose(odd, [b"SCRAM-SHA-256", b"CRAM-MD5"], False)
        assert one is not None
        self.assertEqual(one.command, b"CRAM-MD5")


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

    @given(st.sampled_from(["joe", "a,b=c", "j\u00f6rg"]), st.sampled_from(["secret", "I\u00adX", "n=x,r=y,s="]))
    def test_scram_against_our_server(self, username: str, password: str) -> None:
        keys = ScramKeys.make(password.encode(), b"salt" * 4, 4096)
        one = choose(Login(username.encode(), password.encode()), [b"SCRAM-SHA-256"], True)
        assert one is not None
        name, _, initial = one.command.partition(b" ")
        server = exchange(name, Channel(b"mx.test", lambda: b"theirs"))
        self.assertEqual(server.begin(initial), SaltWanted(username.encode()))
        response = one.answer(server.salted(keys.salt, keys.iterations))
        assert response is not None
        claim = server.respond(response)
        assert isinstance(claim, Proof)
        self.assertFalse(one.complete)
        signature = keys.signature_for(claim.message, claim.proof)
        assert signature is not None
        self.assertEqual(one.answer(server.confirm(signature)), b"")
        self.assertTrue(one.complete)

    @given(
        st.lists(st.binary(max_size=30), max_size=4),
        st.sampled_from([b"PLAIN", b"LOGIN", b"CRAM-MD5", b"SCRAM-SHA-256"]),
    )
    def test_any_challenges(self, challenges: list[bytes], mechanism: bytes) -> None:
        one = choose(TIM, [mechanism], False)
        assert one is not None
        for challenge in challenges:
            response = one.answer(challenge)
            self.assertNotIn(b"\n", response or b"")
