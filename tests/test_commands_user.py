"""`qtwist user`: one command gives a person an address that receives and can be read (issue 4, item 2)."""

from __future__ import annotations

import os
import pty
import pwd
import subprocess
import sys

from qtwist.auth import hashing
from qtwist.auth.mailboxes import Account, Mailboxes
from qtwist.auth.people import People, Refusal
from qtwist.auth.store import CredentialStore
from qtwist.files.assign import find_assignment
from qtwist.files.cdb import CDB
from tests.auth_tools import IMPORTED
from tests.command_tools import PATIENCE, PYTHONPATH, CommandCase
from tests.queue_tools import note_syncs
from tests.unprivileged import ORDINARY

#: A name that is no account of any system that these tests run on.
NOBODY = "no-such-account"

CODE = "import sys; from qtwist.commands.user import main; sys.exit(main())"


class UserCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        os.chmod(self.home, 0o755)
        for name in ("control", "users", "mail"):
            os.mkdir(self.path(name))
        self.write("control/me", b"mail.example.org\n")
        self.write("users/assign", b"=postman:postman:1:1:/nowhere:::\n.\nbehind the end\n")
        self.uid = os.getuid()
        if self.uid == 0:
            # As `qtwist init` leaves it: root works here as the owner of the home.
            self.uid = ORDINARY
            subprocess.run(["chown", "-R", f"{ORDINARY}:{ORDINARY}", self.home], check=True)

    def user(self, *arguments: str, stdin: bytes = b"", code: int = 0, error: str = "") -> str:
        return self.check("user", *arguments, stdin=stdin, code=code, error=error).decode()

    def account(self, name: bytes) -> Account | None:
        return Mailboxes(self.home, lambda _: None).find(name)

    def assigned(self, local: bytes) -> bytes | None:
        found = find_assignment(CDB(self.path("users/cdb").encode()), local)
        return found and found.home + b" " + found.dash + found.ext

    def hash_of(self, name: bytes) -> bytes | None:
        return CredentialStore(self.path("users/credentials")).get(name)

    def tree(self) -> dict[str, bytes]:
        """Every file below the home, but for the locks."""
        found = {}
        for folder, _, files in os.walk(self.home):
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, self.home)] = file.read()
        return {name: text for name, text in found.items() if not name.endswith(".lock")}


class AddTests(UserCase):
    def test_all_of_it(self) -> None:
        said = self.user("add", "Joe", stdin=b"secret\n")
        home = self.path("mail/joe")
        self.assertEqual(
            self.read("users/assign").decode().split("\n")[1:3],
            [line.replace("UID", str(self.uid)) for line in self.lines("joe", "joe")],
        )
        self.assertTrue(self.read("users/assign").endswith(b"\n.\nbehind the end\n"))
        for local, found in ((b"joe", b" "), (b"joe-lists", b" -lists"), (b"postman", None)):
            self.assertEqual(self.assigned(local), home.encode() + found if found else b"/nowhere ")
        for part in ("", "/tmp", "/new", "/cur"):
            status = os.stat(f"{home}/Maildir{part}")
            self.assertEqual((status.st_mode & 0o777, status.st_uid), (0o700, self.uid))
        self.assertEqual(os.stat(home).st_mode & 0o777, 0o700)
        stored = self.hash_of(b"joe")
        assert stored is not None
        self.assertTrue(stored.startswith(b"$argon2id$"))
        self.assertTrue(hashing.matches(stored, b"secret"))
        self.assertEqual(os.stat(self.path("users/credentials")).st_mode & 0o777, 0o600)
        account = self.account(b"joe")
        assert account is not None
        self.assertEqual((account.uid, account.maildir), (self.uid, f"{home}/Maildir".encode()))
        for what in (f"made {home}/Maildir", "wrote " + self.path("users/assign"), "(argon2id)"):
            self.assertIn(what, said)
        self.assertNotIn("secret", said)

    def lines(self, local: str, name: str) -> list[str]:
        home = self.path("mail", name)
        import pwd

        try:
            user = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            user = str(self.uid)
        gid = os.stat(self.home).st_gid
        return [f"={local}:{user}:UID:{gid}:{home}:::", f"+{local}-:{user}:UID:{gid}:{home}:-::"]

    def test_again(self) -> None:
        """A second run changes nothing, and completes what a crash has left unfinished."""
        self.user("add", "joe", stdin=b"secret\n")
        before = self.tree()
        self.user("add", "joe", stdin=b"secret\n")
        self.assertEqual(self.tree(), before)
        os.rmdir(self.path("mail/joe/Maildir/cur"))
        os.unlink(self.path("users/cdb"))
        self.user("add", "joe", stdin=b"secret\n")
        self.assertEqual(self.tree(), before)
        self.assertTrue(os.path.isdir(self.path("mail/joe/Maildir/cur")))
        os.unlink(self.path("users/credentials"))
        self.user("add", "joe", stdin=b"other\n")
        self.assertEqual(self.user("verify", "joe", stdin=b"other\n"), "")

    def test_another_password(self) -> None:
        """That is for passwd."""
        self.user("add", "joe", stdin=b"secret\n")
        before = self.tree()
        self.user("add", "joe", stdin=b"other\n", code=100, error="qtwist user passwd")
        self.user("add", "joe", "--hash", IMPORTED["sha512"].decode(), code=100, error="qtwist user passwd")
        self.assertEqual(self.tree(), before)

    def test_order(self) -> None:
        """When the address cannot be made, there is no password; the line of the file is named."""
        self.write("users/assign", b"=joe:other:1:1:/other:::\n.\n")
        self.user("add", "joe", stdin=b"secret\n", code=100, error="users/assign, line 1")
        self.write("users/assign", b"nonsense\n.\n")
        self.user("add", "joe", stdin=b"secret\n", code=100, error="users/assign, line 1")
        self.assertIsNone(self.hash_of(b"joe"))
        self.assertEqual(self.read("users/assign"), b"nonsense\n.\n")

    def test_virtual_domain(self) -> None:
        """spec/qmail.md §9.3: the address is that of the prefix."""
        self.user("add", "bob@Shop.example", stdin=b"x\n", code=100, error="control/virtualdomains")
        self.write("control/virtualdomains", b"shop.example:shop\n")
        self.user("add", "bob@Shop.example", stdin=b"x\n")
        self.assertEqual(self.assigned(b"shop-bob"), self.path("mail/bob@shop.example").encode() + b" ")
        account = self.account(b"bob@shop.example")
        assert account is not None
        self.assertEqual(account.home, self.path("mail/bob@shop.example").encode())
        self.assertIsNone(self.account(b"bob"))

    def test_local_domain(self) -> None:
        """joe@ourselves is joe."""
        self.user("add", "joe@mail.example.org", stdin=b"x\n")
        self.assertIsNotNone(self.hash_of(b"joe"))

    def test_hash(self) -> None:
        for number, text in enumerate(IMPORTED.values()):
            self.user("add", f"user{number}", "--hash", text.decode())
            self.assertEqual(self.hash_of(b"user%d" % number), text)
            self.user("verify", f"user{number}", stdin=b"secret\n")
            self.assertEqual((self.hash_of(b"user%d" % number) or b"")[:10], b"$argon2id$")
        self.user("add", "joe", "--hash", "sesame", code=100, error="expected a hash")
        self.assertNotIn(b"sesame", self.run_command("user", "add", "joe", "--hash", "sesame").stderr)

    def test_apop(self) -> None:
        self.user("add", "joe", "--apop", stdin=b"secret with: blanks \n")
        self.assertEqual(self.hash_of(b"joe"), b"{PLAIN}secret with: blanks ")

    def test_delivery_elsewhere(self) -> None:
        """Where mail would go to an mbox, a .qmail file sends it to the maildir that is read."""
        self.write("control/defaultdelivery", b"./Mailbox\n")
        self.user("add", "joe", stdin=b"x\n")
        self.assertEqual(self.read("mail/joe/.qmail"), b"./Maildir/\n")
        self.write("control/defaultdelivery", b"./Mail/in/\n")
        os.mkdir(self.path("mail/ann"))
        os.mkdir(self.path("mail/ann/Mail"))
        for path in ("mail/ann", "mail/ann/Mail"):
            os.chown(self.path(path), self.uid, os.stat(self.home).st_gid)
        self.user("add", "ann", stdin=b"x\n")
        self.assertEqual(sorted(os.listdir(self.path("mail/ann/Mail/in"))), ["cur", "new", "tmp"])
        self.assertFalse(os.path.exists(self.path("mail/ann/.qmail")))

    def test_directory(self) -> None:
        self.user("add", "joe", "--directory", self.path("elsewhere"), stdin=b"x\n")
        self.assertEqual(self.assigned(b"joe"), self.path("elsewhere").encode() + b" ")

    def test_names(self) -> None:
        for name in ("a:b", "a b", "../x", "", ".", "a/b", "#x", "x" * 300):
            self.user("add", name, stdin=b"x\n", code=100, error="cannot be the name")
        self.assertEqual(os.listdir(self.path("mail")), [])

    def test_passwords(self) -> None:
        for password in (b"", b"\n", b"\0\n", b"x" * 1025 + b"\n"):
            self.user("add", "joe", stdin=password, code=100, error="a password has")
        self.assertIsNone(self.hash_of(b"joe"))

    def test_no_home(self) -> None:
        self.user("add", "joe", "--home", self.path("mail"), stdin=b"x\n", code=100, error="no home")

    def test_open_directory(self) -> None:
        """spec/qmail.md §13.1: nothing is delivered to a home that others can write."""
        os.mkdir(self.path("mail/joe"))
        os.chown(self.path("mail/joe"), self.uid, os.stat(self.home).st_gid)
        os.chmod(self.path("mail/joe"), 0o777)
        self.user("add", "joe", stdin=b"x\n", code=100, error="chmod")

    def test_terminal(self) -> None:
        """At a terminal the password is asked for twice, and not shown."""
        for second, code in (b"secret\n", 0), (b"other\n", 100):
            master, terminal = pty.openpty()
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, "add", f"joe{code}"],
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={"PATH": os.defpath, "PYTHONPATH": PYTHONPATH, "QTWISTHOME": self.home},
            )
            os.close(terminal)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            assert process.stdout is not None
            output = b""
            for answer in (b"secret\n", second):
                # Asking throws away what was typed before.
                output += self.prompt(process.stdout.fileno())
                os.write(master, answer)
            rest, _ = process.communicate(timeout=PATIENCE)
            output += rest
            os.close(master)
            self.assertEqual(process.returncode, code, output)
            self.assertIn(b"Once more: ", output)
            self.assertNotIn(b"secret", output)
        self.assertIsNone(self.hash_of(b"joe100"))

    def prompt(self, fd: int) -> bytes:
        output = b""
        while not output.endswith(b": "):
            block = os.read(fd, 1000)
            self.assertNotEqual(block, b"", output)
            output += block
        return output


class RootTests(UserCase):
    """A home that is root's, as qmail has it: mail belongs to other accounts."""

    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() != 0:
            self.skipTest("needs root")
        subprocess.run(["chown", "-R", "0:0", self.home], check=True)

    def test_uid(self) -> None:
        self.user("add", NOBODY, stdin=b"x\n", code=100, error="--uid")
        self.user("add", NOBODY, "--uid", "12345", stdin=b"x\n", code=100, error="--uid 12345")
        self.user("add", NOBODY, "--uid", "0:0", stdin=b"x\n", code=100, error="root")
        self.user("add", NOBODY, "--uid", "12345:23456", stdin=b"x\n")
        for path in (f"mail/{NOBODY}", f"mail/{NOBODY}/Maildir", f"mail/{NOBODY}/Maildir/new"):
            status = os.stat(self.path(path))
            self.assertEqual((status.st_uid, status.st_gid), (12345, 23456))
        # In a home of root's it is for the role that checks passwords, where there is an account for it.
        accounts = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
        self.assertEqual(os.stat(self.path("users/credentials")).st_uid, accounts.get("qmailp", 0))

    def test_owner_of_mail(self) -> None:
        """Without --uid mail belongs to the owner of HOME/mail."""
        os.chown(self.path("mail"), ORDINARY, ORDINARY)
        self.user("add", NOBODY, stdin=b"x\n")
        self.assertEqual(os.stat(self.path(f"mail/{NOBODY}")).st_uid, ORDINARY)

    def test_links_lead_nowhere(self) -> None:
        """Somebody puts a link in the place of the maildir: root makes nothing behind it."""
        self.user("add", NOBODY, "--uid", "12345:12345", stdin=b"x\n")
        os.rename(self.path(f"mail/{NOBODY}/Maildir"), self.path(f"mail/{NOBODY}/old"))
        os.mkdir(self.path("precious"), 0o700)
        os.symlink(self.path("precious"), self.path(f"mail/{NOBODY}/Maildir"))
        self.user("add", NOBODY, "--uid", "12345:12345", stdin=b"x\n", code=111, error="Permission denied")
        self.assertEqual(os.listdir(self.path("precious")), [])
        # A home that is such a link is not given away.
        os.symlink(self.path("precious"), self.path(f"mail/{NOBODY}2"))
        self.user("add", NOBODY + "2", "--uid", "12345:12345", stdin=b"x\n", code=111, error=f"mail/{NOBODY}2")
        self.assertEqual(os.stat(self.path("precious")).st_uid, 0)

    def test_directory_of_roots(self) -> None:
        """An empty one is what a crash left between two steps, and is given away; in another one may be anything."""
        os.mkdir(self.path(f"mail/{NOBODY}"), 0o700)
        self.user("add", NOBODY, "--uid", "12345:12345", stdin=b"x\n")
        self.assertEqual(os.stat(self.path(f"mail/{NOBODY}")).st_uid, 12345)
        self.write(f"mail/{NOBODY}2/notes", b"keep out\n")
        self.user("add", NOBODY + "2", "--uid", "12345:12345", stdin=b"x\n", code=100, error="belongs to user id 0")
        self.assertEqual(os.stat(self.path(f"mail/{NOBODY}2")).st_uid, 0)

    def test_directory_of_somebody_else(self) -> None:
        os.mkdir(self.path(f"mail/{NOBODY}"))
        os.chown(self.path(f"mail/{NOBODY}"), 1111, 1111)
        self.user("add", NOBODY, "--uid", "12345:12345", stdin=b"x\n", code=100, error="belongs to user id 1111")


class OtherVerbsTests(UserCase):
    def setUp(self) -> None:
        super().setUp()
        self.user("add", "joe", stdin=b"secret\n")

    def test_passwd(self) -> None:
        self.user("passwd", "joe", stdin=b"other\n")
        self.user("verify", "joe", stdin=b"other\n")
        self.user("verify", "joe", stdin=b"secret\n", code=1, error="wrong")
        self.user("passwd", "ann", stdin=b"other\n", code=100, error="no user")
        self.assertIsNone(self.hash_of(b"ann"))

    def test_verify(self) -> None:
        self.user("verify", "Joe@mail.example.org", stdin=b"secret\n")
        for name, password in (("joe", b""), ("joe", b"Secret\n"), ("ann", b"secret\n")):
            self.user("verify", name, stdin=password, code=1, error="wrong name or password")

    def test_del(self) -> None:
        self.user("del", "joe", code=100, error="--yes")
        self.assertIsNotNone(self.hash_of(b"joe"))
        self.user("del", "joe", "--yes")
        self.assertIsNone(self.hash_of(b"joe"))
        self.assertIsNone(self.account(b"joe"))
        self.assertEqual(self.read("users/assign"), b"=postman:postman:1:1:/nowhere:::\n.\nbehind the end\n")
        self.assertIsNone(self.assigned(b"joe"))
        self.assertTrue(os.path.isdir(self.path("mail/joe/Maildir/new")))
        self.user("del", "joe", "--yes", code=100, error="no user")
        self.user("del", "joe", "--yes", "--purge")
        self.assertFalse(os.path.exists(self.path("mail/joe")))

    def test_purge(self) -> None:
        said = self.user("del", "joe", "--yes", "--purge")
        self.assertIn("removed " + self.path("mail/joe"), said)
        self.assertFalse(os.path.exists(self.path("mail/joe")))

    def test_purge_elsewhere(self) -> None:
        """Of a home that is not in HOME/mail only the maildir is removed."""
        self.write("users/assign", self.read("users/assign").replace(b"/mail/joe:", b"/house/joe:"))
        for folder in ("house/joe/Maildir", "mail/other"):
            os.makedirs(self.path(folder))
        self.write("house/joe/letters", b"")
        for path in ("house/joe", "house/joe/Maildir", "users/assign"):
            os.chown(self.path(path), self.uid, -1)
        self.user("del", "joe", "--yes", "--purge")
        self.assertEqual(os.listdir(self.path("house/joe")), ["letters"])

    def test_list(self) -> None:
        self.user("add", "ann", "--apop", stdin=b"secret\n")
        for number in range(3):
            self.write(f"mail/joe/Maildir/new/{number}", b"")
        self.write("mail/joe/Maildir/cur/9:2,S", b"")
        self.write("mail/joe/Maildir/cur/.hidden", b"")
        self.assertEqual(
            self.user("list").splitlines(),
            [f"joe\targon2id\t4\t{self.path('mail/joe')}", f"ann\tplain\t0\t{self.path('mail/ann')}"],
        )

    def test_wrong_store(self) -> None:
        self.write("users/credentials", b"joe:sesame\n")
        os.chmod(self.path("users/credentials"), 0o600)
        for verb in ("list", "passwd", "verify"):
            arguments = (verb,) if verb == "list" else (verb, "joe")
            self.user(*arguments, stdin=b"x\n", code=111, error="credentials, line 1")

    def test_usage(self) -> None:
        for arguments in ((), ("nonsense",), ("add",), ("add", "joe", "--apop", "--hash", "x")):
            self.user(*arguments, code=100, error="usage: qtwist user")


class PeopleTests(UserCase):
    def test_library(self) -> None:
        """What the command does can be done by programs, too."""
        if os.geteuid() == 0:
            os.chown(self.home, ORDINARY, ORDINARY)
        done: list[tuple[str, str]] = []
        people = People(self.home, lambda what, name: done.append((what, name)))
        person = people.person(people.name("joe"), None, (self.uid, self.uid))
        synced = note_syncs(self, self.home)
        people.add(person)
        # What root does with the rights of the owner is done by a process of its own.
        owners = {"mail/joe/Maildir"} if os.geteuid() != 0 else set()
        self.assertTrue({"mail", "mail/joe", "users", *owners} <= set(synced), synced)
        self.assertEqual(people.known(b"joe"), person.owner)
        self.assertIn(("wrote", self.path("users/assign")), done)
        self.assertRaises(Refusal, people.name, "a b")
        self.assertRaises(Refusal, people.person, b"joe", "/a:b", (self.uid, self.uid))
