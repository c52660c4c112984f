"""Requests to the door, many on one connection: doc/door.md."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.netstring import NetstringError, split
from qtwist.wire.pipelined import LONGEST, Reader, answer, read_answer, read_request, request

ADDRESS = st.binary(max_size=50)
REQUEST = st.tuples(
    st.integers(0, 2**32 - 1), st.binary(max_size=300), ADDRESS, st.lists(ADDRESS, max_size=5).map(tuple)
)
ANSWER = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 2**64 - 1), st.text(max_size=50))


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, again and again."""
    found = []
    while data:
        size = sizes[len(found) % len(sizes)]
        found.append(data[:size])
        data = data[size:]
    return found


class PipelinedTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        self.assertEqual(
            request(7, b"hello\n", b"a@b", [b"c@d"]),
            b"\0\0\0\x1a\0\0\0\x07\0\0\0\x06hello\n3:a@b,3:c@d,",
        )
        self.assertEqual(answer(7, 0, 101), b"\0\0\0\x0d\0\0\0\x07\0\0\0\0\0\0\0\0\x65")
        self.assertEqual(answer(7, 53, 0, "full")[8:], b"\x35" + bytes(8) + b"full")

    @given(st.lists(REQUEST, max_size=5), st.lists(st.integers(1, 400), min_size=1, max_size=5))
    def test_requests_arrive(self, requests: list, sizes: list[int]) -> None:
        """However the octets are cut."""
        data = b"".join(request(*one) or b"" for one in requests)
        reader = Reader(read_request)
        self.assertEqual([one for piece in pieces(data, sizes) for one in reader.feed(piece)], requests)

    @given(st.lists(ANSWER, max_size=5), st.lists(st.integers(1, 100), min_size=1, max_size=5))
    def test_answers_arrive(self, answers: list, sizes: list[int]) -> None:
        data = b"".join(answer(*one) for one in answers)
        reader = Reader(read_answer)
        self.assertEqual([one for piece in pieces(data, sizes) for one in reader.feed(piece)], answers)

    @given(st.binary(max_size=200), st.booleans())
    def test_garbage(self, data: bytes, framed: bool) -> None:
        """It is read, refused, or waited for: nothing else happens."""
        reader = Reader(read_request)
        with contextlib.suppress(NetstringError):
            reader.feed(len(data).to_bytes(4, "big") + data if framed else data)

    def test_bounds(self) -> None:
        """A length is not believed beyond the bound, and a message that is too long is not sent."""
        self.assertRaises(NetstringError, Reader(read_request).feed, (LONGEST + 1).to_bytes(4, "big"))
        longest = bytes(LONGEST - 8 - len(b"0:,"))
        self.assertIsNone(request(1, longest + b"x", b"", []))
        data = request(1, longest, b"", [])
        assert data is not None
        self.assertEqual(Reader(read_request).feed(data), [(1, longest, b"", ())])
        for wrong in (b"", b"\0" * 7, b"\0" * 7 + b"\x01", b"\0" * 8, b"\0" * 8 + b"1:ab", b"\0" * 8 + b"1"):
            self.assertRaises(NetstringError, read_request, wrong)
        self.assertRaises(NetstringError, read_answer, b"\0" * 12)

    @given(st.lists(st.binary(max_size=20)))
    def test_split(self, contents: list[bytes]) -> None:
        data = b"".join(b"%d:%b," % (len(one), one) for one in contents)
        self.assertEqual(split(data), contents)
        for wrong in (data + b"1", data + b"1:a", data + b"1:ab", data + b"x"):
            self.assertRaises(NetstringError, split, wrong)
