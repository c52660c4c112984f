"""What is delivered is what is read: the mailbox of a login (spec/qmail.md §9.3, §12.1, §12.3, §13.4)."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.mailboxes import MailboxError
from qtwist.files.disk import RealDisk
from qtwist.local.deliver import Forwarded, Job, Parts, deliver
from qtwist.local.users import Users
from tests.auth_tools import MailHome
from tests.unprivileged import as_user


class MailboxTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = MailHome(self)
        self.find = self.home.mailboxes.find

    def maildir(self, name: bytes) -> bytes | None:
        account = self.find(name)
        assert account is not None
        return account.maildir and account.maildir.removeprefix(os.fsencode(self.home.path) + b"/")

    def test_names(self) -> None:
        """§9.3: an address in a local domain is the name before the @; letter case does not matter."""
        self.assertEqual(self.home.mailboxes.names(b"Joe"), (b"joe",))
        self.assertEqual(self.home.mailboxes.names(b"joe@Mail.Example.ORG"), (b"joe@mail.example.org", b"joe"))
        self.assertEqual(self.home.mailboxes.names(b"joe@elsewhere.example"), (b"joe@elsewhere.example",))
        self.assertEqual(self.home.mailboxes.names(b"@mail.example.org"), (b"@mail.example.org",))
        self.home.write("control/locals", b"# ours\nExample.org\n")
        self.assertEqual(self.home.mailboxes.names(b"joe@example.org"), (b"joe@example.org", b"joe"))
        self.assertEqual(self.home.mailboxes.names(b"joe@mail.example.org"), (b"joe@mail.example.org",))

    def test_assigned(self) -> None:
        """§12.1: users/cdb comes first, with the ids and the directory that it says."""
        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::")
        self.home.account(b"joe")
        account = self.find(b"JOE")
        assert account is not None
        self.assertEqual((account.uid, account.gid), (1234, 2345))
        self.assertEqual(account.home, os.fsencode(self.home.join("mail/joe")))
        self.assertEqual(account.maildir, account.home + b"/Maildir")
        self.assertEqual(account.environment, {b"USER": b"someone", b"HOME": account.home, b"SHELL": b"/bin/sh"})

    def test_nobody(self) -> None:
        self.home.assign("=root:root:0:0:/root:::", "=joe:someone:1234:2345:HOME/mail/joe:::")
        for name in (b"ann", b"root", b"joe-lists", b"joe@elsewhere.example", b"", b"@", b"joe@"):
            self.assertIsNone(self.find(name), name)

    def test_system_account(self) -> None:
        """§12.3: an account of the system that owns its home; an extension of it is nobody's name."""
        home = self.home.account(b"joe")
        account = self.find(b"joe")
        assert account is not None
        self.assertEqual((account.home, account.maildir), (home, home + b"/Maildir"))
        self.assertIsNone(self.find(b"joe-lists"))

    def test_virtual_domain(self) -> None:
        """§9.3: the prefix of the domain, a hyphen, the name."""
        self.home.write("control/virtualdomains", b"shop.example:shop\nann@own.example:annie\n")
        self.home.assign("=shop-bob:v:1:1:HOME/mail/bob:::", "+shop-:v:1:1:HOME/mail/shop:-::")
        self.assertEqual(self.home.mailboxes.local(b"bob@Shop.example"), b"shop-bob")
        self.assertEqual(self.home.mailboxes.local(b"ann@own.example"), b"annie-ann")
        self.assertIsNone(self.home.mailboxes.local(b"x@own.example"))
        self.assertEqual(self.maildir(b"bob@shop.example"), b"mail/bob/Maildir")

    def test_wildcard(self) -> None:
        """§13.4: the .qmail file of the extension decides; without one nothing is delivered."""
        self.home.assign("+shop-:v:1:1:HOME/mail/shop:-::")
        self.home.write("mail/shop/.qmail-ann", b"# ann's\n&copy@example.net\n./ann/Maildir/\n./other/\n")
        self.assertEqual(self.maildir(b"shop-ann"), b"mail/shop/ann/Maildir")
        self.assertIsNone(self.maildir(b"shop-bob"))
        self.home.write("mail/shop/.qmail-default", b"/var/mail/shop/\n")
        self.assertEqual(self.maildir(b"shop-bob"), b"/var/mail/shop")

    def test_dotqmail(self) -> None:
        """§13.4-13.5: .qmail, an empty one means the default, one without a maildir leaves ./Maildir/."""
        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::")
        for text, expected in (
            (b"./Mail/in/\n", b"mail/joe/Mail/in"),
            (b"", b"mail/joe/Default"),
            (b"|program\n&joe@example.net\n", b"mail/joe/Maildir"),
            (b"\n./Mail/\n", b"mail/joe/Maildir"),
        ):
            self.home.write("control/defaultdelivery", b"./Default/\n")
            self.home.write("mail/joe/.qmail", text)
            self.assertEqual(self.maildir(b"joe"), expected, text)
        os.unlink(self.home.join("mail/joe/.qmail"))
        self.assertEqual(self.maildir(b"joe"), b"mail/joe/Default")
        self.home.write("control/defaultdelivery", b"./Mailbox\n")
        self.assertEqual(self.maildir(b"joe"), b"mail/joe/Maildir")

    def test_delivered_is_read(self) -> None:
        """The engine of deliveries puts a message just where the login finds it."""
        self.home.write("control/virtualdomains", b"shop.example:shop\n")
        self.home.assign("=joe:joe:1:1:HOME/mail/joe:::", "+shop-:v:1:1:HOME/mail/shop:-::")
        self.home.write("mail/joe/.qmail", b"# two of them\n./One/\n./Two/\n")
        self.home.write("mail/shop/.qmail-ann", b"")
        self.home.write("mail/shop/.qmail-default", b"./default/\n")
        for name in ("joe/One", "joe/Two", "shop/Maildir", "shop/default"):
            for part in ("tmp", "new", "cur"):
                os.makedirs(self.home.join(f"mail/{name}/{part}"))
        users = Users(os.fsencode(self.home.join("users/cdb")), alias=lambda: None)
        message = os.open(self.home.join("message"), os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, message)
        os.write(message, b"Subject: x\n\n")
        parts = Parts(RealDisk(), lambda: 1e9, b"host", _no_forward, {}, 10)
        for name in (b"joe", b"ann@shop.example", b"bob@shop.example"):
            account = self.find(name)
            local = self.home.mailboxes.local(name)
            assert account is not None and local is not None and account.maildir is not None
            owner = users.find(local)
            job = Job(owner.user, owner.home, local, owner.dash, owner.ext, b"x", b"", b"./Maildir/", message)
            self.assertEqual(deliver(job, parts).code, 0)
            self.assertEqual(len(os.listdir(account.maildir + b"/new")), 1, name)

    def test_no_permission(self) -> None:
        """Who may not look knows no maildir, and says no wrong one."""
        self.home.assign("=joe:someone:1234:2345:HOME/mail/joe:::")
        self.home.write("mail/joe/.qmail", b"./Mail/\n")
        os.chmod(self.home.path, 0o755)
        os.chmod(self.home.join("mail/joe"), 0)
        self.addCleanup(os.chmod, self.home.join("mail/joe"), 0o700)
        self.assertIsNone(as_user(lambda: self.maildir(b"joe")))

    def test_broken_database(self) -> None:
        self.home.write("users/cdb", b"nonsense")
        self.assertRaises(MailboxError, self.find, b"joe")

    def test_reported(self) -> None:
        """What a checkpassword program says of an account."""
        home = os.fsencode(self.home.join("mail/x"))
        account = self.home.mailboxes.reported(b"x", home, 5, 6, {b"HOME": home, b"USER": b"y"})
        self.assertEqual((account.name, account.uid, account.gid), (b"x", 5, 6))
        self.assertEqual(account.maildir, home + b"/Maildir")


def _no_forward(*_: object) -> Forwarded:
    raise AssertionError("nothing is forwarded here")
