"""Domains and addresses in letters of all the world (RFC 5890, UTS #46, RFC 6531)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.address import parse_path
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.domains import ascii_domain, ascii_key, is_utf8, utf8_domain
from qtwist.mail.rewriting import Rewriter
from qtwist.mail.smtputf8 import as_path, needs_utf8

BOOKS, BOOKS_ASCII = "bücher.example".encode(), b"xn--bcher-kva.example"
RECEIVED = b"Received: from a (HELO b) (192.0.2.1)\n  by c with UTF8SMTPS (X encrypted); 1 Jan 2026\n"


class DomainTests(SynchronousTestCase):
    def test_known_ones(self) -> None:
        for text, wanted in (
            ("Example.ORG", b"example.org"),
            ("bücher.example", BOOKS_ASCII),
            ("BÜCHER.example", BOOKS_ASCII),
            ("bu\u0308cher.example", BOOKS_ASCII),  # not composed
            ("xn--bcher-kva.EXAMPLE", BOOKS_ASCII),
            (".bücher.example", b".xn--bcher-kva.example"),
            ("例え。テスト", b"xn--r8jz45g.xn--zckzah"),  # with an ideographic full stop
            ("straße.example", b"xn--strae-oqa.example"),
            ("", b""),
        ):
            self.assertEqual(ascii_domain(text.encode()), wanted, text)

    def test_what_is_none(self) -> None:
        """It is compared as it stands; nothing is raised."""
        for domain in (b"\xff.example", "a\u2028b".encode(), "-ü-.example".encode(), ("ü" * 300).encode()):
            self.assertEqual(ascii_domain(domain), domain.lower())

    def test_what_becomes_something_else(self) -> None:
        """No sign of ASCII comes of another one: a literal, a second ``@``, a blank, a slash, a jolly card."""
        for text in (
            "\uff3b127.0.0.1\uff3d",
            "a\uff20b.example",
            "a\u00a0ü.example",
            "ex\uff0fample.com",
            "\uff0a.example",
        ):
            self.assertEqual(ascii_domain(text.encode()), text.encode())

    def test_a_long_one(self) -> None:
        """Longer than any domain: nobody spends time on it."""
        self.assertEqual(ascii_domain("Ü.".encode() * 400), "Ü.".encode() * 400)

    @given(st.text(max_size=30))
    def test_any_text(self, text: str) -> None:
        """Once is enough; ASCII only gets smaller letters."""
        domain = text.encode("utf-8", "surrogatepass")
        found = ascii_domain(domain)
        self.assertEqual(ascii_domain(found), found)
        if domain.isascii():
            self.assertEqual(found, domain.lower())
        if found.isascii():
            self.assertLessEqual(set(found) - set(b"abcdefghijklmnopqrstuvwxyz0123456789-."), set(domain))

    @given(st.binary(max_size=30))
    def test_any_octets(self, octets: bytes) -> None:
        ascii_domain(octets)
        self.assertEqual(ascii_key(ascii_key(octets)), ascii_key(octets))
        self.assertEqual(is_utf8(octets), octets.decode("utf-8", "replace").encode() == octets)

    def test_keys(self) -> None:
        self.assertEqual(ascii_key("MÜLLER@Bücher.example".encode()), "mÜller@xn--bcher-kva.example".encode())
        self.assertEqual(ascii_key(b"Joe@Example.org"), b"joe@example.org")

    def test_back(self) -> None:
        """U-labels for A-labels, but what is none stays."""
        self.assertEqual(utf8_domain(b"WWW.xn--bcher-kva.example"), "www.b\u00fccher.example".encode())
        for domain in (b"xn--a.example", b"xn--.example", b"xn--zzzzzz99999.example", b"plain.example"):
            self.assertEqual(utf8_domain(domain), domain)


class LookUpTests(SynchronousTestCase):
    def test_either_spelling(self) -> None:
        """In the control file and in the address."""
        for listed in (BOOKS, BOOKS_ASCII, "BÜCHER.example".encode()):
            rewriter = Rewriter(b"here.test", ConstantMap.plain([listed]))
            for domain in (BOOKS, BOOKS_ASCII):
                self.assertEqual(rewriter.route(b"joe@" + domain), ("local", b"joe@" + domain))
            virtual = Rewriter(b"here.test", ConstantMap(), virtualdomains=ConstantMap.colon([b"." + listed + b":v"]))
            self.assertEqual(virtual.route(b"joe@a." + BOOKS), ("local", b"v-joe@a." + BOOKS))
            self.assertEqual(virtual.original(b"v-joe@a." + BOOKS_ASCII), b"joe@a." + BOOKS_ASCII)


class NeedTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        """A local part needs it, a domain does not; what is no UTF-8 goes as it ever did."""
        joe, mueller = b"joe@example.org", "müller@example.org".encode()
        self.assertFalse(needs_utf8((joe, b"joe@" + BOOKS), b""))
        self.assertTrue(needs_utf8((joe, mueller), b""))
        self.assertTrue(needs_utf8((mueller, joe), b""))
        self.assertFalse(needs_utf8((b"m\xfcller@example.org", joe), b""))

    def test_header(self) -> None:
        """One that came with SMTPUTF8 and makes use of it."""
        subject = "Subject: für\n\nbody\n".encode()
        self.assertTrue(needs_utf8((b"a@b.test",), RECEIVED + subject))
        long = RECEIVED + "Subject: für\nX: ü".encode()[:-1]  # what is looked at ends amid a letter
        self.assertTrue(needs_utf8((b"a@b.test",), long))
        for head in (
            subject,
            RECEIVED + "Subject: x\n\nfür\n".encode(),
            RECEIVED + b"Subject: f\xfcr\n\n",
            RECEIVED.replace(b"UTF8SMTPS", b"ESMTPS") + subject,
            b"Subject: x\n" + subject.replace(b"body", RECEIVED),
        ):
            self.assertFalse(needs_utf8((b"a@b.test",), head), head)


class PathTests(SynchronousTestCase):
    def test_quotes(self) -> None:
        """Where they are needed for something else (RFC 6531 §3.3); without SMTPUTF8 as in qmail (§2.4)."""
        for address, wanted, quoted in (
            ("", "", ""),
            ("joe", "joe", "joe"),
            ("müller", "müller", "müller"),
            ("joe@bücher.example", "joe@xn--bcher-kva.example", "joe@xn--bcher-kva.example"),
            ("müller.ü@example.org", "müller.ü@example.org", '"müller.ü"@example.org'),
            ("mü ller@example.org", '"mü ller"@example.org', '"mü ller"@example.org'),
            ("mü..ller@example.org", '"mü..ller"@example.org', '"mü..ller"@example.org'),
            ("ü.@example.org", '"ü."@example.org', '"ü."@example.org'),
        ):
            self.assertEqual(as_path(address.encode(), True), wanted.encode())
            self.assertEqual(as_path(address.encode(), False), quoted.encode())
        self.assertEqual(as_path(b"m\xfcller@example.org", True), b'"m\xfcller"@example.org')

    @given(st.text(max_size=12), st.booleans())
    def test_any(self, local: str, utf8: bool) -> None:
        """What a server reads is the address."""
        address = local.replace("\0", "").encode() + b"@example.org"
        self.assertEqual(parse_path(b"TO:<" + as_path(address, utf8) + b">"), (address, b""))
