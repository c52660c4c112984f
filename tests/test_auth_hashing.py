"""Password hashes: argon2id in PHC strings, crypt(5), {PLAIN}."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth import hashing
from qtwist.auth.hashing import CURRENT, HashError, Parameters
from tests.auth_tools import CHEAP, IMPORTED, Counter, cheap

# From test.c of the reference implementation (P-H-C/phc-winner-argon2); the password is "password".
REFERENCE = (
    b"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
    b"$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
)


class ArgonTests(SynchronousTestCase):
    def test_reference(self) -> None:
        for text in REFERENCE:
            self.assertTrue(hashing.matches(text, b"password"), text)
            self.assertFalse(hashing.matches(text, b"passwore"), text)
            self.assertFalse(hashing.matches(text[:-1] + b"A", b"password"), text)

    def test_new(self) -> None:
        """The parameters are OWASP's least ones, and no two salts are alike."""
        one, other = hashing.make(b"secret"), hashing.make(b"secret")
        self.assertTrue(one.startswith(b"$argon2id$v=19$m=19456,t=2,p=1$"), one)
        self.assertNotEqual(one, other)
        self.assertTrue(hashing.matches(one, b"secret"))
        self.assertFalse(hashing.matches(one, b"Secret"))
        self.assertFalse(hashing.is_outdated(one))
        self.assertEqual(hashing.scheme(one), "argon2id")

    @settings(max_examples=30)
    @given(st.binary(min_size=1, max_size=80), st.binary(max_size=80))
    def test_any_password(self, password: bytes, other: bytes) -> None:
        text = cheap(password)
        self.assertEqual(hashing.matches(text, password), b"\0" not in password)
        self.assertEqual(hashing.matches(text, other), other == password and b"\0" not in password)

    def test_bounds(self) -> None:
        """A damaged line takes neither all memory nor hours, and is not even tried."""
        counter = Counter(self)
        good = cheap(b"secret")
        counter.take()
        for old, new in (
            (b"m=8,", b"m=1048577,"),
            (b"m=8,", b"m=7,"),
            (b"t=1,", b"t=0,"),
            (b"t=1,", b"t=65,"),
            (b"p=1$", b"p=17$"),
            (b"p=1$", b"p=0$"),
            (b"p=1$", b"p=2$"),
            (b"v=19", b"v=16"),
            (b"argon2id", b"argon2i"),
            (b"p=1$", b"p=1$$"),
            (b"p=1", b"p=1,data=AA"),
        ):
            text = good.replace(old, new)
            self.assertNotEqual(text, good)
            self.assertRaises(HashError, hashing.matches, text, b"secret")
        self.assertRaises(HashError, hashing.scheme, good + b"\n")
        self.assertRaises(HashError, hashing.scheme, good + b"=")
        self.assertEqual(counter.take(), [])

    def test_outdated(self) -> None:
        self.assertTrue(hashing.is_outdated(cheap(b"secret")))
        self.assertFalse(hashing.is_outdated(cheap(b"secret"), CHEAP))
        self.assertFalse(hashing.is_outdated(cheap(b"secret"), Parameters(8, 1, 4)))
        self.assertTrue(hashing.is_outdated(cheap(b"secret"), Parameters(8, 2, 1)))


class ImportTests(SynchronousTestCase):
    """Hashes of other systems, through the C library."""

    def test_methods(self) -> None:
        for method, text in {**IMPORTED, "bcrypt y": IMPORTED["bcrypt"].replace(b"$2b$", b"$2y$")}.items():
            self.assertEqual(hashing.scheme(text), method.partition(" ")[0])
            hashing.check_available(text)
            self.assertTrue(hashing.matches(text, b"secret"), method)
            self.assertFalse(hashing.matches(text, b"secreT"), method)
            self.assertTrue(hashing.is_outdated(text))

    def test_never(self) -> None:
        """No empty password, none with a NUL, none that is too long; but the hash is computed all the same."""
        counter = Counter(self)
        for text in (IMPORTED["sha512"], cheap(b"x"), hashing.PLAIN + b"x"):
            counter.take()
            for password in (b"", b"secret\0", b"secret\0more", b"x" * 5000):
                self.assertFalse(hashing.matches(text, password))
            self.assertEqual(len(counter.take()), 0 if text.startswith(b"{") else 4)

    def test_longest(self) -> None:
        longest = b"x" * hashing.LONGEST_PASSWORD
        text = cheap(longest)
        self.assertTrue(hashing.matches(text, longest))
        self.assertFalse(hashing.matches(cheap(longest + b"x"), longest + b"x"))

    def test_long_for_the_library(self) -> None:
        """libxcrypt refuses passwords of 512 octets and more; nobody has one with it."""
        self.assertFalse(hashing.matches(IMPORTED["sha512"], b"x" * 600))

    def test_costs_are_bounded(self) -> None:
        for text in (
            IMPORTED["sha512"].replace(b"rounds=1000", b"rounds=999999999"),
            IMPORTED["bcrypt"].replace(b"$05$", b"$31$"),
        ):
            self.assertRaises(HashError, hashing.scheme, text)
        self.assertEqual(hashing.scheme(IMPORTED["bcrypt"].replace(b"$05$", b"$16$")), "bcrypt")
        self.assertRaises(HashError, hashing.scheme, IMPORTED["bcrypt"].replace(b"$05$", b"$17$"))

    def test_missing_method(self) -> None:
        """A library without the method says so; it does not refuse everybody."""
        for said in (b"*0", b"*1", None):
            self.patch(hashing, "_library", lambda said=said: _Lacking(said))
            with self.assertRaises(HashError) as caught:
                hashing.matches(IMPORTED["yescrypt"], b"secret")
            self.assertIn("libcrypt has yescrypt", str(caught.exception))
            self.assertRaises(HashError, hashing.check_available, IMPORTED["yescrypt"])


class _Lacking:
    def __init__(self, said: bytes | None) -> None:
        self._said = said

    def crypt_r(self, *_: object) -> bytes | None:
        return self._said


class SchemeTests(SynchronousTestCase):
    def test_plain(self) -> None:
        self.assertEqual(hashing.scheme(b"{PLAIN}a b:c"), "plain")
        self.assertTrue(hashing.matches(b"{PLAIN}a b:c", b"a b:c"))
        self.assertFalse(hashing.matches(b"{PLAIN}a b:c", b"a b:d"))
        self.assertFalse(hashing.is_outdated(b"{PLAIN}x"))

    def test_no_hash(self) -> None:
        """Nothing is taken for a hash that is none: not DES, a locked account, a bare password."""
        for text in (
            b"",
            b"x",
            b"!",
            b"*",
            b"!$6$a$" + b"." * 86,
            b"abiQ6Ep3EYTHc",
            b"{PLAIN}",
            b"{PLAIN}a\0b",
            b"{PLAIN}a\nb",
            b"{plain}x",
            b"secret",
        ):
            with self.assertRaises(HashError) as caught:
                hashing.scheme(text)
            if len(text) > 3 and text != hashing.PLAIN:
                self.assertNotIn(text.decode(), str(caught.exception))
        self.assertRaises(HashError, hashing.scheme, b"{PLAIN}" + b"x" * hashing.LONGEST_HASH)

    @given(st.one_of(st.binary(max_size=150), st.from_regex(rb"\$(1|5|6|2b|y|argon2id)\$[ -~]{0,90}", fullmatch=True)))
    def test_any_text(self, text: bytes) -> None:
        try:
            method = hashing.scheme(text)
        except HashError:
            return
        self.assertIn(method, {"argon2id", "plain", *IMPORTED})

    def test_current(self) -> None:
        """https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html: 19 MiB, 2 passes."""
        self.assertGreaterEqual(CURRENT.memory, 19 * 1024)
        self.assertGreaterEqual(CURRENT.passes, 2)
