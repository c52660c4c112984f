"""Tests of qmail-inject, sendmail, mailq, newaliases, mailsubj, datemail and predate (spec/qmail.md §19-§21)."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands import datemail, inject, mailsubj, predate, sendmail
from qtwist.commands.base import blocks
from qtwist.control import CONTROL_FILES
from qtwist.queue.client import QueueRefused

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class SendingCase(SynchronousTestCase):
    """A home, and a queue that keeps what it is given. `refusal` makes it refuse."""

    refusal: Exception | None = None

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-inject-")
        self.addCleanup(shutil.rmtree, self.home)
        os.mkdir(f"{self.home}/control")
        self.control("me", b"mx.example.test\n")
        self.control("defaultdomain", b"example.test\n")
        self.environ = {"QTWISTHOME": self.home, "USER": "u"}
        self.queued: list[tuple[bytes, list[bytes]]] = []
        self.message = b""
        self.output = b""
        self.patch(sys, "stdout", io.StringIO())
        self.patch(sys, "stderr", io.StringIO())
        self.patch(inject, "submit", self.submit)
        self.patch(inject, "write_all", self.write_all)

    def control(self, name: str, text: bytes) -> None:
        with open(f"{self.home}/control/{name}", "wb") as file:
            file.write(text)

    def submit(
        self,
        home: str,
        message: Iterable[bytes],
        sender: bytes,
        recipients: Sequence[bytes],
        environ: Mapping[str, str],
        parameters: tuple[bytes, bytes] = (b"", b""),
    ) -> int:
        self.assertEqual(home, self.home)
        self.assertEqual(environ.get("QMAILQUEUE"), self.environ.get("QMAILQUEUE"))
        if self.refusal is not None:
            raise self.refusal
        self.message = b"".join(message)
        self.queued.append((sender, list(recipients)))
        self.parameters = parameters
        return 1

    def write_all(self, fd: int, data: bytes) -> None:
        self.assertEqual(fd, 1)
        self.output += data

    def run_command(
        self,
        run: Callable[[Sequence[str], Mapping[str, str], Iterable[bytes]], int],
        words: Sequence[str],
        message: Iterable[bytes],
    ) -> int:
        try:
            return run(words, self.environ, message)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    @property
    def complaint(self) -> str:
        text: str = sys.stderr.getvalue()  # type: ignore[attr-defined]
        return text


class InjectTests(SendingCase):
    def inject(self, *words: str, message: bytes = b"To: h1@x.y, h2@x.y\n\nbody\n", code: int = 0) -> None:
        self.assertEqual(self.run_command(inject.run, words, [message]), code, self.complaint)

    def test_recipients(self) -> None:
        """§19.1: -a -h -H -A; the last of them counts."""
        header, given = [b"h2@x.y", b"h1@x.y"], [b"a@x.y", b"b c@x.y"]
        for options, with_words, without in (
            ((), given, header),
            (("-A",), given, header),
            (("-a",), given, []),
            (("-h",), header, header),
            (("-H",), given + header, header),
            (("-ahH",), given + header, header),
            (("-hA",), given, header),
        ):
            self.inject(*options, "a@x.y", "b c@x.y")
            self.inject(*options)
            self.assertEqual([recipients for _, recipients in self.queued[-2:]], [with_words, without], options)

    def test_message(self) -> None:
        self.inject("-f", "s", message=b"Date: d\nMessage-ID: m\nFrom: f\nTo: t\n\nbody\r\n.\nend")
        self.assertEqual(self.queued, [(b"s@mx.example.test", [b"t@mx.example.test"])])
        self.assertEqual(
            self.message,
            b"Date: d\nMessage-ID: m\nFrom: f@mx.example.test\nTo: t@mx.example.test\n\nbody\r\n.\nend\n",
        )

    def test_stamps(self) -> None:
        """The time and the process number are those of now."""
        before = int(time.time())
        self.inject(message=b"")
        lines = self.message.split(b"\n")
        date = parsedate_to_datetime(lines[0].decode().removeprefix("Date: ")).timestamp()
        self.assertTrue(before <= date <= time.time())
        self.assertRegex(lines[1], rb"^Message-ID: <\d{14}\.%d\.qmail@mx\.example\.test>$" % os.getpid())
        self.assertEqual(lines[2:], [b"From: u@mx.example.test", b"Cc: recipient list not shown: ;", b""])

    def test_print(self) -> None:
        """-n: nothing is queued."""
        self.inject("-n", message=b"Date: d\nMessage-ID: m\nTo: t\n\nbody")
        self.assertEqual(
            self.output,
            b"Return-Path: <u@mx.example.test>\n"
            b"From: u@mx.example.test\nDate: d\nMessage-ID: m\nTo: t@mx.example.test\n\nbody\n",
        )
        self.assertEqual(self.queued, [])
        self.inject("-nN")
        self.assertEqual(len(self.queued), 1)

    def test_carriage_returns(self) -> None:
        """LWQ G.11: what PHP and others hand in."""
        self.inject(message=b"To: a@x.y\r\nSubject: s\r\n\r\nline\r\n\r\nline\r\n")
        self.assertEqual(self.queued[0][1], [b"a@x.y"])
        self.assertNotIn(b"\r", self.message)
        self.assertTrue(self.message.endswith(b"\nTo: a@x.y\nSubject: s\n\nline\n\nline\n"))

    def test_nobody(self) -> None:
        """No recipients are no error (§19.1)."""
        self.inject(message=b"Subject: x\n\n")
        self.assertEqual(self.queued, [(b"u@mx.example.test", [])])

    def test_wrong_use(self) -> None:
        self.inject("-x", code=100)
        self.assertTrue(self.complaint.startswith("qmail-inject: illegal option -- x\n"), self.complaint)
        self.inject("-f", code=100)
        self.assertIn("qmail-inject: option requires an argument -- f\n", self.complaint)
        self.assertEqual(self.queued, [])

    def test_wrong_addresses(self) -> None:
        for words, message, complaint in (
            (["a@(b"], b"", "unable to parse address: a@(b\n"),
            (["-f", "a@(b"], b"", "unable to parse address: a@(b\n"),
            ([], b"From: \x1b(b\n", "unable to parse this line:\nFrom: ?(b\n"),
        ):
            self.inject(*words, message=message, code=100)
            self.assertTrue(self.complaint.endswith(f"qmail-inject: fatal: {complaint}"), self.complaint)
        self.assertEqual(self.queued, [])

    def test_refused(self) -> None:
        for code, exit_code in ((31, 100), (11, 100), (53, 111), (74, 111)):
            self.refusal = QueueRefused(code, b"why %d" % code)
            self.inject(code=exit_code)
            self.assertTrue(self.complaint.endswith(f"qmail-inject: fatal: why {code}\n"), self.complaint)
        self.refusal = QueueRefused(82, b"why", b"D")
        self.inject(code=100)

    def test_read_error(self) -> None:
        """A message that cannot be read to its end is not queued."""

        def broken() -> Iterable[bytes]:
            yield b"To: a\n\nbody"
            raise OSError(5, "Input/output error")

        self.assertEqual(self.run_command(inject.run, [], broken()), 111)
        self.assertEqual(self.queued, [])

    def test_interrupted(self) -> None:
        """Ctrl-C while a message is typed: no traceback, and nothing is sent."""

        def interrupted(fd: int, size: int) -> bytes:
            raise KeyboardInterrupt

        self.patch(os, "read", interrupted)
        with self.assertRaises(SystemExit) as raised:
            next(blocks(0))
        self.assertEqual(raised.exception.code, 130)
        self.assertIsNone(raised.exception.__cause__)

    def test_huge_header(self) -> None:
        from qtwist.inject import splitting

        self.patch(splitting, "HEADER_LIMIT", 1000)
        self.inject(message=b"To: a\n" * 1000, code=100)
        self.assertEqual(self.queued, [])

    def test_controls(self) -> None:
        """§2.1, §3: the file, else control/me, else the name of the file; the environment before all."""
        for name in ("defaulthost", "idhost", "plusdomain", "defaultdomain"):
            entry = CONTROL_FILES[name]
            self.assertEqual((entry.kind, entry.default, entry.me), ("line", name.encode(), True))
        self.control("defaulthost", b"dh.x \t\nsecond\n")
        self.control("plusdomain", b"plus.x")
        self.control("idhost", b"")
        self.inject(message=b"To: a, b@c, d@e+\n")
        self.assertEqual(self.queued[-1][1], [b"d@e.plus.x", b"b@c.example.test", b"a@dh.x"])
        self.assertIn(b".qmail@>\n", self.message)
        self.environ.update(QMAILDEFAULTHOST="h", QMAILDEFAULTDOMAIN="d.x", QMAILPLUSDOMAIN="p", QMAILIDHOST="id")
        self.inject(message=b"To: a, b@c, d@e+\n")
        self.assertEqual(self.queued[-1][1], [b"d@e.p", b"b@c.d.x", b"a@h.d.x"])
        self.assertIn(b".qmail@id>\n", self.message)

    def test_no_controls(self) -> None:
        os.unlink(f"{self.home}/control/me")
        os.unlink(f"{self.home}/control/defaultdomain")
        self.inject(message=b"To: a\n")
        self.assertEqual(self.queued[-1][1], [b"a@defaulthost.defaultdomain"])

    def test_unreadable_control(self) -> None:
        os.mkdir(f"{self.home}/control/idhost")
        self.inject(code=111)
        self.assertIn("control/idhost: found a directory", self.complaint)

    def test_no_home(self) -> None:
        self.environ["QTWISTHOME"] = f"{self.home}/none"
        self.inject(code=111)
        self.assertIn(f"there is no mail system in {self.home}/none", self.complaint)

    def test_followup_file(self) -> None:
        """§19.5: a list file, comments and all; one that is missing turns the feature off."""
        path = self.environ["QMAILMFTFILE"] = f"{self.home}/lists"
        self.inject(message=b"To: List@X.y, a@x.y\n")
        self.assertNotIn(b"Mail-Followup-To", self.message)
        with open(path, "w") as file:
            file.write("#a@x.y\n\nlist@x.Y \n")
        self.inject(message=b"To: List@X.y, a@x.y\n")
        self.assertIn(b"\nMail-Followup-To: List@X.y,\n  a@x.y\n", self.message)
        self.inject(message=b"To: a@x.y\n")
        self.assertNotIn(b"Mail-Followup-To", self.message)
        os.unlink(path)
        os.mkdir(path)
        self.inject(code=111)


class SendmailTests(SendingCase):
    def sendmail(self, *words: str, message: bytes = b"To: h@x.y\n\n", code: int = 0) -> None:
        self.assertEqual(self.run_command(sendmail.run, words, [message]), code, self.complaint)

    def test_recipients(self) -> None:
        """§20: arguments only, without -t."""
        self.sendmail("a@x.y", "b@x.y")
        self.sendmail("-t", "a@x.y")
        self.sendmail("-t")
        self.sendmail()
        self.sendmail("--", "-a@x.y")
        expected = [[b"a@x.y", b"b@x.y"], [b"a@x.y", b"h@x.y"], [b"h@x.y"], [], [b"-a@x.y"]]
        self.assertEqual([recipients for _, recipients in self.queued], expected)

    def test_sender(self) -> None:
        """-f names the envelope sender and the user in From; a name does not survive it."""
        self.environ.update(QMAILNAME="Q", MAILNAME="M", NAME="N", QMAILHOST="qh", MAILHOST="mh", USER="root")
        for words in (
            ["-f", "s@h.x"],
            ["-fs@h.x"],
            ["-rs@h.x"],
            ["-F", "Name", "-fs@h.x"],
            ["-f", "x@y", "-r", "s@h.x"],
        ):
            self.sendmail(*words, "a@x.y")
            self.assertEqual(self.queued[-1], (b"s@h.x", [b"a@x.y"]))
            self.assertIn(b"\nFrom: s@h.x\n", self.message)
        self.sendmail("-fjoe", "a@x.y")
        self.assertEqual(self.queued[-1][0], b"joe@mx.example.test")
        self.assertIn(b"\nFrom: joe@mx.example.test\n", self.message)
        self.sendmail("-f", "", "a@x.y")
        self.assertEqual(self.queued[-1][0], b"")
        self.sendmail("-f", "a@b@h.x", "a@x.y")
        self.assertIn(b'\nFrom: "a@b"@h.x\n', self.message)
        self.assertEqual(self.environ["USER"], "root")

    def test_name(self) -> None:
        self.sendmail("-FJoe Doe", "a@x.y")
        self.assertIn(b'\nFrom: "Joe Doe" <u@mx.example.test>\n', self.message)
        self.environ["QMAILNAME"] = "Q"
        self.sendmail("-F", "Joe Doe", "a@x.y")
        self.assertIn(b'\nFrom: "Q" <u@mx.example.test>\n', self.message)

    def test_callers(self) -> None:
        """What well-known programs really call."""
        for words in (
            ["-t", "-i"],  # PHP
            ["-oem", "-oi", "-f", "joe@x.y", "-N", "failure", "-R", "hdrs", "--", "h@x.y"],  # mutt
            ["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "h@x.y"],  # Debian's cron
            ["-FCronDaemon", "-odi", "-oem", "-oi", "-t", "-f", "root"],  # Red Hat's
            ["-oi", "-oem", "-r", "joe@x.y", "h@x.y"],  # mailx
            ["-i", "-f", "joe@x.y", "h@x.y"],  # git send-email
            ["-G", "-i", "-n", "-s", "-U", "-v", "-x", "-m", "-Y", "-c", "h@x.y"],
            ["-Nsuccess,failure", "-Rfull", "-V", "id", "-O", "DeliveryMode=b", "-pESMTP", "-bm", "h@x.y"],
            ["-d0.1", "-q30m", "-E", "-Jx", "-Q", "-h", "5", "-Lmail", "-X", "/dev/null", "-C/x", "-Am", "h@x.y"],
            ["-e", "q", "-D", "/x", "-M", "i", "-o", "i", "h@x.y"],
        ):
            self.sendmail(*words)
            self.assertEqual(self.queued.pop()[1], [b"h@x.y"], words)

    def test_reports(self) -> None:
        """-N, -R and -V as in Postfix (RFC 3461 §4); nothing is asked for without them."""
        for words, expected in [
            ([], (b"", b"")),
            (["-N", "never"], (b"", b"NOTIFY=NEVER")),
            (["-Nsuccess,failure", "-R", "hdrs", "-V", "a+b"], (b"RET=HDRS ENVID=a+2Bb", b"NOTIFY=SUCCESS,FAILURE")),
            (["-R", "full", "-f", "joe@x.y"], (b"RET=FULL", b"")),
        ]:
            self.sendmail(*words, "h@x.y")
            self.assertEqual(self.parameters, expected, words)
        for words in (["-N", "always"], ["-N", "never,delay"], ["-R", "some"], ["-V", "x" * 101], ["-V", "a\nb"]):
            self.sendmail(*words, "h@x.y", code=100)

    def test_queue_run(self) -> None:
        """A cron job that runs sendmail -q must neither wait for a message nor send one."""

        def unread() -> Iterable[bytes]:
            raise AssertionError("read")
            yield b""

        for words in (["-q"], ["-q30m"], ["-v", "-q"]):
            self.assertEqual(self.run_command(sendmail.run, words, unread()), 0)
        self.sendmail("-q", "-t")
        self.assertEqual(len(self.queued), 1)

    def test_refused_modes(self) -> None:
        for words, complaint in (
            (["-bd"], "twistd qtwist"),
            (["-bD"], "twistd qtwist"),
            (["-bv", "a@x.y"], "no mode -bv"),
            (["-bi"], ".qmail-NAME"),
            (["-I"], ".qmail-NAME"),
            (["-Z"], "illegal option -- Z"),
            (["-b"], "option requires an argument -- b"),
        ):
            self.sendmail(*words, code=100)
            self.assertIn(complaint, self.complaint)
        self.assertEqual(self.queued, [])

    def test_no_home(self) -> None:
        self.environ["QTWISTHOME"] = f"{self.home}/none"
        self.sendmail("a@x.y", code=111)

    def test_names(self) -> None:
        """A link called newaliases, or the command of that name, says what to do instead."""
        self.patch(sys, "argv", ["/usr/bin/newaliases"])
        self.assertEqual((sendmail.main(), sendmail.newaliases([]), sendmail.newaliases()), (100, 100, 100))
        self.assertEqual(self.complaint.count("newaliases: fatal: there is no table"), 3)

    def test_mailq(self) -> None:
        shown = []
        self.patch(sendmail, "_show_queue", lambda: shown.append(1) or 7)
        self.patch(sys, "argv", ["mailq"])
        self.assertEqual(sendmail.main(), 7)
        self.assertEqual(sendmail.mailq(["-Ac"]), 7)
        self.assertEqual(sendmail.main(["-bp"]), 7)


class MailsubjTests(SendingCase):
    def test_sends(self) -> None:
        words = ["a  subject", "joe@x.y,", "Fred", "<fred@x.y>", "eve@x.y"]
        self.assertEqual(self.run_command(mailsubj.run, words, [b"From: no\n\nbody"]), 0)
        self.assertEqual(self.queued[0][1], [b"eve@x.y", b"fred@x.y", b"joe@x.y"])
        self.assertTrue(
            self.message.endswith(
                b"\nSubject: a  subject\nTo: joe@x.y, Fred <fred@x.y>, eve@x.y\n\nFrom: no\n\nbody\n"
            ),
            self.message,
        )

    def test_no_new_fields(self) -> None:
        self.assertEqual(self.run_command(mailsubj.run, ["a\nBcc: b@x.y", "c@x.y,\r\nBcc: d@x.y"], []), 0)
        self.assertIn(b"\nSubject: a Bcc: b@x.y\n", self.message)
        self.assertNotIn(b"\nBcc", self.message)

    def test_wrong_use(self) -> None:
        for words in ([], ["subject"]):
            self.assertEqual(self.run_command(mailsubj.run, words, []), 100)
        self.assertEqual(self.queued, [])


class DatemailTests(SendingCase):
    def test_sends(self) -> None:
        self.assertEqual(self.run_command(datemail.run, ["-fs@x.y", "a@x.y"], [b"Subject: x\n\n"]), 0)
        self.assertEqual(self.queued, [(b"s@x.y", [b"a@x.y"])])
        self.assertRegex(self.message, rb"\nDate: \d\d? \w{3} \d{4} [\d:]{8} [+-]\d{4}\nSubject: x\n\n$")
        self.assertEqual(self.message.count(b"Date:"), 1)

    def test_local_time(self) -> None:
        """§21: the zone's offset, west of Greenwich negative."""
        old = os.environ.get("TZ")

        def restore() -> None:
            os.environ.pop("TZ")
            if old is not None:
                os.environ["TZ"] = old
            time.tzset()

        self.addCleanup(restore)
        for zone, expected in (
            ("XXX0", b"2 Nov 2026 03:04:05 +0000"),
            ("XXX-5:45", b"2 Nov 2026 08:49:05 +0545"),
            ("XXX3:30", b"1 Nov 2026 23:34:05 -0330"),
            ("XXX12", b"1 Nov 2026 15:04:05 -1200"),
        ):
            os.environ["TZ"] = zone
            time.tzset()
            self.assertEqual(predate.date_field(1793588645), b"Date: " + expected + b"\n")


class ProcessTests(SendingCase):
    """The commands as programs of their own."""

    def command(
        self, module: str, *words: str, message: bytes = b"", home: str = ""
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", f"qtwist.commands.{module}", *words],
            check=False,
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": CHECKOUT, "QTWISTHOME": home or self.home},
            input=message,
            capture_output=True,
            timeout=60,
        )

    def test_inject(self) -> None:
        done = self.command("inject", "-n", "-fs@x.y", message=b"To: t\n\n" + b"x" * 200_000)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertTrue(done.stdout.startswith(b"Return-Path: <s@x.y>\nDate: "))
        self.assertTrue(done.stdout.endswith(b"\nTo: t@mx.example.test\n\n" + b"x" * 200_000 + b"\n"))

    def test_no_daemon(self) -> None:
        """A mail system that does not run is a temporary failure, with a reason."""
        for module in ("inject", "sendmail", "datemail"):
            done = self.command(module, "a@x.y")
            self.assertEqual(done.returncode, 111)
            self.assertTrue(done.stderr.startswith(b"qmail-inject: fatal: "), done.stderr)

    def test_odd_octets(self) -> None:
        """Arguments are octets, whatever the locale."""
        done = self.command("mailsubj", os.fsdecode(b"\xe4\xff"), "-n")
        self.assertEqual(done.returncode, 111)
        done = self.command("inject", "-n", os.fsdecode(b"-f\xe4@x.y"))
        self.assertTrue(done.stdout.startswith(b'Return-Path: <"\xe4"@x.y>\n'), done.stdout)

    def test_predate(self) -> None:
        done = self.command("predate", "sh", "-c", "cat; exit 7", message=b"Subject: x\n\n")
        self.assertEqual(done.returncode, 7)
        self.assertRegex(done.stdout, rb"^Date: [^\n]+ [+-]\d{4}\nSubject: x\n\n$")

    def test_predate_fails(self) -> None:
        self.assertEqual(self.command("predate").returncode, 100)
        # "Errors 111" (§21): nothing bounces because a program is away for a while.
        self.assertEqual(self.command("predate", "/nonexistent/program").returncode, 111)
        self.assertEqual(self.command("predate", "sh", "-c", "kill -9 $$", message=b"x" * 300_000).returncode, 111)
        # A program that does not read its input is no trouble.
        self.assertEqual(self.command("predate", "true", message=b"x" * 300_000).returncode, 0)

    def test_help(self) -> None:
        for module in ("inject", "sendmail", "mailsubj", "datemail", "predate"):
            done = self.command(module, "--help", home="/nonexistent")
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertTrue(done.stdout.startswith(b"NAME\n"))

    def test_light(self) -> None:
        """They run once per mail, so they bring in next to nothing (issue 3, 7)."""
        for module in ("inject", "sendmail", "mailsubj", "datemail", "predate"):
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", _MODULES, CHECKOUT, f"qtwist.commands.{module}"],
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertEqual(done.stdout, "set()\n")


# What is imported by our modules beyond these is printed.
_MODULES = """
import os, sys, time, errno, pwd, _socket
known = set(sys.modules) | {'__future__'}
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
print({name for name in set(sys.modules) - known if not name.startswith('qtwist')})
"""
