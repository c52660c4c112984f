"""Tests of qtwist.files.tai64n and of tai64n, tai64nlocal: spec/related.md §5.7, §17."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands.tai64nlocal import converted
from qtwist.files.tai64n import readable, stamp
from tests.command_tools import CommandCase

VECTOR = b"@4000000038c3eeb104a6ecf4"  # §5.7
DATE = b"2000-03-06 17:45:11.078048500"


class StampTests(SynchronousTestCase):
    def test_vector(self) -> None:
        self.assertEqual(stamp(952364711_078048500), VECTOR)
        self.assertEqual(readable(VECTOR + b" x", time.gmtime), DATE + b" x")

    def test_every_line(self) -> None:
        text = b"%b a\nx %b b\n%b\n" % (VECTOR, VECTOR, VECTOR)
        self.assertEqual(readable(text, time.gmtime), b"%b a\nx %b b\n%b\n" % (DATE, VECTOR, DATE))

    def test_no_stamps(self) -> None:
        """What has no date stays, and so does what only resembles a stamp."""
        for text in (
            VECTOR[:-1] + b" x",
            VECTOR + b"0 x",
            VECTOR.upper(),
            b"@" + b"f" * 16 + b"00000000",
            VECTOR[:17] + b"3b9aca00",  # a second has no 1,000,000,000 nanoseconds
            b"@",
        ):
            self.assertEqual(readable(text, time.gmtime), text)

    @given(st.integers(0, 4 * 10**18))
    def test_round_trip(self, nanoseconds: int) -> None:
        seconds, rest = divmod(nanoseconds, 10**9)
        expected = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)).encode() + b".%09d" % rest
        self.assertEqual(readable(stamp(nanoseconds), time.gmtime), expected)

    @given(st.lists(st.sampled_from([VECTOR, b"@", b"4", b"\n", b" x", b"y" * 30]), max_size=12), st.integers(1, 70))
    def test_cut_anywhere(self, parts: list[bytes], size: int) -> None:
        text = b"".join(parts)
        blocks = [text[start : start + size] for start in range(0, len(text), size)]
        self.assertEqual(b"".join(converted(blocks)), readable(text))


class CommandTests(CommandCase):
    def test_tai64n(self) -> None:
        """Every line gets a stamp, a last one without its end, too."""
        before = stamp(time.time_ns())
        printed = self.check("tai64n", stdin=b"a\n\nb")
        after = stamp(time.time_ns())
        match = re.fullmatch(rb"(@[0-9a-f]{24}) a\n(@[0-9a-f]{24}) \n(@[0-9a-f]{24}) b", printed)
        assert match is not None, printed
        for found in match.groups():
            self.assertTrue(before <= found <= after)

    def test_tai64nlocal(self) -> None:
        """Local time, by TZ."""
        text = b"no stamp\n" + VECTOR + b" new msg 1\n"
        self.assertEqual(self.check("tai64nlocal", stdin=text, TZ="UTC"), b"no stamp\n" + DATE + b" new msg 1\n")
        self.assertIn(b"2000-03-06 12:45:11.", self.check("tai64nlocal", stdin=text, TZ="EST5"))
