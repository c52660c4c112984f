"""Tests of qtwist.files.assign."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.assign import AssignError, Assignment, RecordError, compile_assign, find_assignment
from qtwist.files.cdb import CDB, CDBError, write_cdb

NAMES = st.text("ab-", max_size=4).map(str.encode)


class CompileTests(SynchronousTestCase):
    def test_records(self) -> None:
        """§12.2, §28.14."""
        text = b"=joe:alias:1001:1001:/h:::\n+joe-:alias:1001:1001:/h:-::\n+:alias:1001:1001:/h:-:a-:\n.\n"
        self.assertEqual(
            list(compile_assign(text)),
            [
                (b"!joe\0", b"alias\x001001\x001001\0/h\0\0"),
                (b"!joe-", b"alias\x001001\x001001\0/h\0-\0"),
                (b"!", b"alias\x001001\x001001\0/h\0-\0a-"),
                (b"", b"-"),
            ],
        )

    def test_odd_but_right(self) -> None:
        """§12.2: another first character counts as =, keys are in lower case, text after the sixth colon and after the
        last line is ignored; wildcard characters are kept as they are written, each once."""
        text = b"xJoE:u:1:2:/h:-:ext:more:and more\n+JoE-:u:1:2:/h:-::\n+JOX:u:1:2:/h:-::\n+z-:u:1:2:/h:-::\n.end\nrest"
        self.assertEqual(
            [key for key, _ in compile_assign(text)],
            [b"!joe\0", b"!joe-", b"!jox", b"!z-", b""],
        )
        self.assertEqual(next(compile_assign(text))[1], b"u\x001\x002\0/h\0-\0ext")
        self.assertEqual(list(compile_assign(text))[-1], (b"", b"-X"))
        self.assertEqual(list(compile_assign(b".")), [(b"", b"")])

    def test_errors(self) -> None:
        """§12.2: each names its line."""
        good = b"=joe:u:1:2:/h:::\n"
        for text, line in [
            (b"", 1),
            (good, 2),
            (good + b"=jim:u:1:2:/h:::", 2),
            (good + b"\n.\n", 2),
            (good + b"# no comments here\n.\n", 2),
            (good + good + b"=jim:u:1:2:/h::\n.\n", 3),
            (good + b"=jim\0:u:1:2:/h:::\n.\n", 2),
            (good + b":u:1:2:/h:::\n.\n", 2),
        ]:
            error = self.assertRaises(AssignError, list, compile_assign(text))
            self.assertEqual(error.line, line, text)
            self.assertRegex(str(error), rf"^line {line}: expected .")


class FindTests(SynchronousTestCase):
    def database(self, text: bytes) -> CDB:
        path = self.mktemp()
        write_cdb(path, compile_assign(text))
        database = CDB(path)
        self.addCleanup(database.close)
        return database

    def test_find(self) -> None:
        """§12.1: simple before wildcard, the longest wildcard first, the rest in its own letter case."""
        database = self.database(
            b"=joe:joe:1:2:/h/joe:::\n"
            b"=joe:other:9:9:/h/other:::\n"
            b"+joe-:joe:1:2:/h/joe:-::\n"
            b"+joe-list-:list:3:4:/h/list:-:pre-:\n"
            b"+:alias:5:6:/alias:-::\n"
            b".\n"
        )

        def joe(dash: bytes, ext: bytes) -> Assignment:
            return Assignment(b"joe", 1, 2, b"/h/joe", dash, ext)

        for local, expected in [
            (b"joe", joe(b"", b"")),
            (b"JOE", joe(b"", b"")),
            (b"joe-", joe(b"-", b"")),
            (b"Joe-Ext-A", joe(b"-", b"Ext-A")),
            (b"joe-list", joe(b"-", b"list")),
            (b"joe-list-A", Assignment(b"list", 3, 4, b"/h/list", b"-", b"pre-A")),
            (b"joeX", Assignment(b"alias", 5, 6, b"/alias", b"-", b"joeX")),
            (b"", Assignment(b"alias", 5, 6, b"/alias", b"-", b"")),
        ]:
            self.assertEqual(find_assignment(database, local), expected, local)

    def test_simple_is_no_prefix(self) -> None:
        database = self.database(b"=joe-:u:1:2:/h:::\n+x-:u:1:2:/h:-::\n.\n")
        self.assertIsNone(find_assignment(database, b"joe-ext"))
        self.assertIsNone(find_assignment(database, b"x"))
        self.assertIsNotNone(find_assignment(database, b"joe-"))

    def test_wildcard_of_an_upper_case_letter(self) -> None:
        """§12.1: the key is in lower case, the wildcard character is not; so it is never found."""
        database = self.database(b"+joE:u:1:2:/h:-::\n.\n")
        self.assertIsNone(find_assignment(database, b"joEy"))

    def test_foreign_database(self) -> None:
        """§12.1: without the record of wildcard characters."""
        path = self.mktemp()
        write_cdb(path, [(b"!joe\0", b"u\x001\x002\0/h\0\0")])
        self.assertRaises(CDBError, find_assignment, CDB(path), b"joe")

    def test_bad_record(self) -> None:
        for record in (b"=joe:u:x:2:/h:::", b"=joe:u:1::/h:::", b"=joe:u:1:-2:/h:::", b"=joe:u:1:99999999999:/h:::"):
            self.assertRaises(RecordError, find_assignment, self.database(record + b"\n.\n"), b"joe")
        path = self.mktemp()
        write_cdb(path, [(b"!joe\0", b"u\x001"), (b"", b"")])
        self.assertRaises(RecordError, find_assignment, CDB(path), b"joe")

    @given(st.lists(st.tuples(st.sampled_from([b"=", b"+"]), NAMES), max_size=8), NAMES)
    def test_like_a_plain_search(self, lines: list[tuple[bytes, bytes]], local: bytes) -> None:
        text = b"".join(b"%s%s:u%d:1:1:/h:-:e:\n" % (kind, name, n) for n, (kind, name) in enumerate(lines)) + b".\n"
        found = find_assignment(self.database(text), local)
        hits = [n for n, line in enumerate(lines) if line == (b"=", local)]
        rest = b""
        for size in range(len(local), -1, -1):
            if not hits:
                hits = [n for n, line in enumerate(lines) if line == (b"+", local[:size])]
                rest = local[size:]
        expected = Assignment(b"u%d" % hits[0], 1, 1, b"/h", b"-", b"e" + rest) if hits else None
        self.assertEqual(found, expected)
