"""Netstrings: spec/qmail.md §27."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.netstring import NetstringError, NetstringReader, TooLong, encode


def read(data: bytes, limit: int = 1000, step: int = 0) -> tuple[bytes, bytes, bool]:
    """Contents, what is left behind the netstring, and whether it has ended; fed `step` octets at a time (0: all)."""
    reader = NetstringReader(limit)
    contents = b""
    at = 0
    while at < len(data) and not reader.ended:
        piece, at = reader.feed(data, at, min(len(data), at + step) if step else len(data))
        contents += piece
    return contents, data[at:], reader.ended


class NetstringTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        for contents, wire in [(b"", b"0:,"), (b"hello world!", b"12:hello world!,"), (b"a,b:c", b"5:a,b:c,")]:
            self.assertEqual(encode(contents), wire)
            for step in range(4):
                self.assertEqual(read(wire + b"rest", step=step), (contents, b"rest", True), (wire, step))

    def test_garbage(self) -> None:
        for wire in (b":,", b"x:,", b"-1:,", b"+1:a,", b" 1:a,", b"1 :a,", b"01:a,", b"00:,", b"1:ab", b"\xb2:ab,"):
            for step in range(3):
                self.assertRaises(NetstringError, read, wire, step=step)

    def test_limit(self) -> None:
        """The length itself is bounded, too: digits are not collected for ever."""
        self.assertEqual(read(b"10:0123456789,", 10), (b"0123456789", b"", True))
        for wire in (b"11:01234567890,", b"100:", b"999999999999999999999", b"1" * 5000):
            for step in range(3):
                self.assertRaises(TooLong, read, wire, 10, step)

    def test_incomplete(self) -> None:
        for wire in (b"", b"1", b"12", b"3:", b"3:ab", b"3:abc"):
            self.assertFalse(read(wire)[2], wire)

    @given(st.binary(max_size=50), st.binary(max_size=5), st.integers(0, 7))
    def test_round_trip(self, contents: bytes, rest: bytes, step: int) -> None:
        self.assertEqual(read(encode(contents) + rest, step=step), (contents, rest, True))

    @given(st.lists(st.sampled_from([b"0", b"1", b"3", b":", b",", b"a", b"\0"]), max_size=12).map(b"".join))
    def test_any_octets(self, data: bytes) -> None:
        """They are a netstring, the beginning of one, or NetstringError; however they are cut."""
        results = set()
        for step in (0, 1, 2, 3):
            try:
                results.add(read(data, step=step))
            except NetstringError:
                results.add((b"error", b"", False))
        self.assertEqual(len(results), 1, results)
