"""Tests of qtwist.mail.address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.address import (
    Address,
    parse_path,
    quote,
    quote2,
    replace_own_ip,
    sanitise_log,
    sanitise_received,
    split,
    unquote,
)

PLAIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-./=?^_`{|}~"
ARGUMENTS = st.lists(st.sampled_from([b'"', b"\\", b"<", b">", b"@", b":", b" ", b"a", b"b.c", b"\xff", b",", b"\0"]))


def needs_quotes(box: bytes) -> bool:
    """§2.4, word for word."""
    return (
        not box or any(byte not in PLAIN for byte in box) or box.startswith(b".") or box.endswith(b".") or b".." in box
    )


def slow_parse(argument: bytes) -> bytes:
    """§16.3, one byte at a time; the address alone."""
    argument = argument.split(b"\0")[0]
    at = argument.find(b"<")
    if at >= 0:
        argument, terminator = argument[at + 1 :], ord(">")
    else:
        argument, terminator = argument.partition(b":")[2].lstrip(b" "), ord(" ")
    if argument.startswith(b"@"):
        argument = argument.partition(b":")[2]
    copied = bytearray()
    escaped = quoted = False
    for byte in argument:
        if escaped:
            copied.append(byte)
            escaped = False
        elif byte == terminator and not quoted:
            break
        elif byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            quoted = not quoted
        else:
            copied.append(byte)
    return bytes(copied)


class QuoteTests(SynchronousTestCase):
    def test_plain_and_quoted(self) -> None:
        """§2.4, §28.4: quotes only where needed, backslashes before CR, LF, quote and backslash."""
        for box, expected in [
            (b"joe", b"joe"),
            (PLAIN, PLAIN),
            (b"", b'""'),
            (b"we ird", b'"we ird"'),
            (b".joe", b'".joe"'),
            (b"joe.", b'"joe."'),
            (b"j..oe", b'"j..oe"'),
            (b"j.o.e", b"j.o.e"),
            (b"j\xf6e", b'"j\xf6e"'),
            (b'a"b\\c\rd\ne', b'"a\\"b\\\\c\\\rd\\\ne"'),
            (b"a@b", b'"a@b"'),
            (b"joe\n", b'"joe\\\n"'),
        ]:
            self.assertEqual(quote(box), expected, box)

    def test_quote2(self) -> None:
        """§2.4: split at the last @, the domain untouched, empty stays empty."""
        for address, expected in [
            (b"", b""),
            (b"joe", b"joe"),
            (b"j oe", b'"j oe"'),
            (b"joe@x y", b"joe@x y"),
            (b"a@b@c", b'"a@b"@c'),
            (b"@c", b'""@c'),
            (b"#@[]", b"#@[]"),
        ]:
            self.assertEqual(quote2(address), expected, address)

    @given(st.binary(max_size=40))
    def test_quoted_exactly_when_needed(self, box: bytes) -> None:
        quoted = quote(box)
        self.assertEqual(quoted != box, needs_quotes(box))
        self.assertEqual(unquote(quoted), box)

    @given(st.lists(st.sampled_from([b"a", b".", b"..", b"-", b"@", b" "])).map(b"".join))
    def test_dots(self, box: bytes) -> None:
        self.assertEqual(quote(box) != box, needs_quotes(box))

    @given(
        st.binary(max_size=40).filter(lambda a: b"\0" not in a).map(lambda a: a.replace(b"<", b"").replace(b">", b""))
    )
    def test_quoted_local_part_comes_back_through_smtp(self, box: bytes) -> None:
        """What quote2 writes, parse_path reads."""
        address = box + b"@example.org"
        self.assertEqual(parse_path(b"TO:<" + quote2(address) + b"> X=1"), (address, b"X=1"))


class ParsePathTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """§16.3."""
        for argument, expected in [
            (b"FROM:<joe@x>", (b"joe@x", b"")),
            (b"FROM:<>", (b"", b"")),
            (b"FROM: <joe@x> SIZE=10  BODY=8BITMIME ", (b"joe@x", b"SIZE=10  BODY=8BITMIME")),
            (b"FROM:<joe@x>SIZE=10", (b"joe@x", b"SIZE=10")),
            (b"FROM:  joe@x SIZE=10", (b"joe@x", b"SIZE=10")),
            (b"foo", (b"", b"")),  # no colon
            (b"", (b"", b"")),
            (b"TO:<@a,@b:joe@x>", (b"joe@x", b"")),
            (b"TO:@a:joe@x", (b"joe@x", b"")),
            (b"TO:<@a>", (b"", b"")),  # a source route without end
            (b'TO:<"a b>"@x> y', (b"a b>@x", b"y")),
            (b'TO:<"a\\"b"@x>', (b'a"b@x', b"")),
            (b"TO:<a\\>b@x>", (b"a>b@x", b"")),
            (b"TO:<joe@x", (b"joe@x", b"")),
            (b'TO:<"joe@x> y', (b"joe@x> y", b"")),
            (b"TO:<joe@x\\", (b"joe@x", b"")),
            (b"TO:<a@b@c>", (b"a@b@c", b"")),
            (b"TO:<joe\0@x>", (b"joe", b"")),
        ]:
            self.assertEqual(parse_path(argument), expected, argument)

    @given(ARGUMENTS.map(b"".join))
    def test_like_the_automaton(self, argument: bytes) -> None:
        self.assertEqual(parse_path(argument)[0], slow_parse(argument))

    @given(st.binary(max_size=60))
    def test_any_bytes(self, argument: bytes) -> None:
        address, rest = parse_path(argument)
        self.assertEqual(address, slow_parse(argument))
        self.assertNotIn(b"\0", address)
        self.assertIn(rest, argument)


class OwnIpTests(SynchronousTestCase):
    def test_replaced(self) -> None:
        """§16.3: exactly [d.d.d.d] after the last @, and only an address of ours."""

        def replaced(address: bytes) -> bytes:
            return replace_own_ip(address, b"mx.local", {"10.0.0.9"}.__contains__)

        self.assertEqual(replaced(b"joe@[10.0.0.9]"), b"joe@mx.local")
        self.assertEqual(replace_own_ip(b"joe@[10.0.0.256]", b"mx.local", lambda ip: True), b"joe@[10.0.0.256]")
        self.assertEqual(replaced(b"a@b@[10.0.0.9]"), b"a@b@mx.local")
        self.assertEqual(replaced(b"joe@[010.000.0.9]"), b"joe@mx.local")
        for same in (
            b"joe@[10.0.0.8]",
            b"joe@10.0.0.9",
            b"joe@[10.0.0.9].x",
            b"joe@[10.0.0.9]@x",
            b"[10.0.0.9]",
            b"joe@[10.0.0.265]",
            b"joe@[10.0.0.9]\n",
            b"joe@[]",
            b"",
        ):
            self.assertEqual(replaced(same), same)


class ShowTests(SynchronousTestCase):
    def test_log(self) -> None:
        """§9.7, §28.13."""
        self.assertEqual(sanitise_log(b"this is err\nmore\n\n"), b"this_is_err/more//")
        self.assertEqual(sanitise_log(b"a%b\x00\x1f !~\x7f\xff\r"), b"a_b___!~___")

    def test_received(self) -> None:
        """§16.7."""
        self.assertEqual(sanitise_received(b"az.AZ@09%+/=:-[]"), b"az.AZ@09%+/=:-[]")
        self.assertEqual(sanitise_received(b"foo;bar (x)_\n\0\xff"), b"foo?bar??x?????")


class AddressTests(SynchronousTestCase):
    def test_parts(self) -> None:
        address = Address(b"a@b@Example.ORG")
        self.assertEqual(
            (address.local, address.domain, address.domain_lower), (b"a@b", b"Example.ORG", b"example.org")
        )
        self.assertEqual(bytes(address), b"a@b@Example.ORG")
        self.assertEqual((Address(b"joe").local, Address(b"joe").domain), (b"joe", b""))
        self.assertEqual(split(b"@"), (b"", b""))
