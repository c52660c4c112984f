"""Lines of users/assign that the commands write: who has an address keeps it (spec/qmail.md §12.2)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.assignments import AlreadyAssigned, Assignment, with_owner, without_owner

JOE = Assignment(b"joe", 1001, 1001, b"/home/joe", b"", b"")
ANN = Assignment(b"ann", 1002, 1002, b"/home/ann", b"", b"")
FIRST = b"=sue:sue:1003:1003:/home/sue:::\n.\n"


class Owners(SynchronousTestCase):
    def test_once(self) -> None:
        """Lines that are there stay as they are, and are not written twice."""
        text = with_owner(FIRST, b"joe", JOE)
        self.assertTrue(text.startswith(b"=sue:"))
        self.assertTrue(text.endswith(b"\n.\n"))
        self.assertEqual(text.count(b"=joe:joe:1001:1001:/home/joe:"), 1)
        self.assertEqual(with_owner(text, b"joe", JOE), text)

    def test_taken(self) -> None:
        """The address of somebody else is not given away; the error names the line."""
        text = with_owner(FIRST, b"joe", JOE)
        error = self.assertRaises(AlreadyAssigned, with_owner, text, b"joe", ANN)
        self.assertEqual(error.args, (2,))
        self.assertEqual(without_owner(text, b"joe"), FIRST)
