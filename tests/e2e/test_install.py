"""`qtwist install` as root, with accounts of its own: spec/qmail.md §1.2-§1.4, *Life with qmail* 2.5 to 2.9."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
from typing import Any
from unittest import SkipTest

from qtwist.queue.layout import create_queue
from tests.accounts import ROLES, accounts
from tests.e2e.harness import ME, PATIENCE, Daemon, DaemonCase, wait_until


class InstallCase(DaemonCase):
    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        self.accounts = accounts()
        super().setUp()
        os.chmod(self.directory, 0o755)
        self.users_home = self.home
        self.home = os.path.join(self.directory, "var", "qmail")
        self.names = {**ROLES, "alias": self.accounts["person"].pw_name}

    def identity(self) -> dict[str, Any]:
        return {}

    def install(self, *arguments: str, code: int = 0, me: str = ME) -> str:
        """Run it for the home; what it says (on standard error, if it is to fail)."""
        words = [word for role, name in self.names.items() for word in ("--account", f"{role}:{name}")]
        listen = f"smtp tcp:{self.port}:interface=127.0.0.1"
        return self.qtwist("--me", me, "--listen", listen, *words, *arguments, code=code)

    def qtwist(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            self.runtime.command("install", self.home, *arguments),
            check=False,
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            umask=0o077,  # what is made must not depend on it
        )
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr or done.stdout

    def owners(self) -> dict[str, tuple[str, int]]:
        """(account, mode) of all there is, by path below the home."""
        names = {self.accounts[role].pw_uid: role for role in ROLES}
        names |= {0: "root", self.accounts["person"].pw_uid: "alias"}
        found = {}
        for folder, directories, files in os.walk(self.home):
            for name in (*directories, *files):
                path = os.path.join(folder, name)
                status = os.lstat(path)
                found[os.path.relpath(path, self.home)] = (
                    names.get(status.st_uid, str(status.st_uid)),
                    stat.S_IMODE(status.st_mode),
                )
        return found


class InstallTests(InstallCase):
    def test_from_nothing_to_mail(self) -> None:
        """What is made serves; a second run changes nothing."""
        told = self.install()
        self.assertIn(f"  made {self.home}/queue\n", told)
        owners = self.owners()
        for name, expected in {
            "control": ("root", 0o755),
            "control/me": ("root", 0o644),
            "control/accounts": ("root", 0o644),
            "users": ("root", 0o755),
            "alias": ("alias", 0o2755),
            "alias/.qmail-postmaster": ("root", 0o644),
            "alias/Maildir/new": ("alias", 0o2700),
            "queue": ("qmailq", 0o750),
            "queue/mess/22": ("qmailq", 0o750),
            "queue/info/0": ("qmailq", 0o700),
            "queue/lock/sendmutex": ("qmailq", 0o600),
            "queue/lock/tcpto": ("qmailr", 0o644),
            "queue/lock/trigger": ("qmailq", 0o622),
            "run": ("qmailq", 0o755),
            "log": ("qmaill", 0o755),
        }.items():
            self.assertEqual(owners[name], expected, name)
        self.assertEqual(os.stat(os.path.join(self.home, "alias")).st_gid, self.accounts["qmailq"].pw_gid)
        with open(os.path.join(self.home, "control", "rcpthosts")) as file:
            self.assertEqual(file.read(), f"{ME}\n")
        again = self.install()
        self.assertNotRegex(again.partition("\nnext:")[0], "(?m)^  (?!found)")
        self.assertEqual(self.owners(), owners)
        self.assertIn("found", self.install("--check"))
        daemon = self.start()
        self.send([f"postmaster@{ME}"])
        daemon.log.wait("delivery 1: success")
        self.assertEqual(len(os.listdir(os.path.join(self.home, "alias", "Maildir", "new"))), 1)
        self.assertEqual(daemon.stop(), 0)

    def test_check(self) -> None:
        """It says what it would do, and does nothing."""
        told = self.install("--check", code=100)
        self.assertIn(f"  to do: made {self.home}/queue\n", told)
        self.assertFalse(os.path.exists(self.home))

    def test_postmaster(self) -> None:
        self.install("--postmaster", "dave")
        with open(os.path.join(self.home, "alias", ".qmail-root")) as file:
            self.assertEqual(file.read(), "&dave\n")
        self.assertFalse(os.path.exists(os.path.join(self.home, "alias", "Maildir")))

    def test_nothing_is_overwritten(self) -> None:
        self.install()
        self.write("control/rcpthosts", "more.test\n")
        self.assertIn("rcpthosts (it differs)", self.install())
        with open(os.path.join(self.home, "control", "rcpthosts")) as file:
            self.assertEqual(file.read(), "more.test\n")
        self.assertIn("'mx.test', not 'other.test'", self.install(me="other.test", code=100))

    def test_users_home_becomes_roots(self) -> None:
        """A home that `qtwist init` made for a user, with mail in its queue, goes on as one of the whole host."""
        self.home = self.users_home
        user = self.runtime.account
        with open(os.path.join(self.home, "mail", user.name, ".qmail-later"), "w") as file:
            file.write("|exit 111\n")
        os.chown(os.path.join(self.home, "mail", user.name, ".qmail-later"), user.uid, user.gid)
        self.identity = user.identity  # type: ignore[method-assign]
        daemon = self.start()
        self.send([f"{user.name}-later@{ME}"])
        daemon.log.wait("deferral")
        self.assertEqual(daemon.stop(), 0)
        self.identity = lambda: {}  # type: ignore[method-assign]
        self.assertIn(f"gave {self.home}/queue to its accounts", self.install())
        self.assertIn(f"found {self.home}/queue", self.install("--check"))
        os.unlink(os.path.join(self.home, "mail", user.name, ".qmail-later"))
        with open(os.path.join(self.home, "mail", user.name, ".qmail-later"), "w") as file:
            file.write("./Maildir/\n")
        daemon = self.start()
        daemon.process.send_signal(14)  # ALRM
        wait_until("the old mail", lambda: bool(self.maildir()))

    def test_links_and_starters(self) -> None:
        """Units and run scripts name the home; links that are there already stay."""
        systemd, service = (os.path.join(self.directory, name) for name in ("systemd", "service"))
        os.mkdir(systemd)
        self.install("--systemd", systemd, "--daemontools", service)
        with open(os.path.join(systemd, "qtwist.service")) as file:
            text = file.read()
        self.assertIn(f" -n --pidfile= qtwist --home {self.home}\n", text)
        self.assertIn("Type=notify\n", text)
        for name in ("run", "log/run"):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(service, "qtwist", name)).st_mode), 0o755)
        again = self.install("--systemd", systemd, "--daemontools", service)
        self.assertIn(f"found {systemd}/qtwist.service\n", again)
        self.assertIn(f"found {service}/qtwist\n", again)

    def test_sendmail(self) -> None:
        """The script in place of the system's sendmail; an ordinary user calls it, with nothing of ours in the
        environment but the home."""
        self.install()
        path = os.path.join(self.directory, "sendmail")
        code = (
            "import sys; from qtwist.commands import install_links, launchers; "
            "command = launchers.Command('sendmail', '/nowhere/sendmail', 'qtwist.commands.sendmail', 'main'); "
            "install_links.Place(sys.argv[1], command).fill(False)"
        )
        made = [self.runtime.python, "-c", code, path]
        subprocess.run(made, check=True, cwd=self.directory, env=self.environment(), timeout=PATIENCE)
        daemon = self.start()
        user = self.runtime.account
        subprocess.run(
            [path, "-t"],
            input=f"To: postmaster@{ME}\nSubject: by sendmail\n\nx\n".encode(),
            check=True,
            env={"QTWISTHOME": self.home},
            timeout=PATIENCE,
            **user.identity(),
        )
        daemon.log.wait("delivery 1: success")
        self.assertEqual(len(os.listdir(os.path.join(self.home, "alias", "Maildir", "new"))), 1)

    def test_link_in_alias(self) -> None:
        """alias may not have root write elsewhere."""
        self.install()
        path = os.path.join(self.home, "alias", ".qmail-root")
        os.unlink(path)
        target = os.path.join(self.directory, "target")
        os.symlink(target, path)
        self.install(code=100)
        self.assertFalse(os.path.exists(target))


class GiveBackTests(InstallCase):
    def test_and_back(self) -> None:
        """The queue is parted as in §1.4, with a message in it; then it is taken over again."""
        self.install()
        layout = os.path.join(self.home, "queue")
        with open(os.path.join(self.home, "alias", ".qmail-later"), "w") as file:
            file.write("|exit 111\n")
        daemon = self.start()
        self.send([f"later@{ME}"])
        daemon.log.wait("deferral")
        self.assertIn("is locked", self.qtwist("--give-back", code=100))
        self.assertEqual(daemon.stop(), 0)
        self.assertIn(f"{layout} is qmail's now", self.qtwist("--give-back"))
        [number] = self.queued()
        part = str(int(number) % 23)
        owners = self.owners()
        for name, account in {
            "queue": "qmailq",
            "queue/pid": "qmailq",
            "queue/intd": "qmailq",
            "queue/todo": "qmailq",
            f"queue/mess/{part}/{number}": "qmailq",
            "queue/bounce": "qmails",
            "queue/info": "qmails",
            "queue/local/0": "qmails",
            f"queue/info/{part}/{number}": "qmails",
            f"queue/local/{part}/{number}": "qmails",
            "queue/remote/22": "qmails",
            "queue/lock": "qmailq",
            "queue/lock/sendmutex": "qmails",
            "queue/lock/trigger": "qmails",
            "queue/lock/tcpto": "qmailr",
        }.items():
            self.assertEqual(owners[f"{name}"][0], account, name)
        # A qmail-send leaves files of qmails in directories of qmailq; the daemon takes them over at its start.
        with open(os.path.join(self.home, "alias", ".qmail-later"), "w") as file:
            file.write("./Maildir/\n")
        daemon = self.start()
        daemon.process.send_signal(14)
        daemon.log.wait("success")
        self.wait_empty_queue()

    def test_locked(self) -> None:
        self.install()
        with open(os.path.join(self.home, "queue", "lock", "sendmutex"), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.assertIn("is locked", self.qtwist("--give-back", code=100))

    def test_queue_split_otherwise(self) -> None:
        """A queue of another conf-split is taken as it is."""
        self.install()
        shutil.rmtree(os.path.join(self.home, "queue"))
        create_queue(os.path.join(self.home, "queue"), split=5)
        self.assertIn("gave", self.install())
        self.assertEqual(self.owners()["queue/info/4"], ("qmailq", 0o700))
        self.assertEqual(Daemon(self).log.wait("status: local"), ["status: local 0/10 remote 0/20"])
