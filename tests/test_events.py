"""Events of twisted.logger, as text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from qtwist.events import event_text

VALUES = st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.floats(), st.lists(st.integers()))


class Unspeakable:
    def __str__(self) -> str:
        raise ValueError("no words")

    __repr__ = __format__ = __str__  # type: ignore[assignment]


class EventTextTests(SynchronousTestCase):
    """The same as formatEvent's."""

    @given(st.text("ab{}[]!:.() ", max_size=20), VALUES, VALUES)
    def test_any_form(self, form: str, a: object, b: object) -> None:
        event = {"log_format": form, "a": a, "b": b}
        self.assertEqual(event_text(event), formatEvent(event))

    def test_as_ours_are(self) -> None:
        event = {"log_format": "{id}: {recipients} recipients{by}", "id": "1f", "recipients": 2, "by": ""}
        self.assertEqual(event_text(event), "1f: 2 recipients")

    def test_what_cannot_be_said(self) -> None:
        """Twisted tells what is wrong, and nothing is raised."""
        for event in ({"log_format": "{a}"}, {"log_format": "{a}", "a": Unspeakable()}, {"log_format": None}, {}):
            self.assertEqual(event_text(dict(event)), formatEvent(dict(event)))
        self.assertIn("Unable to format", event_text({"log_format": "{a}"}))

    def test_calls(self) -> None:
        """Twisted's own kind of field."""
        self.assertEqual(event_text({"log_format": "{a()} {b.real}", "a": lambda: "x", "b": 1}), "x 1")
