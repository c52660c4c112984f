"""Scripts that start commands without ``site`` (qtwist/commands/launchers.py; issue 7, job g)."""

from __future__ import annotations

import os
import subprocess
import sys

from qtwist.commands import launchers
from qtwist.commands.install_links import Place
from qtwist.commands.launchers import Command, launcher
from tests.command_tools import CommandCase


class LauncherTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        script = self.write("venv/bin/sendmail", b'#!/bin/sh\necho "pip\'s script: $*"\n')
        os.chmod(script, 0o755)
        self.command = Command("sendmail", script, "qtwist.commands.sendmail", "main")
        os.mkdir(self.path("bin"))
        self.place = self.path("bin/sendmail")

    def run_it(self, *arguments: str, path: str | None = None, **environ: str) -> tuple[int, str, str]:
        """Exit code, output and errors of the launcher."""
        done = subprocess.run(
            [path or self.place, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environ,
            cwd=self.home,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def test_starts_the_command(self) -> None:
        Place(self.place, self.command).fill(False)
        code, output, errors = self.run_it("--help")
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("sendmail, mailq, newaliases - send mail", output)
        code, output, errors = self.run_it("-bd")
        self.assertEqual((code, output), (100, ""))
        self.assertTrue(errors.startswith("sendmail: "), errors)

    def test_output_that_cannot_be_written(self) -> None:
        """It is told, as by Python itself, and is no success."""
        script = (
            "import sys; from qtwist.commands.base import run_and_leave; "
            "run_and_leave(lambda: sys.stdout.write('x') and 0)"
        )
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, stdout=writer, stderr=subprocess.PIPE, env={}, timeout=60
        )
        self.assertEqual(done.returncode, 120)
        self.assertIn(b"BrokenPipeError", done.stderr)

    def test_the_end(self) -> None:
        """All that was written is there; codes are those of main, or of SystemExit; threads are waited for."""
        for body, code, output, errors in (
            ("sys.stdout.write('x'); return 3", 3, "x", ""),
            ("sys.stdout.write('x'); sys.stderr.write('y'); raise SystemExit(111)", 111, "x", "y"),
            ("raise SystemExit('why')", 1, "", "why\n"),
            ("raise SystemExit", 0, "", ""),
            ("sys.stdout = None; sys.stderr = None; return 4", 4, "", ""),
            ("import atexit, threading; atexit.register(print, 'end'); return 5", 5, "end\n", ""),
        ):
            script = (
                f"import sys\ndef main():\n    {body}\n"
                "from qtwist.commands.base import run_and_leave\nrun_and_leave(main)"
            )
            done = subprocess.run(
                [sys.executable, "-c", script], check=False, capture_output=True, text=True, env={}, timeout=60
            )
            self.assertEqual((done.returncode, done.stdout, done.stderr), (code, output, errors), body)

    def test_by_another_name(self) -> None:
        """A link is told by which name it was called, as with pip's scripts."""
        Place(self.place, self.command).fill(False)
        os.symlink("sendmail", self.path("bin/newaliases"))
        code, _, errors = self.run_it(path=self.path("bin/newaliases"))
        self.assertEqual(code, 100)
        self.assertIn("newaliases", errors)

    def test_nothing_of_the_caller_is_imported(self) -> None:
        """Neither $PYTHONPATH nor the working directory, nor what lies beside the script."""
        Place(self.place, self.command).fill(False)
        for folder in ("", "evil", "bin"):
            for name in ("os.py", "qtwist/__init__.py", "sitecustomize.py", "signal.py"):
                self.write(os.path.join(folder, name), b"raise SystemExit('imported')\n")
        code, output, errors = self.run_it("--help", PYTHONPATH=self.path("evil"), PYTHONHOME=self.path("evil"))
        self.assertEqual((code, errors), (0, ""))
        self.assertIn("NAME\n", output)

    def test_what_needs_twisted(self) -> None:
        """sendmail -bs is an SMTP server: what it needs is found without site, too."""
        Place(self.place, self.command).fill(False)
        os.mkdir(self.path("control"))
        self.write("control/me", b"mx.test\n")
        done = subprocess.run(
            [self.place, "-bs"],
            input=b"QUIT\r\n",
            check=False,
            capture_output=True,
            env={"QTWISTHOME": self.home},
            timeout=60,
        )
        self.assertEqual([line[:3] for line in done.stdout.splitlines()], [b"220", b"221"], done.stderr)

    def test_the_package_has_gone(self) -> None:
        """pip's script is run in its place; where that has gone as well, it says what to do (111)."""
        Place(self.place, self.command._replace(module="qtwist.commands.gone")).fill(False)
        self.assertEqual(self.run_it("a", "b"), (0, "pip's script: a b\n", ""))
        os.unlink(self.command.script)
        expected = (
            f"sendmail: fatal: {self.command.script}: No such file or directory; run qtwist install-links again\n"
        )
        self.assertEqual(self.run_it("a"), (111, "", expected))

    def test_none(self) -> None:
        """For a command that people run, and where a script cannot name the interpreter."""
        self.assertIsNotNone(launcher(self.command))
        self.assertIsNone(launcher(self.command._replace(name="qmailctl")))
        for python in ("/opt/my programs/python", "/" + "p" * 121):
            self.assertIsNone(launcher(self.command, python), python)
        self.assertIsNotNone(launcher(self.command, "/" + "p" * 120))

    def test_per_message(self) -> None:
        """Each is a command of this installation."""
        with open(os.path.join(os.path.dirname(os.path.dirname(__file__)), "pyproject.toml")) as file:
            text = file.read()
        for name in launchers.PER_MESSAGE:
            self.assertIn(f"\n{name} = ", text)


class PlaceTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.command = Command("forward", self.write("venv/bin/forward", b""), "qtwist.commands.forward", "main")
        os.mkdir(self.path("bin"))
        self.place = Place(self.path("bin/forward"), self.command)

    def test_made_and_kept(self) -> None:
        self.assertEqual((self.place.is_filled(), self.place.is_ours()), (False, True))
        self.assertEqual(self.place.fill(False), b"made")
        self.assertEqual((self.place.is_filled(), self.place.is_ours()), (True, True))
        self.assertEqual(self.place.fill(False), b"kept")
        self.assertEqual(self.read("bin/forward"), launcher(self.command))
        self.assertEqual(os.listdir(self.path("bin")), ["forward"])

    def test_mode(self) -> None:
        """All may run it, and only its owner may change it, whatever the umask."""
        self.addCleanup(os.umask, os.umask(0o077))
        self.place.fill(False)
        self.assertEqual(os.stat(self.place.path).st_mode & 0o7777, 0o755)
        os.chmod(self.place.path, 0o775)
        self.assertFalse(self.place.is_filled())
        self.assertEqual(self.place.fill(False), b"replaced")
        self.assertEqual(os.stat(self.place.path).st_mode & 0o7777, 0o755)

    def test_a_link_of_an_older_version(self) -> None:
        os.symlink(self.command.script, self.place.path)
        self.assertEqual((self.place.is_filled(), self.place.is_ours()), (False, True))
        self.assertEqual(self.place.fill(False), b"replaced")
        self.assertFalse(os.path.islink(self.place.path))
        self.assertEqual(self.read("venv/bin/forward"), b"")

    def test_an_older_launcher(self) -> None:
        """One of this installation is renewed; one of another only by force; neither is kept beside it."""
        with open(self.place.path, "wb") as file:
            file.write((launcher(self.command) or b"") + b"# older\n")
        self.assertEqual(self.place.fill(False), b"replaced")
        other = Place(self.place.path, self.command._replace(script=self.write("other/bin/forward", b"")))
        self.assertEqual((other.is_filled(), other.is_ours()), (False, False))
        self.assertEqual(other.fill(True), b"replaced")
        self.assertEqual(os.listdir(self.path("bin")), ["forward"])

    def test_links(self) -> None:
        """Where links are wanted, a launcher becomes one."""
        self.place.fill(False)
        links = Place(self.place.path, self.command, links=True)
        self.assertEqual((links.is_filled(), links.is_ours()), (False, True))
        self.assertEqual(links.fill(False), b"replaced")
        self.assertEqual(os.readlink(self.place.path), self.command.script)
        self.assertTrue(links.is_filled())

    def test_a_trial_that_fails(self) -> None:
        """Nothing is left behind; what was there stays."""
        os.mkdir(self.place.path)
        self.assertFalse(self.place.is_ours())
        self.patch(os, "rename", lambda *names: (_ for _ in ()).throw(OSError(5, "Input/output error", names[1])))
        self.assertRaises(OSError, self.place.fill, True)
        self.assertEqual(os.listdir(self.path("bin")), ["forward"])
        os.rmdir(self.place.path)
        self.assertRaises(OSError, self.place.fill, False)
        self.assertEqual(os.listdir(self.path("bin")), [])


class FoldersTests(CommandCase):
    def test_folders(self) -> None:
        """The package's own first; no directory of the caller's."""
        self.patch(sys, "path", [self.home, *sys.path])
        found = launchers.folders()
        self.assertTrue(os.path.isfile(os.path.join(found[0], "qtwist", "__init__.py")))
        self.assertNotIn(self.home, found)
        self.assertTrue(any(os.path.isdir(os.path.join(folder, "zope")) for folder in found), found)
        self.assertEqual(len(found), len(set(found)))
