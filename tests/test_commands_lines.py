"""The programs for .qmail lines and qmail-queue, each as a process of its own: spec/qmail.md §6, §21."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands import bouncesaying, condredirect, except_, forward, preline, qbiff, qreceipt
from qtwist.commands import queue as qmail_queue

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MESSAGE = b"Subject: x\n\nhello\n"
DTLINE = "Delivered-To: me-ext@here.test\n"
QUEUE = "#!/bin/sh\ncat >message; cat <&1 >envelope; exit $(cat code 2>/dev/null || echo 0)\n"


class CommandCase(SynchronousTestCase):
    """A home with a $QMAILQUEUE that writes down what it gets."""

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-lines-")
        self.addCleanup(shutil.rmtree, self.home)
        queue = self.write("bin-queue", QUEUE)
        os.chmod(queue, 0o755)
        self.environ = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": CHECKOUT,
            "PYTHONDONTWRITEBYTECODE": "1",
            "QTWISTHOME": self.home,
            "QMAILQUEUE": queue,
            "SENDER": "joe@client.test",
            "NEWSENDER": "me-ext-owner@here.test",
            "RECIPIENT": "me-ext@here.test",
            "LOCAL": "me-ext",
            "USER": "me",
            "DTLINE": DTLINE,
            "RPLINE": "Return-Path: <joe@client.test>\n",
            "UFLINE": "From joe@client.test Mon Nov 02 03:04:05 2026\n",
        }

    def write(self, name: str, text: str | bytes) -> str:
        path = os.path.join(self.home, name)
        with open(path, "wb") as file:
            file.write(os.fsencode(text))
        return path

    def read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.home, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def run_command(
        self, name: str, *arguments: str, message: bytes = MESSAGE, without: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command with the message as its standard input: a file, as in a delivery."""
        code = f"import sys; from qtwist.commands.{name} import main; sys.exit(main())"
        environ = {key: value for key, value in self.environ.items() if key != without}
        with open(self.write("input", message), "rb") as file:
            return subprocess.run(
                [sys.executable, "-c", code, *arguments],
                check=False,
                stdin=file,
                capture_output=True,
                env=environ,
                cwd=self.home,
                timeout=60,
            )

    def check_queued(self, message: bytes, sender: str, *recipients: str) -> None:
        self.assertEqual(self.read("message"), message)
        envelope = f"F{sender}\0" + "".join(f"T{recipient}\0" for recipient in recipients) + "\0"
        self.assertEqual(self.read("envelope"), envelope.encode())


class ForwardTests(CommandCase):
    def test_forwarded(self) -> None:
        done = self.run_command("forward", "a@b", "c d@e")
        self.assertEqual((done.returncode, done.stdout), (0, b""))
        self.assertRegex(done.stderr, rb"^forward: qp \d+\n$")
        self.check_queued(DTLINE.encode() + MESSAGE, "me-ext-owner@here.test", "a@b", "c d@e")

    def test_variables(self) -> None:
        for name in ("NEWSENDER", "DTLINE"):
            self.assertEqual(self.run_command("forward", "a@b", without=name).returncode, 100)
        self.assertIsNone(self.read("message"))

    def test_no_address(self) -> None:
        """The original queues a message for nobody, which is lost that way."""
        self.assertEqual(self.run_command("forward").returncode, 100)

    def test_refused(self) -> None:
        for code, expected in (("31", 100), ("53", 111)):
            self.write("code", code)
            done = self.run_command("forward", "a@b")
            self.assertEqual(done.returncode, expected)
            self.assertRegex(done.stderr, rb"^forward: fatal: .*\(#\d\.3\.0\)\n$")

    def test_unreadable_message(self) -> None:
        code = "import sys, os; os.close(0); from qtwist.commands.forward import main; sys.exit(main(['a@b']))"
        done = subprocess.run([sys.executable, "-c", code], check=False, env=self.environ, capture_output=True)
        self.assertEqual(done.returncode, 111)
        self.assertEqual(self.read("envelope"), b"")

    def test_no_mail_system(self) -> None:
        del self.environ["QMAILQUEUE"]
        done = self.run_command("forward", "a@b")
        self.assertEqual(done.returncode, 111)
        self.assertIn(self.home.encode(), done.stderr)


class CondredirectTests(CommandCase):
    def test_redirected(self) -> None:
        """The program reads the message, and it is queued from its beginning; with SENDER."""
        done = self.run_command("condredirect", "a@b", "grep", "hello")
        self.assertEqual((done.returncode, done.stdout), (99, b"hello\n"))
        self.assertRegex(done.stderr, rb"^condredirect: qp \d+\n$")
        self.check_queued(DTLINE.encode() + MESSAGE, "joe@client.test", "a@b")

    def test_not_redirected(self) -> None:
        for program in (("grep", "nothing"), ("sh", "-c", "exit 100"), ("/nonexistent/program",)):
            self.assertEqual(self.run_command("condredirect", "a@b", *program).returncode, 0, program)
        self.assertIsNone(self.read("message"))

    def test_temporary(self) -> None:
        for script in ("exit 111", "kill -9 $$"):
            self.assertEqual(self.run_command("condredirect", "a@b", "sh", "-c", script).returncode, 111)

    def test_refused(self) -> None:
        for code, expected in (("31", 100), ("53", 111)):
            self.write("code", code)
            self.assertEqual(self.run_command("condredirect", "a@b", "true").returncode, expected)

    def test_usage(self) -> None:
        self.assertEqual(self.run_command("condredirect", "a@b").returncode, 100)
        self.assertEqual(self.run_command("condredirect", "a@b", "true", without="SENDER").returncode, 100)
        self.assertEqual(self.run_command("condredirect", "a@b", "true", without="DTLINE").returncode, 100)


class BouncesayingTests(CommandCase):
    def check(self, arguments: list[str], code: int, text: bytes | None = None) -> None:
        done = self.run_command("bouncesaying", *arguments)
        self.assertEqual(done.returncode, code, arguments)
        if text is not None:
            self.assertEqual(done.stdout + done.stderr, text)

    def test_codes(self) -> None:
        self.check(["go away"], 100, b"go away\n")
        self.check(["go away", "true"], 100, b"go away\n")
        self.check(["go away", "false"], 0, b"")
        self.check(["go away", "sh", "-c", "exit 100"], 0, b"")
        self.check(["go away", "sh", "-c", "exit 111"], 111)
        self.check(["go away", "sh", "-c", "kill -9 $$"], 111)
        self.check(["go away", "/nonexistent"], 0)
        self.check(["go away", ""], 0)
        self.check([], 100)

    def test_nobody_listens(self) -> None:
        """The code counts, also where standard error is closed."""

        def closed(fd: int, data: bytes) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")

        self.patch(bouncesaying, "write_all", closed)
        self.assertEqual(bouncesaying.main(["go away"]), 100)

    def test_message(self) -> None:
        self.check(["found", "grep", "-q", "hello"], 100, b"found\n")


class ExceptTests(CommandCase):
    def test_codes(self) -> None:
        for script, code in (("exit 0", 100), ("exit 1", 0), ("exit 100", 0), ("exit 111", 111), ("kill -9 $$", 111)):
            self.assertEqual(self.run_command("except_", "sh", "-c", script).returncode, code, script)
        self.assertEqual(self.run_command("except_").returncode, 100)
        self.assertEqual(self.run_command("except_", "").returncode, 0)
        self.assertEqual(self.run_command("except_", "grep", "-q", "nothing").returncode, 0)


class PrelineTests(CommandCase):
    def lines(self, *letters: str) -> bytes:
        return "".join(self.environ[f"{letter}LINE"] for letter in letters).encode()

    def test_lines(self) -> None:
        for options, letters in (
            ([], ("UF", "RP", "DT")),
            (["-f"], ("RP", "DT")),
            (["-r"], ("UF", "DT")),
            (["-d"], ("UF", "RP")),
            (["-frd"], ()),
            (["-fr", "-R", "--"], ("RP", "DT")),
            (["-fFrRdD"], ("UF", "RP", "DT")),
        ):
            done = self.run_command("preline", *options, "cat")
            self.assertEqual((done.returncode, done.stdout), (0, self.lines(*letters) + MESSAGE), options)

    def test_codes(self) -> None:
        for script, code in (("exit 0", 0), ("exit 77", 77), ("exit 99", 99), ("kill -9 $$", 111)):
            self.assertEqual(self.run_command("preline", "sh", "-c", script).returncode, code)
        self.assertEqual(self.run_command("preline", "/nonexistent").returncode, 100)
        done = self.run_command("preline", "")
        self.assertEqual(done.returncode, 100)
        self.assertEqual(done.stderr, b"preline: fatal: unable to run : No such file or directory\n")
        self.assertEqual(self.run_command("preline").returncode, 100)
        self.assertEqual(self.run_command("preline", "-x", "true").returncode, 100)
        for name in ("UFLINE", "RPLINE", "DTLINE"):
            self.assertEqual(self.run_command("preline", "-frd", "true", without=name).returncode, 100)

    def test_not_read(self) -> None:
        """A program need not read all of it."""
        done = self.run_command("preline", "head", "-n", "1", message=MESSAGE + b"x" * 1_000_000)
        self.assertEqual((done.returncode, done.stdout), (0, self.lines("UF")))

    def test_sigpipe(self) -> None:
        """The program dies of a broken pipe as it is used to."""
        done = self.run_command("preline", "sh", "-c", "grep SigIgn /proc/self/status")
        self.assertEqual(int(done.stdout.split()[1], 16) & (1 << 12), 0)


class QreceiptTests(CommandCase):
    REQUEST = b"Notice-Requested-Upon-Delivery-To: other@x, Me <me@here.test>\nMessage-ID: <1@x>\n\nNotice: body\n"

    def test_receipt(self) -> None:
        done = self.run_command("qreceipt", "me@here.test", message=self.REQUEST)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual(self.read("envelope"), b"F\0Tjoe@client.test\0\0")
        notice = self.read("message")
        self.assertIn(b"\nFrom: DELIVERY NOTICE SYSTEM <joe@client.test>\nTo: <joe@client.test>\n", notice)
        self.assertIn(b"\nSubject: success notice\n\n", notice)
        self.assertIn(b"\nme@here.test\n", notice)
        self.assertTrue(notice.endswith(b"\nMessage-ID: <1@x>\n"))

    def test_no_receipt(self) -> None:
        for address in ("he@here.test", "other@x2", "1@x", "Me@here.test"):
            self.assertEqual(self.run_command("qreceipt", address, message=self.REQUEST).returncode, 0)
        body = MESSAGE + self.REQUEST
        self.assertEqual(self.run_command("qreceipt", "me@here.test", message=body).returncode, 0)
        for sender in ("", "#@[]"):
            self.environ["SENDER"] = sender
            self.assertEqual(self.run_command("qreceipt", "me@here.test", message=self.REQUEST).returncode, 0)
        self.assertIsNone(self.read("message"))

    def test_errors(self) -> None:
        garbled = b"notice-requested-upon-delivery-to: (((\n\n"
        self.assertEqual(self.run_command("qreceipt", "me@here.test", message=garbled).returncode, 100)
        self.assertEqual(self.run_command("qreceipt").returncode, 100)
        self.assertEqual(self.run_command("qreceipt", "x", without="SENDER").returncode, 100)
        for code, expected in (("31", 100), ("53", 111)):
            self.write("code", code)
            done = self.run_command("qreceipt", "me@here.test", message=self.REQUEST)
            self.assertEqual(done.returncode, expected)

    def test_forged_sender(self) -> None:
        """A line end in the sender adds no field to the notice."""
        self.environ["SENDER"] = "joe\nBcc: x@client.test"
        self.run_command("qreceipt", "me@here.test", message=self.REQUEST)
        self.assertNotIn(b"\nBcc", self.read("message"))


class QbiffTests(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        os.mkdir(f"{self.home}/pts")
        for name, mode in (("1", 0o720), ("2", 0o620), ("3", 0o720), ("4", 0o720)):
            os.chmod(self.write(f"pts/{name}", b""), mode)
        self.patch(qbiff, "DEVICES", self.home)
        self.patch(qbiff, "UTMP", f"{self.home}/utmp")
        names = ("USER", "SENDER", "LOCAL")
        self.patch(os, "environb", {name.encode(): self.environ[name].encode() for name in names})

    def shown(self, message: bytes = MESSAGE) -> dict[str, bytes]:
        """What appears on each terminal."""
        with open(self.write("input", message), "rb") as file:
            saved = os.dup(0)
            os.dup2(file.fileno(), 0)
            try:
                self.assertEqual(qbiff.main([]), 0)
            finally:
                os.dup2(saved, 0)
                os.close(saved)
        return {name: self.read(f"pts/{name}") for name in sorted(os.listdir(f"{self.home}/pts"))}

    @staticmethod
    def record(kind: int, line: bytes, user: bytes) -> bytes:
        return struct.pack("=hxxi32s4s32s308x", kind, 1, line, b"", user)

    def test_utmp(self) -> None:
        """Only where the user is logged in, and has said biff y."""
        records = [(7, b"pts/1", b"me"), (7, b"pts/2", b"me"), (7, b"pts/3", b"you"), (8, b"pts/4", b"me")]
        self.write("utmp", b"".join(self.record(*one) for one in records) + b"torn")
        text = b"\r\n\a*** TO <me-ext> FROM <joe@client.test>\r\n    x//hello/\r\n"
        self.assertEqual(self.shown(), {"1": text, "2": b"", "3": b"", "4": b""})

    def test_forged_utmp(self) -> None:
        os.mkdir(f"{self.home}/dev")
        self.patch(qbiff, "DEVICES", f"{self.home}/dev")
        lines = [b"../pts/1", f"{self.home}/pts/1".encode(), b""]
        self.write("utmp", b"".join(self.record(7, line, b"me") for line in lines))
        self.assertEqual(set(self.shown().values()), {b""})

    def test_no_utmp(self) -> None:
        shown = self.shown()
        self.assertEqual([bool(text) for text in shown.values()], [True, False, True, True])

    def test_text(self) -> None:
        """At most 74 octets; no control character reaches a terminal."""
        os.environb[b"SENDER"] = b"\x1b[2Jevil\n@x"
        text = self.shown(b"Subject:  \x1b]0;title\a\n " + b"long " * 40 + b"\n\nbody\n")["1"]
        first, second = text.removeprefix(b"\r\n\a").split(b"\r\n")[:2]
        self.assertEqual(first, b"*** TO <me-ext> FROM <_[2Jevil_@x>")
        self.assertTrue(second.startswith(b"    /]0;title// long long "))
        self.assertEqual(len(second), 78)

    def test_never_fails(self) -> None:
        for name in (b"USER", b"SENDER", b"LOCAL"):
            value = os.environb.pop(name)
            self.assertEqual(set(self.shown().values()), {b""})
            os.environb[name] = value


class QueueTests(CommandCase):
    """qmail-queue; §28 vector 19."""

    def queue(self, envelope: bytes, message: bytes = MESSAGE, **environ: str) -> int:
        code = "import sys; from qtwist.commands.queue import main; sys.exit(main())"
        with open(self.write("input", message), "rb") as body, open(self.write("addresses", envelope), "rb") as file:
            done = subprocess.run(
                [sys.executable, "-c", code],
                check=False,
                stdin=body,
                stdout=file,
                stderr=subprocess.PIPE,
                env={**self.environ, **environ},
                timeout=60,
            )
        self.assertEqual(done.stderr, b"")
        return done.returncode

    def test_nobody_there(self) -> None:
        """$QMAILQUEUE is for callers of qmail-queue; without the daemon: 62 (no queue), 61 (no home)."""
        self.assertEqual(self.queue(b"F\0Ta@b\0\0"), 62)
        self.assertEqual(self.queue(b"F\0Ta@b\0\0", QTWISTHOME="/nonexistent"), 61)
        self.assertIsNone(self.read("message"))

    def envelope(self, data: bytes) -> object:
        """What is read from descriptor 1."""
        saved = os.dup(1)
        with open(self.write("addresses", data), "rb") as file:
            os.dup2(file.fileno(), 1)
        try:
            return qmail_queue._read_envelope()
        except qmail_queue.QueueRefused as error:
            return error.code
        except qmail_queue._ReadTrouble:
            return 54
        finally:
            os.dup2(saved, 1)
            os.close(saved)

    def test_envelope(self) -> None:
        for data, expected in [
            (b"Fa@b\0Tc@d\0\0", (b"a@b", [b"c@d"])),
            (b"F\0\0", (b"", [])),
            (b"F\0T\0T\0\0ignored", (b"", [b"", b""])),
            (b"F" + b"a" * 1002 + b"\0\0", (b"a" * 1002, [])),
            (b"F" + b"a" * 1003 + b"\0\0", 11),
            (b"F\0T" + b"a" * 1003 + b"\0\0", 11),
            (b"F\0T" + b"a" * 1003, 11),
            (b"X\0\0", 91),
            (b"\0", 91),
            (b"T\0\0", 91),
            (b"F\0F\0\0", 91),
            (b"F\0X", 91),
            (b"", 54),
            (b"F", 54),
            (b"F\0", 54),
            (b"F\0Ta@b\0", 54),
            (b"F\0Ta@b\0Tb", 54),
        ]:
            self.assertEqual(self.envelope(data), expected, data[:50])

    def test_large_envelope(self) -> None:
        recipients = [b"user%d@example.test" % number for number in range(20_000)]
        data = b"F\0" + b"".join(b"T%s\0" % recipient for recipient in recipients) + b"\0"
        self.assertEqual(self.envelope(data), (b"", recipients))


class HelpTests(SynchronousTestCase):
    def test_help(self) -> None:
        for module in (bouncesaying, condredirect, except_, forward, preline, qbiff, qreceipt, qmail_queue):
            self.assertTrue(module.USAGE.startswith("NAME\n"), module)
            self.assertLess(max(map(len, module.USAGE.splitlines())), 80, module)
            with self.assertRaises(SystemExit) as caught:
                module.main(["--help"])
            self.assertEqual(caught.exception.code, 0)

    def test_light(self) -> None:
        """Issue 3, item 7."""
        heavy = "twisted attr attrs re typing socket signal argparse subprocess enum collections dataclasses"
        for name in ("queue", "forward", "condredirect", "bouncesaying", "except_", "preline"):
            code = (
                f"import sys; sys.path.insert(0, {CHECKOUT!r}); import qtwist.commands.{name}\n"
                f"print(*[name for name in {heavy!r}.split() if name in sys.modules])"
            )
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.stdout.strip(), "", name)
