"""Who owns a local part: spec/qmail.md §12.1, §12.3, §28.14, §28.17."""

from __future__ import annotations

import errno
import os
import pwd

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.assign import Assignment, compile_assign
from qtwist.files.cdb import write_cdb
from qtwist.local import users
from qtwist.local.errors import DeliveryError
from qtwist.local.users import Account, Users, by_account, folder_account, system_account

ALIAS = Account(b"alias", 7790, 7791, b"/home/alias")


class ByAccountTests(SynchronousTestCase):
    """§12.3."""

    def setUp(self) -> None:
        self.home = os.fsencode(os.path.abspath(self.mktemp()))
        os.mkdir(self.home)
        self.owner = 4242
        self.accounts: dict[bytes, Account] = {}
        self.asked: list[bytes] = []
        self.add(b"joe", b"joe-smith", b"x" * 31)
        self.patch(users.os, "stat", self.stat)

    def add(self, *names: bytes) -> None:
        for name in names:
            self.accounts[name] = Account(name, 4242, 4243, self.home)

    def stat(self, path: bytes) -> os.stat_result:
        if path == b"/stale":
            raise OSError(errno.ESTALE, "Stale file handle")
        if path != self.home:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return os.stat_result((0o40755, 1, 1, 1, self.owner, 1, 0, 0, 0, 0))

    def find(self, local: bytes, separator: bytes = b"-") -> tuple[bytes, bytes, bytes] | None:
        def account(name: bytes) -> Account | None:
            self.asked.append(name)
            return self.accounts.get(name)

        found = by_account(local, account, separator)
        if found is None:
            return None
        self.assertEqual((found.uid, found.gid, found.home), (4242, 4243, self.home))
        return found.user, found.dash, found.ext

    def test_prefixes(self) -> None:
        """The longest prefix before a break character wins; names without case, the extension as it came."""
        for local, expected in [
            (b"joe", (b"joe", b"", b"")),
            (b"JOE", (b"joe", b"", b"")),
            (b"joe-", (b"joe", b"-", b"")),
            (b"Joe-Foo-Bar", (b"joe", b"-", b"Foo-Bar")),
            (b"joe-smith", (b"joe-smith", b"", b"")),
            (b"joe-smith-x", (b"joe-smith", b"-", b"x")),
            (b"joe-smithy", (b"joe", b"-", b"smithy")),
            (b"joex", None),
            (b"-joe", None),
            (b"nobody", None),
        ]:
            self.assertEqual(self.find(local), expected, local)

    def test_tried(self) -> None:
        self.find(b"A-b-c")
        self.assertEqual(self.asked, [b"a-b-c", b"a-b", b"a"])

    def test_length(self) -> None:
        """Prefixes of fewer than 32 octets count."""
        self.add(b"x" * 32)
        self.assertEqual(self.find(b"x" * 31 + b"-y"), (b"x" * 31, b"-", b"y"))
        self.assertIsNone(self.find(b"x" * 32))

    def test_separator(self) -> None:
        """§1.1 conf-break."""
        self.assertEqual(self.find(b"joe+x", b"+"), (b"joe", b"-", b"x"))
        self.assertIsNone(self.find(b"joe-x", b""))

    def test_root(self) -> None:
        """uid 0 never gets mail."""
        self.accounts[b"root"] = Account(b"root", 0, 0, self.home)
        self.owner = 0
        self.assertIsNone(self.find(b"root"))

    def test_foreign_home(self) -> None:
        """The home directory must belong to the account."""
        self.owner = 4241
        self.assertIsNone(self.find(b"joe"))

    def test_home_missing(self) -> None:
        self.accounts[b"ann"] = Account(b"ann", 4242, 4243, b"/nonexistent")
        self.assertIsNone(self.find(b"ann"))

    def test_home_stale(self) -> None:
        """A home directory that cannot be looked at for now: 115, not somebody else's mail."""
        self.accounts[b"ann"] = Account(b"ann", 4242, 4243, b"/stale")
        self.assertEqual(self.assertRaises(DeliveryError, self.find, b"ann-x").code, 115)


class UsersTests(SynchronousTestCase):
    """§12.1 before §12.3."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.asked: list[bytes] = []
        self.alias: Account | None = ALIAS
        self.users = Users(os.fsencode(self.path), lambda: self.alias, self.asked.append)

    def assign(self, text: bytes) -> None:
        write_cdb(self.path, compile_assign(text))

    def find(self, local: bytes) -> tuple[bytes, ...]:
        found = self.users.find(local)
        return found.user, found.home, found.dash, found.ext

    def test_assign(self) -> None:
        """The assignments of §28.14: simple, wildcard, rest, in this order, and the case of the rest is kept."""
        self.assign(b"=joe:u1:1001:1002:/h1:::\n+joe-:u2:1001:1001:/h2:-::\n+:u3:1001:1001:/h3:-:a-:\n.\n")
        self.assertEqual(self.users.find(b"JOE"), Assignment(b"u1", 1001, 1002, b"/h1", b"", b""))
        self.assertEqual(self.find(b"joe-"), (b"u2", b"/h2", b"-", b""))
        self.assertEqual(self.find(b"Joe-X-y"), (b"u2", b"/h2", b"-", b"X-y"))
        self.assertEqual(self.find(b"joey"), (b"u3", b"/h3", b"-", b"a-joey"))
        self.assertEqual(self.asked, [])

    def test_nobody(self) -> None:
        """§28.17: what no account owns is alias's, with the whole local part as the extension."""
        for local in (b"nobody", b"Postmaster", b"a-b"):
            self.assertEqual(self.users.find(local), Assignment(b"alias", 7790, 7791, b"/home/alias", b"-", local))

    def test_not_assigned(self) -> None:
        self.assign(b"=joe:u1:1001:1002:/h1:::\n.\n")
        self.assertEqual(self.find(b"ann"), (b"alias", b"/home/alias", b"-", b"ann"))
        self.assertEqual(self.asked, [b"ann"])

    def test_no_alias(self) -> None:
        self.alias = None
        self.assertEqual(self.assertRaises(DeliveryError, self.users.find, b"x").code, 116)

    def test_replaced(self) -> None:
        """A new users/cdb counts at once, and so does its removal."""
        self.assign(b"=x:u1:1:1:/h:::\n.\n")
        self.assertEqual(self.find(b"x")[0], b"u1")
        self.assign(b"=x:u2:1:1:/h:::\n.\n")
        self.assertEqual(self.find(b"x")[0], b"u2")
        os.unlink(self.path)
        self.assertEqual(self.find(b"x")[0], b"alias")

    def test_damaged(self) -> None:
        """117: nobody else gets the mail while users/cdb cannot be read, however often it is tried."""
        with open(self.path, "wb") as file:
            file.write(b"not a cdb")
        for _ in range(2):
            self.assertEqual(self.assertRaises(DeliveryError, self.users.find, b"x").code, 117)

    def test_unreadable(self) -> None:
        os.mkdir(self.path)
        self.assertEqual(self.assertRaises(DeliveryError, self.users.find, b"x").code, 117)

    def test_not_from_newu(self) -> None:
        """117: the record of wildcard characters is missing."""
        write_cdb(self.path, [(b"!x\0", b"u\0001\0001\0/h\0\0")])
        self.assertEqual(self.assertRaises(DeliveryError, self.users.find, b"x").code, 117)

    def test_bad_record(self) -> None:
        """112."""
        write_cdb(self.path, [(b"!x\0", b"u\0zero\0001\0/h\0\0"), (b"", b"")])
        self.assertEqual(self.assertRaises(DeliveryError, self.users.find, b"x").code, 112)


class SystemTests(SynchronousTestCase):
    """The account database and folder owners of this machine."""

    def test_account(self) -> None:
        entry = pwd.getpwall()[0]
        expected = Account(entry.pw_name.encode(), entry.pw_uid, entry.pw_gid, os.fsencode(entry.pw_dir))
        self.assertEqual(system_account(entry.pw_name.encode()), expected)

    def test_no_account(self) -> None:
        for name in (b"no such account", b"", b"a\0b", b"\xff\xfe"):
            self.assertIsNone(system_account(name))

    def test_folder(self) -> None:
        path = os.fsencode(os.path.abspath(self.mktemp()))
        self.assertIsNone(folder_account(path))
        os.mkdir(path)
        found = folder_account(path)
        assert found is not None
        self.assertEqual((found.uid, found.home), (os.stat(path).st_uid, path))
