"""A header as fields that can be changed (RFC 5322 §2.2)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.header_fields import HeaderFields

TEXT = b"Received: a\n\tb\nSubject:x\nto : joe\nreceived: c\n\nbody\n"


class HeaderFieldsTests(SynchronousTestCase):
    def test_fields(self) -> None:
        fields = HeaderFields(TEXT)
        self.assertEqual(
            fields.items(), [(b"Received", b" a\n\tb"), (b"Subject", b"x"), (b"to", b" joe"), (b"received", b" c")]
        )
        self.assertEqual(bytes(fields), TEXT[: fields.length])
        self.assertEqual(TEXT[fields.length :], b"\nbody\n")

    def test_what_ends_a_header(self) -> None:
        for text, length in (
            (b"", 0),
            (b"\nA: b\n", 0),
            (b"no field\nA: b\n", 0),
            (b"A: b\n>From x\n", 5),
            (b"A: b\n: x\n", 5),
            (b" folded\n", 0),
            (b"A: no line end", 0),
        ):
            self.assertEqual(HeaderFields(text).length, length, text)

    def test_changes(self) -> None:
        fields = HeaderFields(TEXT)
        fields.insert(0, b"X-First", b"1")
        fields.insert(99, b"X-Last", b"a\r\n b")
        fields.change(b"RECEIVED", 2, b" d")
        fields.change(b"subject", 1, None)
        fields.change(b"subject", 1, None)
        fields.change(b"X-New", 1, b"n")
        self.assertEqual(
            bytes(fields),
            b"X-First: 1\nReceived: a\n\tb\nto : joe\nRECEIVED: d\nX-Last: a\n b\nX-New: n\n",
        )
        fields.remove(b"received")
        self.assertEqual(bytes(fields), b"X-First: 1\nto : joe\nX-Last: a\n b\nX-New: n\n")

    def test_what_would_be_more_than_a_field(self) -> None:
        fields = HeaderFields(b"")
        for name, value in (
            (b"", b"x"),
            (b"a b", b"x"),
            (b"a:", b"x"),
            (b"a\n", b"x"),
            (b"a", b"x\nBcc: y"),
            (b"a", b"x\r\n\r\nbody"),
            (b"a", b"x\ry"),
            (b"a", b"x\0"),
            (b"a", b"x\n"),
        ):
            self.assertRaises(ValueError, fields.add, name, value)
        self.assertEqual(bytes(fields), b"")

    @given(
        st.binary(max_size=300) | st.lists(st.sampled_from([b"A: b", b" c", b"\n", b":", b"x", b"\t"])).map(b"".join)
    )
    def test_nothing_is_lost(self, text: bytes) -> None:
        fields = HeaderFields(text)
        self.assertEqual(bytes(fields), text[: fields.length])
        again = HeaderFields(bytes(fields))
        self.assertEqual(again.items(), fields.items())

    @given(st.binary(max_size=50), st.binary(max_size=50), st.integers(-1, 5))
    def test_what_was_put_in_is_one_field(self, name: bytes, value: bytes, index: int) -> None:
        fields = HeaderFields(b"A: 1\nB: 2\n")
        try:
            fields.insert(index, name, value)
        except ValueError:
            self.assertEqual(bytes(fields), b"A: 1\nB: 2\n")
            return
        self.assertEqual(HeaderFields(bytes(fields) + b"\n").items(), fields.items())
        self.assertEqual(len(fields.items()), 3)
