"""Tests of qtwist.commands.newu and newmrh."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands import newmrh, newu
from qtwist.files.assign import find_assignment
from qtwist.files.cdb import CDB


class CommandTests(SynchronousTestCase):
    main: Callable[[Sequence[str] | None], int]
    folder: str

    def setUp(self) -> None:
        self.home = self.mktemp()
        os.makedirs(os.path.join(self.home, self.folder))
        self.patch(sys, "stdout", io.StringIO())
        self.patch(sys, "stderr", io.StringIO())
        self.patch(os, "environ", {**os.environ, "QTWISTHOME": self.home})

    def write(self, name: str, text: bytes) -> None:
        with open(os.path.join(self.home, name), "wb") as file:
            file.write(text)

    def check(self, code: int, message: str, *argv: str) -> None:
        self.assertEqual(type(self).main(argv), code)
        self.assertEqual(sys.stderr.getvalue(), message)  # type: ignore[attr-defined]

    def path(self, name: str) -> str:
        return os.path.join(self.home, name)


class NewuTests(CommandTests):
    main = newu.main
    folder = "users"

    def test_compiles(self) -> None:
        """§12.2: umask 033, so everybody may read; the mask of the process stays."""
        self.write("users/assign", b"=joe:u:1:2:/h:::\n.\n")
        mask = os.umask(0o077)
        self.addCleanup(os.umask, mask)
        self.check(0, "")
        self.assertEqual(os.umask(0o077), 0o077)
        self.assertEqual(os.stat(self.path("users/cdb")).st_mode & 0o777, 0o644)
        self.assertEqual(sorted(os.listdir(self.path("users"))), ["assign", "cdb"])
        with CDB(self.path("users/cdb")) as database:
            self.assertIsNotNone(find_assignment(database, b"joe"))

    def test_bad_line(self) -> None:
        """§12.2: exit 111, and the old database stays."""
        self.write("users/cdb", b"old")
        self.write("users/assign", b"=joe:u:1:2:/h:::\njunk\n.\n")
        expected = '"=local:user:uid:gid:home:dash:ext:" or "+loc:user:uid:gid:home:dash:pre:"'
        self.check(111, f"qmail-newu: fatal: bad format in users/assign: line 2: expected {expected}\n")
        with open(self.path("users/cdb"), "rb") as file:
            self.assertEqual(file.read(), b"old")

    def test_trouble(self) -> None:
        """§12.2: exit 111 with a message for each kind."""
        self.check(111, "qmail-newu: fatal: unable to read users/assign: No such file or directory\n")

    def test_nobody_listens(self) -> None:
        """The code counts, also where standard error is closed."""
        self.patch(sys, "stderr", None)
        self.assertEqual(newu.main([]), 111)
        self.assertEqual(newu.main(["x"]), 100)

    def test_cannot_write(self) -> None:
        self.write("users/assign", b".\n")
        os.mkdir(self.path("users/cdb.tmp"))
        self.check(111, "qmail-newu: fatal: unable to write users/cdb.tmp: Is a directory\n")

    def test_cannot_move(self) -> None:
        self.write("users/assign", b".\n")
        os.mkdir(self.path("users/cdb"))
        self.check(111, "qmail-newu: fatal: unable to move users/cdb.tmp to users/cdb: Is a directory\n")
        self.assertFalse(os.path.exists(self.path("users/cdb.tmp")))

    def test_no_home(self) -> None:
        self.check(
            111,
            "qmail-newu: fatal: unable to enter /nonexistent/home: it is no directory\n",
            "--home=/nonexistent/home",
        )

    def test_arguments(self) -> None:
        self.write("users/assign", b".\n")
        self.check(0, "", "--home", self.home)
        usage = "usage: qmail-newu [--home DIR]\n"
        self.check(100, f"qmail-newu: illegal argument 'x'\n{usage}", "x")

    def test_option_without_argument(self) -> None:
        usage = "usage: qmail-newu [--home DIR]\n"
        self.check(100, f"qmail-newu: option requires an argument -- home\n{usage}", "--home")

    def test_help(self) -> None:
        self.check(0, "", "--help")
        self.assertIn("users/assign", sys.stdout.getvalue())  # type: ignore[attr-defined]
        self.assertEqual(os.listdir(self.path("users")), [])


class NewmrhTests(CommandTests):
    main = newmrh.main
    folder = "control"

    def test_compiles(self) -> None:
        """§16.8: lower case, trailing blanks gone, no empty lines and comments; the order is kept."""
        self.write("control/morercpthosts", b"Example.ORG \t\n\n#comment\n.Sub.test\n lead\nlast")
        self.check(0, "")
        with CDB(self.path("control/morercpthosts.cdb")) as database:
            self.assertEqual(
                list(database), [(b"example.org", b""), (b".sub.test", b""), (b" lead", b""), (b"last", b"")]
            )
        self.assertFalse(os.path.exists(self.path("control/morercpthosts.tmp")))

    def test_trouble(self) -> None:
        """§16.8: exit 111."""
        self.check(111, "qmail-newmrh: fatal: unable to read control/morercpthosts: No such file or directory\n")

    def test_temporary_name(self) -> None:
        """§16.8: morercpthosts.tmp."""
        self.write("control/morercpthosts", b"x\n")
        os.mkdir(self.path("control/morercpthosts.tmp"))
        self.check(111, "qmail-newmrh: fatal: unable to write control/morercpthosts.tmp: Is a directory\n")


class StartTests(SynchronousTestCase):
    def test_no_twisted(self) -> None:
        """These commands, and all that a delivery needs of the ground floor, start without Twisted."""
        modules = "commands.newu commands.newmrh control files.assign mail.rewriting mail.received mail.qsbmf"
        script = "".join(f"import qtwist.{module}\n" for module in [*modules.split(), "mail.queue_codes"])
        script += "import sys; print(sorted(m for m in sys.modules if m.split('.')[0] in ('twisted', 'zope')))"
        ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment())
        self.assertEqual(ran.stdout, b"[]\n")

    def test_as_a_program(self) -> None:
        home = self.mktemp()
        ran = subprocess.run(
            [sys.executable, "-m", "qtwist.commands.newu", "--home", home],
            capture_output=True,
            env=environment(),
            check=False,
        )
        self.assertEqual((ran.returncode, ran.stdout), (111, b""))
        self.assertTrue(ran.stderr.startswith(b"qmail-newu: fatal: unable to enter "), ran.stderr)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in map(os.path.abspath, sys.path))}
