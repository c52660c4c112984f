"""Tests of qtwist.inject.addresses (spec/qmail.md §19.7, §28.2-28.7)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.inject.addresses import Completion, rewrite_field
from qtwist.inject.tokens import SyntaxTrouble, parse, unparse, unquote
from tests.test_inject_tokens import texts

MX = Completion(b"mx.example.test", b"example.test", b"example.test")


class FieldTests(SynchronousTestCase):
    def rewrite(self, field: bytes) -> tuple[bytes, list[bytes]]:
        """The field as it comes out, and the addresses in the order in which they were found."""
        found: list[bytes] = []

        def complete(address: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
            address = MX(address)
            found.append(unquote(address))
            return address

        self.found = found
        return unparse(rewrite_field(parse(field), complete)), found

    def check(self, field: bytes, expected: bytes, *found: bytes) -> None:
        self.assertEqual(self.rewrite(field), (expected, list(found)))

    def test_vector_2(self) -> None:
        self.check(
            b'To: a@b.c, joe (Joe Blow), "A. B" <x@y>, group: g@h, i@j;, k@[1.2.3.4], fred+ , djb fred\n',
            b'To: a@b.c, joe@mx.example.test (Joe Blow), "A. B" <x@y.example.test>,\n'
            b"  group: g@h.example.test, i@j.example.test;, k@[1.2.3.4],\n"
            b"  fred+@mx.example.test, djb@mx.example.test, fred@mx.example.test\n",
            b"fred@mx.example.test",
            b"djb@mx.example.test",
            b"fred+@mx.example.test",
            b"k@[1.2.3.4]",
            b"i@j.example.test",
            b"g@h.example.test",
            b"x@y.example.test",
            b"joe@mx.example.test",
            b"a@b.c",
        )

    def test_vector_3(self) -> None:
        self.check(
            b"To: <@a,@b:x@y>, <>, <.>, <@>, foo@, @bar, a.b@c.d., x@[]\n",
            b"To: <x@y.example.test>, <>, <>, <>, foo@mx.example.test, , a.b@c.d, x@[]\n",
            *(b"x@[]", b"a.b@c.d", b"", b"foo@mx.example.test", b"", b"", b"", b"x@y.example.test"),
        )

    def test_vector_5(self) -> None:
        self.check(b"Cc: c@b.c, grp: d@b.c, e@b.c;\n", b"Cc: c@b.c, grp: d@b.c, e@b.c;\n", b"e@b.c", b"d@b.c", b"c@b.c")

    def test_comments(self) -> None:
        """Those inside an address come out at its right."""
        self.check(b"To: a (b) @ (c) d.e (f)\n", b"To: a@d.e (b) (c) (f)\n", b"a@d.e")
        self.check(b"To: <a@b.c> (d)\n", b"To: <a@b.c>(d)\n", b"a@b.c")
        self.check(b"To: (d) <a@b.c>, (e)\n", b"To: (d) <a@b.c>, (e)\n", b"a@b.c")

    def test_missing_commas(self) -> None:
        self.check(b"To: a@b.c <d@e.f> g@h.i\n", b"To: a@b.c <d@e.f>, g@h.i\n", b"g@h.i", b"d@e.f")
        self.check(b"To: <a@b.c> <d@e.f>\n", b"To: <a@b.c> <d@e.f>\n", b"d@e.f", b"a@b.c")
        self.check(
            b'To: a@b.c "q" [1]\n',
            b'To: a@b.c, "q"@mx.example.test, [1]@mx.example.test\n',
            b"[1]@mx.example.test",
            b"q@mx.example.test",
            b"a@b.c",
        )
        self.check(b"To: g: a@b.c; x@y.z\n", b"To: g: a@b.c;, x@y.z\n", b"x@y.z", b"a@b.c")

    def test_phrase(self) -> None:
        """Words, comments, ``@`` and ``.`` belong to the name before ``<``."""
        self.check(b'To: J. R. @home (x) "y" <a@b.c>\n', b'To: J.R.@home (x) "y" <a@b.c>\n', b"a@b.c")

    def test_group_name(self) -> None:
        """All that stands between the last comma and the colon is copied."""
        self.check(b"To: a@b.c, the <x> [g]: d@e.f;\n", b"To: a@b.c, the <x>[g]: d@e.f;\n", b"d@e.f", b"a@b.c")
        self.check(b"To: g:;\n", b"To: g: ;\n")

    def test_errors(self) -> None:
        """Groups in groups, group ends alone, ``>`` alone; addresses right of the trouble have been found (§19.3)."""
        for field, *found in (
            (b"To: foo: bar@x.y, baz@x.y\n", b"baz@x.y", b"bar@x.y"),
            (b"To: a@b.c, d: e@f.g;;\n",),
            (b"To: a@b.c; b@c.d;\n", b"b@c.d"),
            (b"To: a@b.c> , d@e.f\n", b"d@e.f", b"a@b.c"),
            (b"To: a: b@c.d, e: f@g.h;\n", b"f@g.h", b"b@c.d"),
        ):
            self.assertRaises(SyntaxTrouble, self.rewrite, field)
            self.assertEqual(self.found, found)

    @given(texts)
    def test_anything(self, text: bytes) -> None:
        """Any field is rewritten, or refused by the one error; its name stays, and every address is passed on once."""
        try:
            tokens = parse(b"To:" + text)
        except SyntaxTrouble:
            return
        passed = 0

        def count(address: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
            nonlocal passed
            passed += len(address)
            return address

        try:
            result = rewrite_field(tokens, count)
        except SyntaxTrouble:
            return
        self.assertEqual(result[:2], tokens[:2])
        self.assertLessEqual(passed, len(tokens) - 2)
        commas = result.count((",", b"")) - tokens.count((",", b""))
        self.assertEqual(len(result), len(tokens) + commas)
        self.assertEqual(
            sorted(token for token in result if token[0] != ","), sorted(token for token in tokens if token[0] != ",")
        )

    @given(st.lists(st.from_regex(rb"[a-z]{1,9}(\.[a-z]{1,3})?@[a-z]{1,9}\.[a-z]{1,3}", fullmatch=True), max_size=30))
    def test_complete_addresses(self, addresses: list[bytes]) -> None:
        """What is complete already stays, and is found from right to left."""
        field, found = self.rewrite(b"To: " + b", ".join(addresses) + b"\n")
        self.assertEqual(found, addresses[::-1])
        self.assertEqual(
            field.replace(b",\n  ", b", ").rstrip(), b"To: ".rstrip() + b" " * bool(addresses) + b", ".join(addresses)
        )


class CompletionTests(SynchronousTestCase):
    def check(self, address: bytes, expected: bytes, completion: Completion = MX) -> None:
        self.assertEqual(unparse(completion(parse(address))), expected + b"\n", address)

    def test_steps(self) -> None:
        for address, expected in (
            (b"", b""),
            (b"a@[]", b"a@[]"),
            (b"a@b@[]", b"a@b@[]"),
            (b"@a:b", b"b@mx.example.test"),
            (b"@a,@b:c@d:e", b"c@d: e.example.test"),
            (b"@a", b""),
            (b"@a:", b""),
            (b"a.", b"a@mx.example.test"),
            (b"a..", b"a.@mx.example.test"),
            (b"a@b.", b"a@b.example.test"),
            (b"a@b.c.", b"a@b.c"),
            (b"a@", b"a@mx.example.test"),
            (b"a@.", b"a@mx.example.test"),
            (b"a.@", b"a.@mx.example.test"),
            (b".@", b".@mx.example.test"),
            (b"a+", b"a+@mx.example.test"),
            (b"a@b+", b"a@b.example.test"),
            (b"a@b.c+", b"a@b.c.example.test"),
            (b'a@"b+"', b'a@"b+".example.test'),
            (b"a@[1.2.3.4]", b"a@[1.2.3.4]"),
            (b"a@b@c", b"a@b@c.example.test"),
            (b"a.b@c", b"a.b@c.example.test"),
            (b"[x]", b"[x]@mx.example.test"),
            (b"[]", b"[]@mx.example.test"),
        ):
            self.check(address, expected)

    def test_vector_7(self) -> None:
        self.check(b"user@host+", b"user@host.plus.dom", Completion(b"mx.example.test", b"example.test", b"plus.dom"))

    def test_hosts_are_completed(self) -> None:
        """A default host may be without a dot, or end in ``+``."""
        self.check(b"a", b"a@mx.d.e", Completion(b"mx", b"d.e", b"plus"))
        self.check(b"a", b"a@mx.plus", Completion(b"mx+", b"d.e", b"plus"))
        self.check(b"a", b"a@[1.2.3.4]", Completion(b"[1.2.3.4]", b"d.e", b"plus"))

    def test_wrong_hosts(self) -> None:
        self.assertRaises(SyntaxTrouble, Completion, b"(x", b"", b"")
        self.assertRaises(SyntaxTrouble, Completion, b"", b'"', b"")
        self.assertRaises(SyntaxTrouble, Completion, b"", b"", b"]")

    @given(texts)
    def test_complete_is_final(self, text: bytes) -> None:
        """What has been completed has an ``@`` and a dot or a literal behind it, or is empty; the argument stays."""
        try:
            address = parse(text)
        except SyntaxTrouble:
            return
        before = list(address)
        completed = MX(address)
        self.assertEqual(address, before)
        kinds = [kind for kind, _ in completed]
        if kinds:
            self.assertIn("@", kinds)
            behind = kinds[len(kinds) - kinds[::-1].index("@") :]
            self.assertTrue("." in behind or "[" in behind, completed)
