"""Tests of qtwist.files.tcprules: spec/related.md §4.2, §4.3, §4.8, §17."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.tcprules import RuleError, Verdict, compile_rules, find_rule, lookup_keys


def compiled(text: bytes) -> list[tuple[bytes, bytes]]:
    return list(compile_rules(text))


def keys(text: bytes) -> list[bytes]:
    return [key for key, _ in compile_rules(text)]


class CompileTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """§17: a line without a colon means nothing, a range makes records, any delimiter will do."""
        text = (
            b'127.:allow,RELAYCLIENT=""\n10.1.2.3-4:deny\nnocolonline\n=.example.net:allow,A="1",B=/x y/\n'
            b"# comment: x\n\n:allow \t\n"
        )
        self.assertEqual(
            compiled(text),
            [
                (b"127.", b"+RELAYCLIENT=\0"),
                (b"10.1.2.3", b"D\0"),
                (b"10.1.2.4", b"D\0"),
                (b"=.example.net", b"+A=1\0+B=x y\0"),
                (b"", b""),
            ],
        )

    def test_deny_with_variables(self) -> None:
        self.assertEqual(compiled(b'1.2.:deny,X=,a,,Y="b"'), [(b"1.2.", b"D\0+X=a\0+Y=b\0")])

    def test_ranges(self) -> None:
        """§4.2: around the first hyphen, up to 255, and not where = or @ is; as Debian's program does."""
        for address, expected in (
            (b"1.2.3-5.", [b"1.2.3.", b"1.2.4.", b"1.2.5."]),
            (b"1-2.3-4", [b"1.3-4", b"2.3-4"]),
            (b"254-300.9", [b"254.9", b"255.9"]),
            (b"1.2.3.254-99999999999999999999", [b"1.2.3.254", b"1.2.3.255"]),
            (b"007-009", [b"7", b"8", b"9"]),
            (b"1.-2", [b"1.0", b"1.1", b"1.2"]),
            (b"5-3", []),
            (b"1-", []),
            (b"999-1000", []),
            (b"=h-1", [b"=h-1"]),
            (b"1-2@", [b"1-2@"]),
        ):
            self.assertEqual(keys(address + b":deny"), expected, address)

    def test_ipv6_as_people_write_it(self) -> None:
        """In brackets, in capitals, with zeros, behind an IDENT answer, IPv4 in IPv6: as a client's address reads."""
        for address, expected in (
            (b"[2001:DB8::1]", b"2001:db8::1"),
            (b"2001:0DB8:0:0::1", b"2001:db8::1"),
            (b"2001:0DB8:00a0:", b"2001:db8:a0:"),
            (b"[2001:db8::]/32", b"2001:db8::/32"),
            (b"::ffff:192.0.2.7", b"192.0.2.7"),
            (b"[192.0.2.7]", b"192.0.2.7"),
            (b"joe@[2001:DB8::1]", b"joe@2001:db8::1"),
            (b"joe@2001:0db8::1", b"joe@2001:db8::1"),
            (b"joe@192.0.2.7", b"joe@192.0.2.7"),
            (b"a:b@=Host:x", b"a:b@=Host:x"),
            (b"a/b@192.0.2.7", b"a/b@192.0.2.7"),
        ):
            self.assertEqual(keys(address + b":deny"), [expected], address)

    def test_colons_that_are_no_address(self) -> None:
        """What could never be found is no rule: it would let in whom it denies."""
        for line in (b"192.0.2.1:25:deny", b"deny:192.0.2.1:deny", b"2001:db8::1::deny", b"[2001:db8::1:deny",
                     b"2001:xyz::1:deny", b"joe@10.0.0.0/8:deny", b"12345:deny:deny",
                     b"1:2:3:4:5:6:7:8:9:deny", b"a@b:c:deny"):  # fmt: skip
            self.assertRaises(RuleError, compiled, line)

    def test_ipv6(self) -> None:
        """§4.8: the verdict ends the key, not the first colon."""
        self.assertEqual(
            compiled(b'2001:db8::1:allow\n2001:db8::deny\n::1:allow,X=":deny"'),
            [(b"2001:db8::1", b""), (b"2001:db8:", b"D\0"), (b"::1", b"+X=:deny\0")],
        )

    def test_no_rules(self) -> None:
        """What Debian's program cannot parse either, and the number of the line."""
        for line in (
            b"1:allow,",
            b'1:allow,A="x',
            b"1:allow,A",
            b"1:allow x",
            b"1:foo",
            b"1:allowed",
            b'1:allow,A=""B="x"',
            b"1:allow,A=  B",
            b":",
            b"a-b:allow",
            b"1-3x:allow",
            b"a1-3:deny",
            b"1.2.3-9-11:deny",
            b"1:allow X:allow",
        ):
            error = self.assertRaises(RuleError, compiled, b":allow\n" + line + b"\n")
            self.assertEqual((error.number, error.line), (2, line))

    @given(st.lists(st.sampled_from([b"1", b"-", b".", b":", b"=", b"allow", b"deny", b",", b'"', b"\n", b"@", b"x"])))
    def test_anything(self, parts: list[bytes]) -> None:
        """Any text is rules, or the one error."""
        try:
            compiled(b"".join(parts))
        except RuleError as error:
            self.assertIn(error.line, b"".join(parts))


class FindTests(SynchronousTestCase):
    def test_order(self) -> None:
        """§4.2: eight kinds of keys, the most special first."""
        self.assertEqual(
            list(lookup_keys(b"1.2.3.4", b"a.b.c", b"id")),
            [
                *(b"id@1.2.3.4", b"id@=a.b.c", b"1.2.3.4", b"=a.b.c", b"1.2.3.", b"1.2.", b"1."),
                *(b"=.b.c", b"=.c", b"=", b""),
            ],
        )
        self.assertEqual(list(lookup_keys(b"1.2.3.4")), [b"1.2.3.4", b"1.2.3.", b"1.2.", b"1.", b""])

    def test_order_ipv6(self) -> None:
        """§4.8."""
        self.assertEqual(
            list(lookup_keys(b"2001:db8::1")), [b"2001:db8::1", b"2001:db8::", b"2001:db8:", b"2001:", b""]
        )

    def test_verdicts(self) -> None:
        rules = dict(compile_rules(b'1.2.3.4:deny,A="x"\n1.2.:allow,A="",B="y"\n=:allow'))
        self.assertEqual(find_rule(rules.get, b"1.2.3.4"), Verdict(b"1.2.3.4", False, (b"A=x",)))
        self.assertEqual(find_rule(rules.get, b"1.2.3.5"), Verdict(b"1.2.", True, (b"A=", b"B=y")))
        self.assertEqual(find_rule(rules.get, b"9.9.9.9", b"h"), Verdict(b"=", True))
        self.assertEqual(find_rule(rules.get, b"9.9.9.9"), Verdict(None, True))

    def test_foreign_data(self) -> None:
        """What has no end says nothing."""
        self.assertEqual(find_rule({b"": b"+A\0+B=1"}.get, b"1"), Verdict(b"", True, (b"A",)))
