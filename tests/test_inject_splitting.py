"""Tests of qtwist.inject.splitting (spec/qmail.md §19.2; Life with qmail G.11)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.inject import splitting
from qtwist.inject.splitting import HeaderTooLong, Splitter, is_field

messages = st.lists(
    st.sampled_from(
        [b"A: b\n", b"A: b\r\n", b" c\n", b"\n", b"\r\n", b"From x\n", b"no\n", b"x", b"\r", b"\n", b":", b"\0"]
    ),
    max_size=12,
).map(b"".join)


def split(*blocks: bytes) -> tuple[list[bytes], bytes]:
    splitter = Splitter(blocks)
    return list(splitter.fields()), b"".join(splitter.body())


class SplitterTests(SynchronousTestCase):
    def check(self, message: bytes, fields: list[bytes], body: bytes) -> None:
        self.assertEqual(split(message), (fields, body))

    def test_plain(self) -> None:
        self.check(b"A: b\nC:d\n\nbody\n\n", [b"A: b\n", b"C:d\n"], b"\nbody\n\n")

    def test_continuation(self) -> None:
        self.check(b"A: b\n c\n\td\nE: f\n \n\n", [b"A: b\n c\n\td\n", b"E: f\n \n"], b"\n")

    def test_end_in_header(self) -> None:
        """Then no empty line is added; a last line gets its LF."""
        self.check(b"A: b\nC: d", [b"A: b\n", b"C: d\n"], b"")
        self.check(b"A: b\n", [b"A: b\n"], b"")
        self.check(b"", [], b"")

    def test_last_line_of_body(self) -> None:
        self.check(b"A: b\n\nc\nd", [b"A: b\n"], b"\nc\nd\n")
        self.check(b"\nd", [], b"\nd\n")

    def test_mbox_line(self) -> None:
        self.check(b"From joe  today\nA: b\n\n", [b"MBOX-Line: From joe  today\n", b"A: b\n"], b"\n")
        self.check(b"A: b\nFrom joe  today\n\n", [b"A: b\n", b"MBOX-Line: From joe  today\n"], b"\n")

    def test_no_field(self) -> None:
        """The header ends before a line that is no field; an empty line parts it from the body."""
        self.check(b"X: y\nhello\nA: b\n", [b"X: y\n"], b"\nhello\nA: b\n")
        for line in (b"hello\n", b" A: b\n", b": b\n", b" : b\n", b"A b: c\n", b"\xe4: b\n", b"A\x7f: b\n", b"From\n"):
            self.check(line + b"A: b\n", [], b"\n" + line + b"A: b\n")

    def test_is_field(self) -> None:
        for line in (b"A:\n", b"A \t: b\n", b"!~:x\n", b"A:b:c\n"):
            self.assertTrue(is_field(line), line)
        for line in (b"A\n", b":\n", b"A\tb:\n", b"\x80:\n"):
            self.assertFalse(is_field(line), line)

    def test_crlf(self) -> None:
        """Where the header has CRLF line ends, the body's are taken for the same."""
        self.check(b"A: b\r\n c\r\n\r\nd\r\n\r\ne\rf\ng\r\r\n", [b"A: b\n c\n"], b"\nd\n\ne\rf\ng\r\n")
        self.check(b"A: b\r\n\r\nc\r", [b"A: b\n"], b"\nc\n")
        self.check(b"A: b\r\n\r\nc\r\n\r", [b"A: b\n"], b"\nc\n\n")
        self.check(b"\r\na\r\n", [], b"\na\n")
        self.check(b"hello\r\nyou\r\n", [], b"\nhello\nyou\n")

    def test_mixed_header(self) -> None:
        """As PHP's mail() makes it: some fields with LF, some with CRLF."""
        self.check(b"To: a\nX: y\r\nZ: z\n\nbody\r\nline\n", [b"To: a\n", b"X: y\n", b"Z: z\n"], b"\nbody\nline\n")

    def test_crlf_in_body_only(self) -> None:
        """A header with LF line ends vouches for the body: not one octet changes."""
        self.check(b"A: b\r\r\n", [b"A: b\r\n"], b"")
        self.check(b"A: b\n\nc\r\nd\r\n", [b"A: b\n"], b"\nc\r\nd\r\n")

    @given(messages, st.lists(st.integers(0, 60), max_size=8))
    def test_blocks(self, message: bytes, cuts: list[int]) -> None:
        """It does not matter in what blocks a message comes."""
        places = sorted({0, *(cut for cut in cuts if cut < len(message)), len(message)})
        blocks = [message[start:end] for start, end in pairwise(places)]
        self.assertEqual(split(*blocks), split(message))
        self.assertEqual(split(*(message[at : at + 1] for at in range(len(message)))), split(message))

    @given(messages)
    def test_nothing_is_lost(self, message: bytes) -> None:
        """But for CRs at line ends and what §19.2 adds, all octets come out, and in lines."""
        fields, body = split(message)
        self.assertTrue(all(field.endswith(b"\n") and is_field(field) for field in fields), fields)
        self.assertTrue(not body or (body.startswith(b"\n") and body.endswith(b"\n")))
        whole = b"".join(fields).replace(b"MBOX-Line: ", b"") + body
        self.assertEqual(whole.replace(b"\n", b"").replace(b"\r", b""), message.replace(b"\n", b"").replace(b"\r", b""))

    def test_limit(self) -> None:
        self.patch(splitting, "HEADER_LIMIT", 30)
        self.assertEqual(len(split(b"A: b\n" * 5 + b"\n", b"x" * 1000)[0]), 5)
        self.assertRaises(HeaderTooLong, split, b"A: b\n" * 6 + b"C: d\n")
        self.assertRaises(HeaderTooLong, split, b"A:", *(b"b" * 10,) * 4)

    def test_reads_no_more_than_the_header(self) -> None:
        """Whoever waits for the answer to a header does not have to send a body first."""

        def blocks():  # type: ignore[no-untyped-def]
            yield b"A: b\n\nc"
            raise AssertionError("read on")

        self.assertEqual(list(Splitter(blocks()).fields()), [b"A: b\n"])
