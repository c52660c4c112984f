"""Tests of qtwist.files.cdb_text: spec/related.md §1.2."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.cdb_text import TextError, format_record, parse_records

RECORDS = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=40)), max_size=8)


def cut(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]


class TextTests(SynchronousTestCase):
    def test_format(self) -> None:
        self.assertEqual(format_record(b"one", b"a\n"), b"+3,2:one->a\n\n")

    @given(RECORDS, st.integers(1, 60))
    def test_round_trip(self, records: list[tuple[bytes, bytes]], size: int) -> None:
        """However the text is cut, and whatever follows its end."""
        text = b"".join(format_record(*record) for record in records) + b"\nrubbish"
        self.assertEqual(list(parse_records(cut(text, size))), records)

    @given(RECORDS.filter(bool), st.integers(1, 60), st.data())
    def test_early_end(self, records: list[tuple[bytes, bytes]], size: int, data: st.DataObject) -> None:
        """A text without its end is never taken for a shorter one."""
        text = b"".join(format_record(*record) for record in records)
        text = text[: data.draw(st.integers(0, len(text)))]
        self.assertRaises(TextError, list, parse_records(cut(text, size)))

    @given(st.lists(st.sampled_from([b"+", b"1", b"0", b",", b":", b"->", b"\n", b"x", b"+1,1:", b"a->b\n"])))
    def test_anything(self, parts: list[bytes]) -> None:
        """Any text is records, or the one error."""
        try:
            records = list(parse_records(parts))
        except TextError as error:
            self.assertGreater(error.entry, 0)
        else:
            self.assertTrue(b"".join(parts).startswith(b"".join(format_record(*one) for one in records)))

    def test_errors(self) -> None:
        for text, entry, problem in (
            (b"", 1, "too early"),
            (b"+1,1:a->b\n", 2, "too early"),
            (b"+1,1:a->bb\n\n", 1, "end of the line"),
            (b"+1,1:a=>b\n\n", 1, "->"),
            (b"+,:->\n\n", 1, "+KLEN,DLEN"),
            (b"+1,1:a->b\n+99999999999,1:a->b\n\n", 2, "+KLEN,DLEN"),
        ):
            error = self.assertRaises(TextError, list, parse_records([text]))
            self.assertEqual(error.entry, entry, text)
            self.assertIn(problem, str(error))
