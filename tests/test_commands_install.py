"""The parts of `qtwist install` that need no root; tests/e2e/test_install.py has the whole (spec/qmail.md §1.2)."""

from __future__ import annotations

import os
import pwd
import shlex
import stat
import sys
from io import StringIO

from qtwist.commands import install
from qtwist.commands.init import Refusal
from qtwist.commands.install import GROUPS, Plan, Work, account_names, maildir, make_accounts
from qtwist.commands.service_files import daemon_command, log_run_script, run_script, socket_unit, unit
from qtwist.control import Control
from tests.command_tools import CommandCase


class InstallCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.printed = StringIO()
        self.patch(sys, "stdout", self.printed)
        self.control = Control(self.path("control"))

    def plan(self, **accounts: str) -> Plan:
        names = {role: f"qtw-none-{role}" for role in GROUPS}
        return Plan(self.home, "mx.test", ("smtp tcp:25",), {**names, **accounts})

    def told(self) -> str:
        return self.printed.getvalue()


class AccountTests(InstallCase):
    def made(self, plan: Plan) -> list[list[str]]:
        """The commands that would make the accounts of a plan."""
        commands: list[list[str]] = []
        self.patch(install, "_run", commands.append)
        self.patch(install, "_has_group", lambda name: False)
        make_accounts(plan, Work(check=False))
        return commands

    def test_names(self) -> None:
        """qmail's, those of control/accounts, and those of the command line; these may not contradict each other."""
        self.assertEqual(account_names([], self.control), {role: role for role in GROUPS})
        self.write("control/accounts", b"qmaild:smtpd\nalias:nobody\n")
        names = account_names(["qmailq:qmailq", "qmaild:smtpd"], self.control)
        self.assertEqual(
            (names["qmaild"], names["alias"], names["qmailq"], names["qmailr"]), ("smtpd", "nobody", "qmailq", "qmailr")
        )
        self.assertIn(
            "says smtpd for qmaild", str(self.assertRaises(Refusal, account_names, ["qmaild:x"], self.control))
        )
        for wrong in ("qmailx:a", "qmaild", "qmaild:", "qmailq:queue"):
            self.assertRaises(Refusal, account_names, [wrong], self.control)

    def test_commands(self) -> None:
        """§1.2: who is in which group; the groups first, once each; alias has a home of its own."""
        commands = self.made(self.plan())
        self.assertEqual([words[-1] for words in commands if words[0] == "groupadd"], ["nofiles", "qmail"])
        accounts = {words[-1].removeprefix("qtw-none-"): words for words in commands if words[0] == "useradd"}
        self.assertEqual({name: words[words.index("--gid") + 1] for name, words in accounts.items()}, GROUPS)
        for name, words in accounts.items():
            folder = self.path("alias") if name == "alias" else self.home
            self.assertEqual(words[words.index("--home-dir") + 1], folder)
            self.assertIn("--system", words)
        self.assertLess(commands.index(["groupadd", "--system", "qmail"]), commands.index(accounts["qmailq"]))

    def test_present(self) -> None:
        """An account that is there is found, whatever its group; one of root's is refused."""
        other = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid and entry.pw_gid)
        commands = self.made(self.plan(qmailq=other))
        self.assertNotIn(other, [words[-1] for words in commands])
        self.assertIn(f"found account {other} (", self.told())
        error = self.assertRaises(Refusal, make_accounts, self.plan(qmailq="root"), Work(check=True))
        self.assertIn("is root's", str(error))

    def test_no_useradd(self) -> None:
        """Where the system has no such commands, it is told what they would make, and nothing is made."""
        self.patch(install, "_SYSTEM_PATH", self.path("none"))
        error = str(self.assertRaises(Refusal, self.made, self.plan()))
        self.assertIn("\n    useradd --system ", error)
        self.assertEqual(error.count("\n"), 9)

    def test_useradd_fails(self) -> None:
        path = self.write("bin/useradd", b"#!/bin/sh\necho no room >&2; exit 4\n")
        os.chmod(path, 0o755)
        self.patch(install, "_SYSTEM_PATH", self.path("bin"))
        error = self.assertRaises(Refusal, install._run, ["useradd", "x"])
        self.assertEqual(str(error), "useradd x: no room")

    def test_check(self) -> None:
        """Only told."""
        self.patch(install, "_run", self.fail)
        work = Work(check=True)
        make_accounts(self.plan(), work)
        self.assertGreaterEqual(work.missing, len(GROUPS))
        self.assertIn("  to do: made account qtw-none-qmaild of group nofiles\n", self.told())


class PartTests(InstallCase):
    def test_not_root(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        complaint = StringIO()
        self.patch(sys, "stderr", complaint)
        self.assertEqual(install.main([self.home, "--me", "mx.test"]), 100)
        self.assertIn("this is for root", complaint.getvalue())

    def test_directory(self) -> None:
        """What others may write is mended, what is right is left, and a link is no directory."""
        work, path = Work(check=False), self.path("a", "b")
        uid, gid = os.getuid(), os.getgid()
        for mode, counted in ((None, 1), (0o755, 0), (0o700, 0), (0o777, 1)):
            if mode is not None:
                os.chmod(path, mode)
            before = work.missing
            install.make_directory(work, path, uid, gid, 0o755)
            self.assertEqual(work.missing - before, counted, mode)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o755)
        os.symlink(path, self.path("link"))
        self.assertRaises(Refusal, install.make_directory, work, self.path("link"), uid, gid, 0o755)

    def test_maildir_with_the_accounts_rights(self) -> None:
        """A directory of somebody else's is not written to."""
        if os.geteuid() != 0:
            self.skipTest("needs root")
        os.chmod(self.home, 0o755)
        error = self.assertRaises(Refusal, maildir, Work(check=False), self.home, 65534, 65534)
        self.assertIn("cannot make", str(error))
        os.chown(self.home, 65534, 65534)
        maildir(Work(check=False), self.home, 65534, 65534)
        self.assertEqual(os.stat(self.path("Maildir/cur")).st_uid, 65534)
        maildir(Work(check=True), self.home, 65534, 65534)
        self.assertIn(f"found {self.home}/Maildir", self.told())

    def test_addressee(self) -> None:
        self.assertEqual(install._addressee("dave"), "dave")
        for wrong in ("", "a b", "a\nb"):
            self.assertRaises(Refusal, install._addressee, wrong)


class ServiceFileTests(InstallCase):
    def test_words(self) -> None:
        """Shells and systemd read back what was meant, whatever the home is called."""
        command = ["/opt/a b/twistd", "-c", "x = '1'; $y %z"]
        home = '/srv/it\'s $HOME 100% "x"'
        run = run_script(command, home)
        self.assertEqual(shlex.split(run.splitlines()[-1]), ["exec", *daemon_command(command, home)])
        line = next(line for line in unit(command, home).splitlines() if line.startswith("ExecStart="))
        self.assertIn('"/opt/a b/twistd" ', line)
        self.assertTrue(line.endswith('--home "/srv/it\'s $$HOME 100%% \\"x\\""'), line)
        self.assertIn("ExecStart=/usr/bin/twistd -n --pidfile= qtwist ", unit(["/usr/bin/twistd"], "/var/qmail"))

    def test_log(self) -> None:
        """*Life with qmail* 2.8.2.2."""
        self.assertTrue(
            log_run_script("qmaill", "/var/log/qmail").endswith("exec setuidgid qmaill multilog t /var/log/qmail\n")
        )

    def test_socket(self) -> None:
        """The name is the one that control/listen asks for."""
        self.assertIn("\nFileDescriptorName=smtp\n", socket_unit())

    def test_unit_command(self) -> None:
        self.assertIn(f"--home {self.home}\n".encode(), self.check("unit"))
        self.assertIn(b"--home /var/mail-home\n", self.check("unit", "/var/mail-home"))
        self.assertIn(b"[Socket]\n", self.check("unit", "--socket"))
        self.check("unit", "--sockets", code=100, error="usage: qtwist unit")
