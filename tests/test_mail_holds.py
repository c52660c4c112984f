"""The lines of control/holds (doc/queue.md)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.holds import DESTINATION, SENDER, Hold, Holds


class HoldTests(SynchronousTestCase):
    @given(st.sampled_from([SENDER, DESTINATION]), st.binary(max_size=40), st.binary(max_size=40))
    def test_round_trip(self, kind: str, value: bytes, reason: bytes) -> None:
        """Whatever is held is one line, and that line means the same."""
        try:
            hold = Hold.make(kind, value, reason)
        except ValueError:
            self.assertEqual((kind, value.strip(b"@")), (DESTINATION, b""))
            return
        self.assertNotIn(b"\n", hold.line())
        self.assertEqual(Hold.parse(hold.line()), hold)

    def test_lines(self) -> None:
        self.assertEqual(Hold.make(SENDER, b"A b@X", b"why\nso").line(), b"sender a%20b@x why so")
        self.assertEqual(Hold.make(SENDER, b"").line(), b"sender <>")
        self.assertEqual(Hold.of_message(12, 99.7, b"x").line(), b"message 12/99 x")

    def test_for_people(self) -> None:
        self.assertEqual(Hold.make(SENDER, b"a@x", b"why so").text(), b"sender: why so")
        self.assertEqual(Hold.make(DESTINATION, b"x").text(), b"destination")

    def test_wrong_lines(self) -> None:
        for line in (b"", b"sender", b"nobody x", b"message 12", b"message x/1", b"sender a%zz", b"destination @"):
            with self.assertRaises(ValueError, msg=line):
                Hold.parse(line)

    def test_matching(self) -> None:
        holds = Holds.parse([b"message 5/100", b"sender joe@x.test", b"sender y.test", b"destination z.test"])
        self.assertIsNotNone(holds.of_message(5, 100.9, b"a@b"))
        self.assertIsNone(holds.of_message(5, 101, b"a@b"), "another message that got the number")
        self.assertIsNotNone(holds.of_message(6, 1, b"JOE@x.test"))
        self.assertIsNone(holds.of_message(6, 1, b"jim@x.test"))
        self.assertIsNotNone(holds.of_message(6, 1, b"jim@y.test"))
        self.assertIsNotNone(holds.of_message(6, 1, b"jim-@y.test-@[]"), "a VERP sender")
        self.assertIsNone(holds.of_message(6, 1, b""))
        self.assertIsNotNone(holds.of_recipient(b"a@Z.test"))
        self.assertIsNone(holds.of_recipient(b"a@sub.z.test"))
