"""Outgoing message bodies: spec/qmail.md §15.5, §26.3, §26.5; RFC 5321 §4.5.2."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.dot_stuffing import DotStuffer
from qtwist.wire.smtp_body import BodyDecoder

# Bytes that matter come often.
bodies = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"x", b"\r\n", b"\n.", b"\xe9"]), max_size=30).map(
    b"".join
)


def encode(*chunks: bytes) -> bytes:
    stuffer = DotStuffer()
    return b"".join([stuffer.encode(chunk) for chunk in chunks] + [stuffer.finish()])


def reference(body: bytes) -> bytes:
    """The rules, one line at a time."""
    lines = re.split(rb"\r\n|\r|\n", body.replace(b"\0", b" "))
    if lines[-1] == b"":
        lines.pop()
    stuffed = [b"." + line if line.startswith(b".") else line for line in lines]
    return b"".join(line + b"\r\n" for line in [*stuffed, b"."])


class DotStuffingTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """LF becomes CRLF, a dot at the start of a line is doubled, a dot elsewhere is not (§15.5)."""
        self.assertEqual(encode(b".a\n..\n.\nb.c\n"), b"..a\r\n...\r\n..\r\nb.c\r\n.\r\n")

    def test_empty(self) -> None:
        self.assertEqual(encode(), b".\r\n")

    def test_crlf_stays(self) -> None:
        """A stored CRLF leaves as CRLF, not as CRCRLF (§15.5)."""
        self.assertEqual(encode(b"a\r\nb\r\n"), b"a\r\nb\r\n.\r\n")

    def test_partial_last_line(self) -> None:
        """It is completed; qmail fails such mail for good (§26.5)."""
        self.assertEqual(encode(b"a\nb"), b"a\r\nb\r\n.\r\n")
        self.assertEqual(encode(b"a\r"), b"a\r\n.\r\n")

    def test_smuggling(self) -> None:
        """The payload of §26.3 leaves as text of the message."""
        self.assertEqual(
            encode(b"x\r.\nMAIL FROM:<evil@example.org>\n"), b"x\r\n..\r\nMAIL FROM:<evil@example.org>\r\n.\r\n"
        )

    def test_nul(self) -> None:
        """Without it, a receiver that drops NUL would see a dot alone."""
        self.assertEqual(encode(b"\0.\n"), b" .\r\n.\r\n")

    def test_split_line_end(self) -> None:
        self.assertEqual(encode(b"a\r", b"\nb", b"\r", b".", b"\n", b".", b"."), b"a\r\nb\r\n..\r\n...\r\n.\r\n")

    @given(bodies)
    def test_reference(self, body: bytes) -> None:
        self.assertEqual(encode(body), reference(body))

    @given(st.lists(bodies, max_size=6))
    def test_any_split(self, chunks: list[bytes]) -> None:
        """Chunks split anywhere give the same bytes; so do single bytes."""
        body = b"".join(chunks)
        whole = encode(body)
        self.assertEqual(encode(*chunks), whole)
        self.assertEqual(encode(*[body[i : i + 1] for i in range(len(body))]), whole)

    @given(bodies)
    def test_never_an_early_end(self, body: bytes) -> None:
        """CR and LF leave in pairs only, and a line of one dot is the last line (§26.3)."""
        wire = encode(body)
        self.assertIsNone(re.search(rb"\r(?!\n)|(?<!\r)\n|\0", wire))
        self.assertEqual(wire.split(b"\r\n").index(b"."), wire.count(b"\r\n") - 1)

    @given(bodies.filter(lambda body: b"\r" not in body and b"\0" not in body))
    def test_round_trip(self, body: bytes) -> None:
        """Our own server's decoder gives back what was stored."""
        text, rest = BodyDecoder().feed(encode(body))
        self.assertEqual((text, rest), (body if body.endswith(b"\n") or not body else body + b"\n", b""))
