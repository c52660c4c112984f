"""The command checkpassword (spec/related.md §6)."""

from __future__ import annotations

import os
import subprocess
import sys

from qtwist.files.assign import compile_assign
from qtwist.files.cdb import write_cdb
from tests.auth_tools import cheap
from tests.command_tools import PATIENCE, PYTHONPATH, CommandCase
from tests.test_auth_login import APOPTests
from tests.unprivileged import ORDINARY

CODE = "import sys; from qtwist.commands.checkpassword import main; sys.exit(main())"


class CheckpasswordTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        os.makedirs(self.path("mail/joe"))
        os.chmod(self.home, 0o755)
        self.uid, self.gid = (os.getuid(), os.getgid()) if os.getuid() else (ORDINARY, ORDINARY)
        self.write("control/me", b"mail.example.org\n")
        text = b"".join(
            b"=%b:someone:%d:%d:%b/mail/joe:::\n" % (name, self.uid, self.gid, self.home.encode())
            for name in (b"joe", b"pat")
        )
        os.makedirs(self.path("users"))
        write_cdb(self.path("users/cdb"), compile_assign(text + b".\n"))
        self.credentials(b"joe:" + cheap(b"secret"), b"pat:{PLAIN}tanstaaf", b"lost:" + cheap(b"secret"))

    def credentials(self, *lines: bytes) -> None:
        os.chmod(self.write("users/credentials", b"".join(line + b"\n" for line in lines)), 0o600)

    def run_it(self, request: bytes | None, *program: str) -> subprocess.CompletedProcess[bytes]:
        """Run it with `request` at descriptor 3, None for no such descriptor."""
        path = self.write("request", request or b"")
        redirect = "3<&-" if request is None else f"3<{path}"
        return subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-c", CODE, *program],
            check=False,
            cwd="/",
            env={"PATH": os.defpath, "PYTHONPATH": PYTHONPATH, "QTWISTHOME": self.home, "KEPT": "yes"},
            capture_output=True,
            timeout=PATIENCE,
        )

    def assertEnds(self, code: int, request: bytes | None, *program: str, says: bytes = b"") -> None:
        done = self.run_it(request, *(program or ("/bin/echo", "run")))
        self.assertEqual((done.returncode, done.stdout), (code, b""))
        if says:
            self.assertIn(says, done.stderr)
        else:
            self.assertEqual(done.stderr, b"")

    def test_success(self) -> None:
        """The program runs as that user, at home, with USER, HOME, SHELL; its exit code is the exit code."""
        script = 'id -u; id -g; pwd; echo "$USER $HOME $SHELL $KEPT"; (: <&3) 2>/dev/null && echo open; exit 42'
        done = self.run_it(b"joe\0secret\0\0", "/bin/sh", "-c", script)
        home = self.path("mail/joe")
        expected = f"{self.uid}\n{self.gid}\n{home}\nsomeone {home} /bin/sh yes\n"
        self.assertEqual((done.returncode, done.stdout.decode(), done.stderr), (42, expected, b""))

    def test_two_fields(self) -> None:
        """A caller may leave the timestamp out, or add more fields."""
        for request in (b"joe\0secret\0", b"joe\0secret\0<1@x>\0", b"Joe@mail.example.org\0secret\0<1@x>\0more\0"):
            self.assertEqual(self.run_it(request, "/bin/true").returncode, 0, request)

    def test_wrong(self) -> None:
        for request in (
            b"joe\0guess\0\0",
            b"ann\0secret\0\0",
            b"joe\0\0\0",
            b"\0\0\0",
            b"joe\0secret" + b"x" * 600 + b"\0\0",
            b"joe\0secret\0" + b"x" * 501 + b"\0",
        ):
            self.assertEnds(1, request)

    def test_misuse(self) -> None:
        for request in (b"", b"joe\0", b"joe\0secret", None):
            self.assertEnds(2, request)
        self.assertEqual(self.run_it(b"joe\0secret\0\0").returncode, 2)

    def test_temporary(self) -> None:
        self.assertEnds(111, b"lost\0secret\0\0", says=b"no mail is delivered")
        self.assertEnds(111, b"joe\0secret\0\0", "/nonexistent/program", says=b"/nonexistent/program")
        self.credentials(b"joe:sesame")
        self.assertEnds(111, b"joe\0secret\0\0", says=b"credentials, line 1")
        self.assertNotIn(b"sesame", self.run_it(b"joe\0secret\0\0", "/bin/true").stderr)

    def test_apop(self) -> None:
        """RFC 1939 §7, for those whose secret is stored; §6: the timestamp is the third field."""
        for name, digest, code in (
            (b"pat", APOPTests.DIGEST, 0),
            (b"pat", b"0" * 32, 1),
            (b"joe", APOPTests.DIGEST, 1),
            (b"nobody", APOPTests.DIGEST, 1),
        ):
            request = b"\0".join((name, digest, APOPTests.TIMESTAMP, b""))
            self.assertEqual(self.run_it(request, "/bin/true").returncode, code, name)
        self.assertEqual(self.run_it(b"pat\0tanstaaf\0\0", "/bin/true").returncode, 0)

    def test_light(self) -> None:
        """It runs for every login of other programs: no Twisted, no attrs for plain names."""
        code = CODE.replace("sys.exit(main())", "main(); print(sorted(sys.modules))")
        path = self.write("request", b"joe\0guess\0\0")
        with open(path, "rb") as file:
            done = subprocess.run(
                ["/bin/sh", "-c", 'exec "$@" 3<&0', "sh", sys.executable, "-c", code, "/bin/true"],
                check=False,
                stdin=file,
                env={"PATH": os.defpath, "PYTHONPATH": PYTHONPATH, "QTWISTHOME": self.home},
                capture_output=True,
                timeout=PATIENCE,
            )
        modules = done.stdout.decode()
        self.assertIn("'qtwist.auth.passwords'", modules)
        for heavy in ("'twisted'", "'attr'", "'zope", "'argparse'", "'subprocess'"):
            self.assertNotIn(heavy, modules)
