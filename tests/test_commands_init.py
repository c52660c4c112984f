"""`qtwist` and `qtwist init` (spec/qmail.md §24 config-fast, §12.2 users/assign, §1.4 queue, §2.9 exit codes)."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands.init import Owner, Plan, Refusal, check_path, host_name
from qtwist.files.assign import find_assignment
from qtwist.files.cdb import CDB
from tests.e2e.runtime import CHECKOUT
from tools.account import ordinary_account

COMMAND = "import sys; from qtwist.commands.qtwist import main; sys.exit(main())"


def contents(plan: Plan) -> dict[str, str]:
    return dict(plan.files())


def plan(me: str = "mx.example.test", path: str = "/srv/mail") -> Plan:
    return Plan(path, me, ("smtp tcp:2525:interface=127.0.0.1",), Owner("joe", 1001, 1002))


class PlanTests(SynchronousTestCase):
    """What is written, before it is."""

    def test_config_fast(self) -> None:
        """§24: the examples of config-fast."""
        for me, domain, plus in (
            ("mx.example.test", "example.test", "example.test"),
            ("a.b.c.d", "b.c.d", "c.d"),
            ("example.test", "example.test", "example.test"),
        ):
            files = contents(plan(me))
            self.assertEqual(files["control/me"], f"{me}\n")
            self.assertEqual(files["control/defaultdomain"], f"{domain}\n")
            self.assertEqual(files["control/plusdomain"], f"{plus}\n")
            self.assertEqual(files["control/locals"], f"{me}\n")
            self.assertEqual(files["control/rcpthosts"], f"{me}\n")

    def test_assign(self) -> None:
        """§12.2: one line for the name, one for its extensions, and the dot."""
        self.assertEqual(
            contents(plan())["users/assign"],
            "=joe:joe:1001:1002:/srv/mail/mail/joe:::\n+joe-:joe:1001:1002:/srv/mail/mail/joe:-::\n.\n",
        )

    def test_host_names(self) -> None:
        self.assertEqual(host_name("Mail.Example.ORG"), "mail.example.org")
        self.assertEqual(host_name("a-b.xn--p1ai"), "a-b.xn--p1ai")
        self.assertEqual(len(host_name(".".join(["a" * 63] * 3 + ["b" * 61]))), 253)
        for name in (
            *(
                "",
                "localhost",
                "mail.",
                ".org",
                "a..org",
                "a b.org",
                "-a.org",
                "a-.org",
                "ä.org",
                "a.org\n",
                "j@a.org",
            ),
            *("127.0.0.1", "[127.0.0.1]", "a_b.org", "a/../b.org", "a" * 64 + ".org", ".".join(["a" * 63] * 4)),
        ):
            self.assertRaises(Refusal, host_name, name)

    def test_paths_that_assign_cannot_hold(self) -> None:
        for path in ("/srv/a:b", "/srv/a\nb"):
            self.assertRaises(Refusal, check_path, path)
        check_path("/srv/a b")


class CommandCase(SynchronousTestCase):
    """Runs the command as it is run: a process, which may change its account."""

    def setUp(self) -> None:
        self.account = ordinary_account()
        self.directory = tempfile.mkdtemp(prefix="qtwist-init-")
        self.addCleanup(shutil.rmtree, self.directory)
        os.chmod(self.directory, 0o755)
        self.home = os.path.join(self.directory, "home")

    def qtwist(self, *arguments: str, code: int = 0) -> str:
        """Run `qtwist` with these arguments; what it printed (standard error, if it is to fail)."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments],
            check=False,
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": CHECKOUT},
            capture_output=True,
            text=True,
            timeout=60,
            umask=0o077,  # as careful people have it; the daemon's files must not depend on it
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr if code else done.stdout

    def init(self, *arguments: str, code: int = 0, me: str = "mx.example.test") -> str:
        return self.qtwist("init", self.home, "--me", me, "--user", self.account.name, *arguments, code=code)

    def read(self, name: str) -> str:
        with open(os.path.join(self.home, name)) as file:
            return file.read()

    def tree(self) -> dict[str, tuple[int, int, bytes]]:
        """Everything below the home: mode, modification time in ns, contents."""
        found = {}
        for folder, directories, files in os.walk(self.home):
            for name in directories + files:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                data = b""
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        data = file.read()
                found[os.path.relpath(path, self.home)] = (status.st_mode, status.st_mtime_ns, data)
        return found


class VerbTests(CommandCase):
    def test_help_and_version(self) -> None:
        self.assertIn("\n  init ", self.qtwist("--help"))
        self.assertEqual(self.qtwist("--version"), "qtwist 0.1.0\n")
        self.assertIn("--listen LINE", self.qtwist("init", "--help"))

    def test_wrong_use(self) -> None:
        """§2.9: 100."""
        self.assertIn("init", self.qtwist(code=100))
        self.assertIn("'innit'", self.qtwist("innit", code=100))
        self.assertIn("--me", self.qtwist("init", self.home, code=100))
        self.assertIn("--port", self.init("--port", "x", code=100))
        self.assertIn("65535", self.init("--port", "65536", code=100))
        self.assertIn("'nodots'", self.init(me="nodots", code=100))
        self.assertFalse(os.path.exists(self.home))


class InitTests(CommandCase):
    def test_a_home(self) -> None:
        told = self.init("--port", "2626")
        self.assertEqual(self.read("control/me"), "mx.example.test\n")
        self.assertEqual(self.read("control/listen"), "smtp tcp:2626:interface=127.0.0.1\n")
        self.assertEqual(self.read("control/defaultdelivery"), "./Maildir/\n")
        for alias in ("postmaster", "mailer-daemon", "root"):
            self.assertEqual(self.read(f"alias/.qmail-{alias}"), f"&{self.account.name}\n")
        for part in ("tmp", "new", "cur"):
            self.assertTrue(os.path.isdir(os.path.join(self.home, "mail", self.account.name, "Maildir", part)))
        self.assertEqual(os.path.getsize(os.path.join(self.home, "queue", "lock", "tcpto")), 1024)
        self.assertIn("  wrote control/me\n", told)
        self.assertIn(f"twistd -n qtwist --home {self.home}\n", told.replace(os.path.dirname(sys.executable) + "/", ""))
        self.assertNotIn("relayclients", os.listdir(os.path.join(self.home, "control")))

    def test_owner_and_modes(self) -> None:
        """All of it belongs to the account and nobody else may write to it (§13.1 refuses such homes)."""
        self.init()
        for name, (mode, _, _) in self.tree().items():
            path = os.path.join(self.home, name)
            self.assertEqual(os.lstat(path).st_uid, self.account.uid, name)
            if not stat.S_ISFIFO(mode):
                self.assertEqual(mode & 0o022, 0, name)
        self.assertEqual(os.stat(self.home).st_uid, self.account.uid)
        for name, mode in (
            (".", 0o755),
            ("control", 0o755),
            ("control/me", 0o644),
            (f"mail/{self.account.name}", 0o700),
        ):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.home, name)).st_mode), mode, name)

    def test_mailbox_is_found(self) -> None:
        """§12.1: users/cdb knows the user and the extensions."""
        self.init()
        mailbox = os.path.join(self.home, "mail", self.account.name).encode()
        name = self.account.name.encode()
        with CDB(os.path.join(self.home, "users", "cdb")) as cdb:
            for local, dash, ext in ((name, b"", b""), (name.upper() + b"-Lists", b"-", b"Lists")):
                found = find_assignment(cdb, local)
                assert found is not None
                self.assertEqual((found.user, found.home, found.dash, found.ext), (name, mailbox, dash, ext))
                self.assertEqual((found.uid, found.gid), (self.account.uid, self.account.gid))
            self.assertIsNone(find_assignment(cdb, name + b"x"))

    def test_again(self) -> None:
        """A second run changes nothing, not even what differs from its own plan, and says so."""
        self.init()
        with open(os.path.join(self.home, "control", "rcpthosts"), "a") as file:
            file.write("more.test\n")
        before = self.tree()
        told = self.init()
        self.assertEqual(self.tree(), before)
        self.assertIn("  kept control/me\n", told)
        self.assertIn("  kept (it differs) control/rcpthosts\n", told)
        self.assertIn("  kept queue/\n", told)
        self.assertNotIn("wrote", told)

    def test_completes_what_is_missing(self) -> None:
        self.init()
        os.unlink(os.path.join(self.home, "users", "cdb"))
        os.unlink(os.path.join(self.home, "alias", ".qmail-root"))
        shutil.rmtree(os.path.join(self.home, "queue"))
        told = self.init()
        for what in ("wrote users/cdb", "wrote alias/.qmail-root", "made queue/", "kept control/me"):
            self.assertIn(f"  {what}\n", told)

    def test_other_things_are_left_alone(self) -> None:
        os.mkdir(self.home)
        with open(os.path.join(self.home, "letter"), "w"):
            pass
        os.chown(self.home, self.account.uid, self.account.gid)
        self.assertIn("is no home", self.init(code=100))
        self.assertEqual(os.listdir(self.home), ["letter"])

    def test_home_of_another_name(self) -> None:
        self.init()
        before = self.tree()
        self.assertIn("'mx.example.test', not 'other.test'", self.init(me="other.test", code=100))
        self.assertEqual(self.tree(), before)

    def test_listen(self) -> None:
        self.init("--listen", "smtp tcp:2525", "--listen", "smtp tcp6:2525")
        self.assertEqual(self.read("control/listen"), "smtp tcp:2525\nsmtp tcp6:2525\n")

    def test_wrong_listen_is_named(self) -> None:
        self.assertIn("smpt", self.init("--listen", "smpt tcp:2525", code=100))

    def test_home_is_a_file(self) -> None:
        with open(self.home, "w"):
            pass
        told = self.init(code=111)
        self.assertIn(self.home, told)
        self.assertEqual(told.count("\n"), 1)


class RootTests(CommandCase):
    """As root: the home belongs to the account that --user names, and root's rights are used for nothing else."""

    def setUp(self) -> None:
        if os.geteuid() != 0:
            self.skipTest("only root can make a home for another account")
        super().setUp()

    def test_user_is_needed(self) -> None:
        self.assertIn("--user", self.qtwist("init", self.home, "--me", "mx.example.test", code=100))
        for user, told in (("root", "is root"), ("no-such-user", "no such account")):
            self.assertIn(told, self.qtwist("init", self.home, "--me", "mx.test", "--user", user, code=100))
        self.assertFalse(os.path.exists(self.home))

    def test_home_of_another_account(self) -> None:
        other = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, self.account.uid))
        os.mkdir(self.home)
        os.chown(self.home, other.pw_uid, other.pw_gid)
        self.assertIn("belongs to", self.init(code=100))
        self.assertEqual(os.listdir(self.home), [])

    def test_closed_folder(self) -> None:
        os.chmod(self.directory, 0o700)
        self.assertIn("cannot enter", self.init(code=100))

    def test_link_is_not_followed(self) -> None:
        """A link that the account placed where root is to write: root's rights are gone by then."""
        target = os.path.join(self.directory, "precious")
        os.mkdir(target, 0o755)
        os.mkdir(self.home)
        os.symlink(target, os.path.join(self.home, "control"))
        os.chown(self.home, self.account.uid, self.account.gid)
        self.init(code=111)
        self.assertEqual(os.listdir(target), [])
        self.assertEqual(os.stat(target).st_uid, 0)
