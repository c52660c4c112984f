"""SCRAM-SHA-256, CRAM-MD5 and EXTERNAL, the server's side (RFC 5802, 7677, 2195, 4422)."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.credentials import APOPCredentials, CRAMCredentials
from qtwist.auth.scram import ScramKeys
from qtwist.wire.sasl import (
    CANCELLED,
    MALFORMED,
    OTHER_CHANNEL,
    Certificate,
    Channel,
    Digest,
    Proof,
    SaltWanted,
    SASLError,
    Secret,
)
from qtwist.wire.sasl_mechanisms import MECHANISMS, exchange, offered
from qtwist.wire.sasl_prep import prepared
from tests.scram_client import ScramClient

SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
KEYS = ScramKeys.make(b"pencil", SALT, 4096)
NONCE = rb"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
EXPORTED = {b"tls-exporter": bytes(32), b"tls-server-end-point": b"\1" * 32}


def channel(bindings: dict[bytes, bytes] | None = None) -> Channel:
    return Channel(b"mx.test", lambda: NONCE, bindings or {})


class VectorTests(SynchronousTestCase):
    def test_rfc_7677(self) -> None:
        """§3, word by word."""
        talk = exchange(b"scram-sha-256", channel())
        self.assertEqual(talk.begin(None), b"")
        self.assertEqual(talk.respond(b64encode(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")), SaltWanted(b"user"))
        challenge = talk.salted(SALT, 4096)
        self.assertEqual(
            b64decode(challenge),
            rb"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        )
        claim = talk.respond(
            b64encode(
                rb"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                rb"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
            )
        )
        assert isinstance(claim, Proof)
        signature = KEYS.signature_for(claim.message, claim.proof)
        assert signature is not None
        last = talk.confirm(signature)
        self.assertEqual(b64decode(last), b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
        self.assertEqual(talk.respond(b""), claim)

    def test_rfc_2195(self) -> None:
        """§3: tim, who has the password tanstaaftanstaaf."""
        talk = exchange(b"CRAM-MD5", Channel(b"postoffice.reston.mci.net", lambda: b"1896.697170952"))
        self.assertEqual(talk.begin(None), b"PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+")
        claim = talk.respond(b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw")
        self.assertEqual(
            claim,
            Digest(b"tim", b"<1896.697170952@postoffice.reston.mci.net>", b"b913a602c7eda7a495b4e6e7334d3890"),
        )

    def test_rfc_4013(self) -> None:
        """§3: SASLprep; what it maps, and what it forbids."""
        for given_text, wanted in (
            ("I\u00adX", "IX"),
            ("user", "user"),
            ("USER", "USER"),
            ("\u00aa", "a"),
            ("\u2168", "IX"),
            ("a\u00a0b", "a b"),
        ):
            self.assertEqual(prepared(given_text.encode()), wanted.encode())
        self.assertEqual(prepared("\u06271\u0628".encode()), "\u06271\u0628".encode())
        for text in ("\u0007", "\u0627\u0031", "1\u0627", "\u0627a\u0628", "\u00ad", "\ue000"):
            self.assertRaises(ValueError, prepared, text.encode())
        self.assertRaises(ValueError, prepared, b"\xff")


class ScramTests(SynchronousTestCase):
    def talk(self, client: ScramClient, mechanism: bytes, bindings: dict[bytes, bytes] | None = None) -> bool:
        """Whether the exchange ends with a right proof, that both sides believe in."""
        talk = exchange(mechanism, channel(bindings))
        talk.begin(client.first())
        claim = talk.respond(client.final(talk.salted(SALT, 4096)))
        assert isinstance(claim, Proof)
        signature = KEYS.signature_for(claim.message, claim.proof)
        return signature is not None and client.check(talk.confirm(signature)) and talk.respond(b"=") == claim

    def assertFails(self, kind: str, client: ScramClient, mechanism: bytes, bindings: dict[bytes, bytes]) -> None:
        with self.assertRaises(SASLError) as caught:
            self.talk(client, mechanism, bindings)
        self.assertEqual(caught.exception.kind, kind)

    def test_right_and_wrong(self) -> None:
        self.assertTrue(self.talk(ScramClient(b"user", b"pencil"), b"SCRAM-SHA-256"))
        self.assertFalse(self.talk(ScramClient(b"user", b"pencils"), b"SCRAM-SHA-256"))

    def test_channel_binding(self) -> None:
        """RFC 5802 §6: bound to what both ends see, and to nothing else."""
        for kind, data in EXPORTED.items():
            client = ScramClient(b"user", b"pencil", binding=(kind, data))
            self.assertTrue(self.talk(client, b"SCRAM-SHA-256-PLUS", EXPORTED))
        plus = b"SCRAM-SHA-256-PLUS"
        stranger = ScramClient(b"user", b"pencil", binding=(b"tls-exporter", b"\2" * 32))
        self.assertFails(OTHER_CHANNEL, stranger, plus, EXPORTED)
        self.assertFails(OTHER_CHANNEL, ScramClient(b"user", b"pencil", binding=(b"tls-unique", b"")), plus, EXPORTED)
        self.assertFails(MALFORMED, ScramClient(b"user", b"pencil"), plus, EXPORTED)
        self.assertFails(MALFORMED, stranger, b"SCRAM-SHA-256", EXPORTED)

    def test_downgrade(self) -> None:
        """RFC 5802 §6: a client that could have bound it, and was not offered to, has been lied to."""
        lied_to = ScramClient(b"user", b"pencil", flag=b"y")
        self.assertFails(OTHER_CHANNEL, lied_to, b"SCRAM-SHA-256", EXPORTED)
        self.assertTrue(self.talk(lied_to, b"SCRAM-SHA-256"))

    def test_names(self) -> None:
        """RFC 5802 §5.1: a comma and an equals sign are written as =2C and =3D."""
        talk = exchange(b"SCRAM-SHA-256", channel())
        self.assertEqual(talk.begin(ScramClient(b"a,b=c", b"x").first()), SaltWanted(b"a,b=c"))

    def test_malformed(self) -> None:
        for first in (
            b"",
            b"n,,",
            b"n,,n=,r=abc",
            b"n,,n=a=b,r=abc",
            b"n,,n=a=2c,r=abc",
            b"n,,n=user,r=",
            b"n,,n=user,r=a b",
            b"n,,m=x,n=user,r=abc",
            b"n,n=user,r=abc",
            b"x,,n=user,r=abc",
            b"n,,n=us\0er,r=abc",
            b"n,,n=user,r=" + b"x" * 257,
        ):
            with self.assertRaises(SASLError, msg=first) as caught:
                exchange(b"SCRAM-SHA-256", channel()).begin(b64encode(first) or b"=")
            self.assertEqual(caught.exception.kind, MALFORMED)
        nonce = b"r=rOprNGfwEbeRWgbNEkqO" + NONCE
        proof = b",p=" + b64encode(bytes(32))
        for final, kind in (
            (b"c=biws," + nonce, MALFORMED),
            (b"c=biws,r=rOprNGfwEbeRWgbNEkqO" + proof, MALFORMED),
            (b"c=biws," + nonce + b",p=" + b64encode(bytes(31)), MALFORMED),
            (b"c=biw," + nonce + proof, MALFORMED),
            (b"c=eSws," + nonce + proof, OTHER_CHANNEL),
        ):
            talk = exchange(b"SCRAM-SHA-256", channel())
            talk.begin(ScramClient(b"user", b"x").first())
            talk.salted(SALT, 4096)
            with self.assertRaises(SASLError, msg=final) as caught:
                talk.respond(b64encode(final))
            self.assertEqual(caught.exception.kind, kind)

    def test_after_the_signature(self) -> None:
        """The client can still go back on it; and it has nothing to say."""
        for line, kind in ((b"*", CANCELLED), (b64encode(b"more"), MALFORMED)):
            client = ScramClient(b"user", b"pencil")
            talk = exchange(b"SCRAM-SHA-256", channel())
            talk.begin(client.first())
            talk.respond(client.final(talk.salted(SALT, 4096)))
            talk.confirm(bytes(32))
            with self.assertRaises(SASLError) as caught:
                talk.respond(line)
            self.assertEqual(caught.exception.kind, kind)

    @given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20))
    def test_any_password(self, password: str) -> None:
        keys = ScramKeys.make(password.encode(), SALT, 4096)
        self.assertEqual(ScramKeys.parse(keys.to_bytes()), keys)
        client = ScramClient(b"user", password.encode())
        talk = exchange(b"SCRAM-SHA-256", channel())
        talk.begin(client.first())
        claim = talk.respond(client.final(talk.salted(SALT, 4096)))
        assert isinstance(claim, Proof)
        self.assertEqual(keys.signature_for(claim.message, claim.proof), client.signature)

    @given(st.sampled_from(sorted(MECHANISMS)), st.lists(st.binary(max_size=60), max_size=4), st.booleans())
    def test_any_bytes(self, mechanism: bytes, lines: list[bytes], encoded: bool) -> None:
        """Whatever comes, there is a challenge, a question, a claim, or a SASLError."""
        talk = exchange(mechanism, channel(EXPORTED))
        try:
            step = talk.begin(None)
            for line in lines:
                if isinstance(step, SaltWanted):
                    step = talk.salted(SALT, 4096)
                elif isinstance(step, (Secret, Digest, Proof, Certificate)):
                    break
                step = talk.respond(b64encode(line) if encoded else line)
        except SASLError:
            return
        self.assertIsInstance(step, (bytes, SaltWanted, Secret, Digest, Proof, Certificate))


class KeyTests(SynchronousTestCase):
    def test_text(self) -> None:
        text = KEYS.to_bytes()
        self.assertTrue(text.startswith(b"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"))
        for wrong in (b"", text[:-1], text + b"x", text.replace(b"$4096:", b"$4095:"), text.replace(b"W22", b"W2")):
            self.assertRaises(ValueError, ScramKeys.parse, wrong)

    def test_proofs_have_one_size(self) -> None:
        keys = ScramKeys.make(b"secret", bytes(16), 4096)
        client_key = hmac.digest(hashlib.pbkdf2_hmac("sha256", b"secret", bytes(16), 4096), b"Client Key", "sha256")
        signature = hmac.digest(hashlib.sha256(client_key).digest(), b"message", "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self.assertIsNotNone(keys.signature_for(b"message", proof))
        for wrong in (proof + b"x", proof[:-1], b"", bytes(32)):
            self.assertIsNone(keys.signature_for(b"message", wrong))

    def test_nothing_is_shown(self) -> None:
        claim = Proof(b"user", b"message", b"proof")
        self.assertNotIn("proof=", repr(claim))
        for credentials in (APOPCredentials(b"user", b"<1@x>", b"d1"), CRAMCredentials(b"user", b"<1@x>", b"d1")):
            self.assertNotIn("d1", repr(credentials))
        self.assertNotIn("stored_key", repr(KEYS))


class OtherTests(SynchronousTestCase):
    def test_cram_md5(self) -> None:
        """RFC 4954 §4: no initial response where the server speaks first."""
        for lines in ((b"=",), (b64encode(b"tim " + b"0" * 32),)):
            with self.assertRaises(SASLError) as caught:
                exchange(b"CRAM-MD5", channel()).begin(*lines)
            self.assertEqual(caught.exception.kind, MALFORMED)
        for response in (b"", b"tim", b"tim " + b"0" * 31, b" " + b"0" * 32, b"tim " + b"g" * 32):
            talk = exchange(b"CRAM-MD5", channel())
            talk.begin(None)
            self.assertRaises(SASLError, talk.respond, b64encode(response))

    def test_external(self) -> None:
        self.assertEqual(exchange(b"EXTERNAL").begin(b"="), Certificate(b""))
        self.assertEqual(exchange(b"EXTERNAL").begin(b64encode(b"ann@x")), Certificate(b"ann@x"))
        talk = exchange(b"EXTERNAL")
        self.assertEqual(talk.begin(None), b"")
        self.assertEqual(talk.respond(b""), Certificate(b""))

    def test_offered(self) -> None:
        working = (b"SCRAM-SHA-256", b"EXTERNAL", b"PLAIN")
        self.assertEqual(offered(working, bound=False, certified=False), (b"SCRAM-SHA-256", b"PLAIN"))
        self.assertEqual(
            offered(working, bound=True, certified=True),
            (b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256", b"EXTERNAL", b"PLAIN"),
        )
        self.assertEqual(offered((b"PLAIN",), bound=True, certified=True), (b"PLAIN",))
