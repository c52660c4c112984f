"""Tests of qtwist.inject.tokens (spec/qmail.md §19.7)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.inject.tokens import (
    ATOM,
    COMMENT,
    LITERAL,
    QUOTED,
    WIDTH,
    SyntaxTrouble,
    parse,
    unparse,
    unquote,
)

SPECIALS = [(octet, b"") for octet in ".,@<>:;"]

# Octets that matter to the grammar, more often than others.
texts = st.lists(
    st.one_of(st.sampled_from([bytes([octet]) for octet in b' \t\r\n()[]"\\.,@<>:;ab+']), st.binary(max_size=3)),
    max_size=40,
).map(b"".join)


class ParseTests(SynchronousTestCase):
    def check(self, text: bytes, *expected: tuple[str, bytes]) -> None:
        self.assertEqual(parse(text), list(expected))

    def test_specials(self) -> None:
        self.check(b" . ,@\t<>\r\n:;", *SPECIALS)

    def test_atoms(self) -> None:
        """A blank, an opening delimiter or a special ends an atom; ``)`` and ``]`` do not, but put it into quotes."""
        self.check(
            b"a b(c)d[e]f", (ATOM, b"a"), (ATOM, b"b"), (COMMENT, b"c"), (ATOM, b"d"), (LITERAL, b"e"), (ATOM, b"f")
        )
        self.check(b"a)b]", (QUOTED, b"a)b]"))
        self.check(b"!#$%&'*+-/=?^_`{|}~", (ATOM, b"!#$%&'*+-/=?^_`{|}~"))

    def test_backslash(self) -> None:
        self.check(rb"a\ b\"c \@x", (ATOM, b'a b"c'), (ATOM, b"@x"))
        self.check(rb"a\\b", (QUOTED, rb"a\b"))
        self.check(rb"a\)", (QUOTED, b"a)"))
        self.check(b"a\\", (ATOM, b"a"))

    def test_odd_octets_need_quotes(self) -> None:
        for octet in (0, 1, 31, 127, 128, 233, 255):
            self.check(b"a" + bytes([octet]), (QUOTED, b"a" + bytes([octet])))
        self.check(b"a~\\ ", (ATOM, b"a~ "))

    def test_letters_of_all_the_world(self) -> None:
        """RFC 6532 §3.2: no quotes for what is UTF-8; qmail gives it some, in domains too, where they mean nothing."""
        for text in ("jürgen", "例え", "a\u0308"):
            self.check(text.encode(), (ATOM, text.encode()))
        for octets in (b"j\xc3", b"\xc3\xbc)", b"\xc3\xbc\x01"):
            self.check(octets.replace(b")", b"\\)"), (QUOTED, octets))

    def test_delimiters(self) -> None:
        self.check(b'"a (b) [c] <d>, \\" \\\\"', (QUOTED, b'a (b) [c] <d>, " \\'))
        self.check(rb"[1.2 \] (]", (LITERAL, b"1.2 ] ("))
        self.check(rb"(a (b \) (c)) d)e", (COMMENT, b"a b ) c d"), (ATOM, b"e"))
        self.check(b'()""[]', (COMMENT, b""), (QUOTED, b""), (LITERAL, b""))

    def test_errors(self) -> None:
        for text in (b"(a", b"((a)", b'"a', b"[a", b'"a\\"', rb"(a\)", b"[\\", b")", b"a ]", b"(\\"):
            self.assertRaises(SyntaxTrouble, parse, text)

    def test_many_brackets(self) -> None:
        """The work grows with the text, not with its square: this takes hours else."""
        self.check(b"(" * 200_000 + b"\\)" * 200_000 + b")" * 200_000, (COMMENT, b")" * 200_000))

    @given(texts)
    def test_anything(self, text: bytes) -> None:
        """Any octets become tokens or raise the one error."""
        try:
            tokens = parse(text)
        except SyntaxTrouble:
            return
        for kind, content in tokens:
            self.assertIn(kind, [ATOM, QUOTED, LITERAL, COMMENT, *".,@<>:;"])
            self.assertTrue(not content or kind in (ATOM, QUOTED, LITERAL, COMMENT))

    @given(texts)
    def test_round_trip(self, text: bytes) -> None:
        """What was printed is read again as the same tokens: up to folding, and the blank behind a quoted LF.

        An atom that is empty, or has something quoted in it that parts atoms, is the known exception of qmail.
        """
        try:
            tokens = parse(text)
        except SyntaxTrouble:
            return
        if any(kind == ATOM and (not atom or not atom.isalnum()) for kind, atom in tokens):
            return
        printed = unparse(tokens)
        expected = [(kind, b"\n ".join(b"\n".join(word.split(b"\n ")).split(b"\n"))) for kind, word in tokens]
        again = [(kind, b"\n ".join(b"\n".join(word.split(b"\n ")).split(b"\n"))) for kind, word in parse(printed)]
        self.assertEqual(again, expected)


class UnparseTests(SynchronousTestCase):
    def check(self, text: bytes, expected: bytes) -> None:
        self.assertEqual(unparse(parse(text)), expected)

    def test_spaces(self) -> None:
        """Only behind a colon or comma, before ``<``, and between words."""
        self.check(b"To:a@b,c.d(x)<e @ f>(g)h;i:j", b"To: a@b, c.d (x) <e@f>(g) h;i: j\n")
        self.check(b'"a"[b](c)"d"', b'"a" [b] (c) "d"\n')
        self.check(b"<", b"<\n")
        self.check(b"", b"\n")

    def test_escapes(self) -> None:
        self.assertEqual(unparse([(QUOTED, b'"[]()\\\r<')]), b'"\\"\\[\\]\\(\\)\\\\\\\r<"\n')
        self.assertEqual(unparse([(COMMENT, b"a(b")]), b"(a\\(b)\n")
        self.assertEqual(unparse([(LITERAL, b"a]b")]), b"[a\\]b]\n")

    def test_line_end_in_token(self) -> None:
        """A quoted LF cannot begin a field of its own, whatever follows it."""
        self.assertEqual(unparse([(QUOTED, b"a\nBcc: x")]), b'"a\\\n Bcc: x"\n')
        self.assertEqual(unparse([(QUOTED, b"a\n\tb\n")]), b'"a\\\n\tb\\\n "\n')

    @given(texts)
    def test_stays_in_field(self, text: bytes) -> None:
        try:
            tokens = parse(text)
        except SyntaxTrouble:
            return
        lines = unparse(tokens).split(b"\n")
        self.assertEqual(lines.pop(), b"")
        self.assertTrue(all(line[:1] in (b" ", b"\t") for line in lines[1:]), lines)

    def test_folding(self) -> None:
        """Cut behind commas where the line would have more than 78 octets, its own leading blank counted."""
        word = b"a" * 37
        self.check(b"To:" + word[:34] + b"," + word + b",b", b"To: " + word[:34] + b", " + word + b",\n  b\n")
        self.check(b"To:" + word[:35] + b"," + word + b",b", b"To: " + word[:35] + b",\n  " + word + b", b\n")
        second = b"a" * 37 + b"," + b"b" * 36 + b","
        self.check(
            b"T:" + b"x" * 80 + b"," + second, b"T: " + b"x" * 80 + b",\n  " + second.replace(b",b", b", b") + b"\n"
        )
        self.check(b"a" * 78 + b",", b"a" * 78 + b",\n \n")

    def test_no_cut_without_comma(self) -> None:
        self.check(b"a " * 100, b"a " * 99 + b"a\n")

    @given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
    def test_folded_lines(self, lengths: list[int]) -> None:
        """Lines hold as much as fits, and unfolding gives what would have been written without."""
        words = [b"a" * length for length in lengths]
        folded = unparse(parse(b"X:" + b",".join(words)))
        self.assertEqual(folded.replace(b",\n  ", b", "), b"X: " + b", ".join(words) + b"\n")
        lines = folded.rstrip(b"\n").split(b"\n")
        for line, following in pairwise(lines):
            self.assertLessEqual(len(line), WIDTH)
            self.assertGreater(len(line) + len(following.split(b",")[0]) - 1 + (b"," in following), WIDTH)


class UnquoteTests(SynchronousTestCase):
    def test_unquote(self) -> None:
        """No comments, no quotes, literals with their brackets."""
        self.assertEqual(unquote(parse(b'(c)"a b" . c@[1.2](d)')), b"a b.c@[1.2]")
        self.assertEqual(unquote(SPECIALS), b".,@<>:;")
