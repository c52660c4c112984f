"""What the tests of commands share: a command as a process of its own, and programs from elsewhere to compare with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHONPATH = os.pathsep.join([CHECKOUT, *filter(None, [os.environ.get("PYTHONPATH")])])
PATIENCE = 60


def debian(name: str, package: str) -> str:
    """The path of a program from elsewhere, never our own; SkipTest where it is not installed."""
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin")
    if path is None:
        raise SkipTest(f"{name} is not installed (Debian package {package})")
    return path


class CommandCase(SynchronousTestCase):
    """A directory of its own, in which commands run; it is also their home."""

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-command-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)

    def path(self, *names: str) -> str:
        return os.path.join(self.home, *names)

    def write(self, name: str, contents: bytes, mtime: float | None = None) -> str:
        """A file below the home, with all directories above it."""
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(contents)
        if mtime is not None:
            os.utime(path, (mtime, mtime))
        return path

    def read(self, name: str) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def run_command(
        self, module: str, *arguments: str | bytes, stdin: bytes = b"", **environ: str
    ) -> subprocess.CompletedProcess[bytes]:
        """Run qtwist.commands.MODULE in the home, with PATH, QTWISTHOME and `environ` as its environment."""
        code = f"import sys; from qtwist.commands.{module} import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            check=False,
            cwd=self.home,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": PYTHONPATH,
                "PYTHONDONTWRITEBYTECODE": "1",
                "QTWISTHOME": self.home,
                **environ,
            },
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
        )

    def check(
        self,
        module: str,
        *arguments: str | bytes,
        stdin: bytes = b"",
        code: int = 0,
        error: str = "",
        **environ: str,
    ) -> bytes:
        """What a command prints; its exit code is `code`, and `error` is in what it says on stderr."""
        done = self.run_command(module, *arguments, stdin=stdin, **environ)
        self.assertEqual(done.returncode, code, done.stderr)
        if error:
            self.assertIn(error.encode(), done.stderr)
        else:
            self.assertEqual(done.stderr, b"")
        return done.stdout

    def other(self, program: str, *arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, bytes]:
        """Exit code and output of a program from elsewhere, run in the home."""
        done = subprocess.run(
            [program, *arguments],
            check=False,
            cwd=self.home,
            env=environ,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout
