"""SASL PLAIN and LOGIN, the server's side (RFC 4616 §4, RFC 4954 §4, RFC 5034 §4)."""

from __future__ import annotations

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.sasl import (
    CANCELLED,
    LONGEST_LINE,
    LONGEST_PART,
    MALFORMED,
    TOO_LONG,
    UNKNOWN,
    SASLError,
    Secret,
)
from qtwist.wire.sasl_mechanisms import exchange

part = st.binary(min_size=1, max_size=40).filter(lambda octets: b"\0" not in octets)


class SASLCase(SynchronousTestCase):
    def assertFails(self, kind: str, mechanism: bytes, *lines: bytes | None) -> None:
        talk = exchange(mechanism)
        with self.assertRaises(SASLError) as caught:
            talk.begin(lines[0])
            for line in lines[1:]:
                assert line is not None
                talk.respond(line)
        self.assertEqual(caught.exception.kind, kind)


class PlainTests(SASLCase):
    def test_rfc_4616_examples(self) -> None:
        """§4: a name without, then with an authorization identity."""
        found = exchange(b"PLAIN").begin(b64encode(b"\0tim\0tanstaaftanstaaf"))
        self.assertEqual(found, Secret(b"", b"tim", b"tanstaaftanstaaf"))
        found = exchange(b"PLAIN").begin(b64encode(b"Ursel\0Kurt\0xipj3plmq"))
        self.assertEqual(found, Secret(b"Ursel", b"Kurt", b"xipj3plmq"))

    def test_rfc_5034_example(self) -> None:
        """§6, and RFC 4954 §4.1: without an initial response there is an empty challenge."""
        talk = exchange(b"plain")
        self.assertEqual(talk.begin(None), b"")
        self.assertEqual(talk.respond(b"dGVzdAB0ZXN0AHRlc3Q="), Secret(b"test", b"test", b"test"))

    def test_malformed(self) -> None:
        for text in (b"", b"tim", b"\0tim", b"\0tim\0", b"\0\0secret", b"a\0b\0c\0", b"a\0b\0c\0d"):
            self.assertFails(MALFORMED, b"PLAIN", b64encode(text))
        self.assertFails(MALFORMED, b"PLAIN", b"=")
        for line in (
            b"!",
            b"AHRpbQBzZWNyZXQ",
            b"AHRpbQBzZW\nNyZXQ=",
            b"AHRpbQ BzZWNyZXQ=",
            b"AHRpbQBzZWNyZXQ==",
            b"====",
            b"\xff",
        ):
            self.assertFails(MALFORMED, b"PLAIN", line)

    def test_bounds(self) -> None:
        longest = b"x" * LONGEST_PART
        self.assertEqual(exchange(b"PLAIN").begin(b64encode(b"\0a\0" + longest)), Secret(b"", b"a", longest))
        self.assertFails(TOO_LONG, b"PLAIN", b64encode(b"\0a\0" + longest + b"x"))
        self.assertFails(TOO_LONG, b"PLAIN", b64encode(b"\0" + longest + b"x\0a"))
        self.assertFails(TOO_LONG, b"PLAIN", b"A" * (LONGEST_LINE + 1))

    def test_cancelled(self) -> None:
        """RFC 5034 §4: a lone asterisk."""
        self.assertFails(CANCELLED, b"PLAIN", None, b"*")

    @given(st.one_of(st.just(b""), part), part, part)
    def test_round_trip(self, authzid: bytes, username: bytes, password: bytes) -> None:
        line = b64encode(b"\0".join((authzid, username, password)))
        self.assertEqual(exchange(b"PLAIN").begin(line), Secret(authzid, username, password))

    @given(st.binary(max_size=200))
    def test_any_bytes(self, line: bytes) -> None:
        """Any line is a secret without NULs in its parts, or a SASLError."""
        for mechanism in (b"PLAIN", b"LOGIN"):
            talk = exchange(mechanism)
            try:
                talk.begin(None)
                found = talk.respond(line)
            except SASLError:
                continue
            if isinstance(found, Secret):
                self.assertNotIn(b"\0", b"".join(found))


class LoginTests(SASLCase):
    def test_dialogue(self) -> None:
        talk = exchange(b"LOGIN")
        self.assertEqual(talk.begin(None), b"VXNlcm5hbWU6")
        self.assertEqual(talk.respond(b64encode(b"tim")), b"UGFzc3dvcmQ6")
        self.assertEqual(talk.respond(b64encode(b"secret")), Secret(b"", b"tim", b"secret"))

    def test_initial_response(self) -> None:
        """Some clients send the name with AUTH."""
        talk = exchange(b"login")
        self.assertEqual(talk.begin(b64encode(b"tim")), b"UGFzc3dvcmQ6")
        self.assertEqual(talk.respond(b64encode(b"secret")), Secret(b"", b"tim", b"secret"))

    def test_errors(self) -> None:
        self.assertFails(CANCELLED, b"LOGIN", None, b"*")
        self.assertFails(CANCELLED, b"LOGIN", None, b64encode(b"tim"), b"*")
        self.assertFails(MALFORMED, b"LOGIN", b"=")
        self.assertFails(MALFORMED, b"LOGIN", None, b64encode(b"tim"), b"")
        self.assertFails(MALFORMED, b"LOGIN", None, b64encode(b"a\0b"))
        self.assertFails(TOO_LONG, b"LOGIN", None, b64encode(b"x" * (LONGEST_PART + 1)))


class OtherTests(SASLCase):
    def test_unknown_mechanism(self) -> None:
        for name in (b"", b"DIGEST-MD5", b"PLAIN "):
            with self.assertRaises(SASLError) as caught:
                exchange(name)
            self.assertEqual(caught.exception.kind, UNKNOWN)

    def test_no_password_is_shown(self) -> None:
        self.assertNotIn("tanstaaf", repr(Secret(b"", b"tim", b"tanstaaf")))
