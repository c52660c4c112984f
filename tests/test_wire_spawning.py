"""Packets between the queue manager and its spawners (spec/qmail.md §11.1)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import spawning

TEXT = st.binary().map(lambda data: data.replace(b"\0", b""))


class SpawningTests(SynchronousTestCase):
    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), TEXT, TEXT, st.integers(1, 255))
    def test_request(self, delivery: int, number: int, sender: bytes, recipient: bytes, siblings: int) -> None:
        packet = spawning.request(delivery, number, sender, recipient, siblings)
        self.assertEqual(spawning.read_request(packet), (delivery, number, sender, recipient, siblings))

    @given(st.integers(0, 2**32 - 1), st.integers(-64, 255), st.binary(max_size=spawning.LONGEST_OUTPUT))
    def test_reply(self, delivery: int, code: int, output: bytes) -> None:
        self.assertEqual(spawning.read_reply(spawning.reply(delivery, code, output)), (delivery, code, output))

    def test_long_output(self) -> None:
        """A reply is one packet, whatever a program had to say."""
        packet = spawning.reply(1, 0, bytes(10**6))
        self.assertLess(len(packet), spawning.LONGEST)

    @given(st.lists(TEXT, min_size=1))
    def test_fields(self, values: list[bytes]) -> None:
        self.assertEqual(spawning.read_fields(spawning.fields(*values), len(values)), values)

    @given(st.binary())
    def test_anything(self, packet: bytes) -> None:
        """Any bytes are read, or a ValueError."""
        for read in (spawning.read_request, spawning.read_reply, lambda data: spawning.read_fields(data, 3)):
            try:
                read(packet)
            except ValueError:
                continue

    def test_too_many_and_too_few(self) -> None:
        for count in (1, 3):
            self.assertRaises(ValueError, spawning.read_fields, b"a\0b", count)

    def test_nul(self) -> None:
        """An address with NUL would be two: nobody is asked."""
        self.assertRaises(ValueError, spawning.request, 1, 1, b"a\0b", b"c@d")
        self.assertRaises(ValueError, spawning.fields, b"a", b"b\0c")
        self.assertRaises(ValueError, spawning.read_request, spawning.request(1, 1, b"", b"c@d") + b"\0e@f")
