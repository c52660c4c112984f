"""The engine of qmail-local: spec/qmail.md §13, with real files and real programs, as an ordinary user."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

import attrs
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.local.deliver import Forwarded, Job, Outcome, Parts, deliver, has_line
from qtwist.local.dotqmail import MAXIMUM_SIZE
from qtwist.local.errors import DeliveryError
from qtwist.local.program import Run, run_program
from qtwist.mail.envelope import Report
from tests.unprivileged import ORDINARY, as_user, folder

MESSAGE = b"Received: x\nSubject: test\n\nFrom me\nto you\n"
NOW = 1_700_000_000.0
BASE = {b"PATH": b"/usr/local/bin:/usr/bin:/bin", b"SHLVL": b"0"}


@attrs.frozen
class Sent:
    """One call of the forward door."""

    text: bytes
    sender: bytes
    recipients: tuple[bytes, ...]
    asked: tuple[bytes, bytes] = (b"", b"")


@attrs.frozen
class Result:
    outcome: Outcome
    sent: list[Sent]

    @property
    def code(self) -> int:
        return self.outcome.code

    @property
    def output(self) -> bytes:
        return self.outcome.output


class DeliverCase(SynchronousTestCase):
    """A home directory, and :meth:`deliver` into it."""

    def setUp(self) -> None:
        self.home = folder(self)
        self.answer = Forwarded(Report.success(), 77)

    def path(self, name: bytes) -> bytes:
        return os.path.join(self.home, name)

    def put(self, name: bytes, text: bytes, mode: int = 0o644) -> None:
        with open(self.path(name), "wb") as file:
            file.write(text)
        os.chmod(self.path(name), mode)
        if os.geteuid() == 0:
            os.chown(self.path(name), ORDINARY, ORDINARY)

    def get(self, name: bytes) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def maildir(self, name: bytes = b"Maildir") -> None:
        for path in (name, name + b"/tmp", name + b"/new", name + b"/cur"):
            os.mkdir(self.path(path), 0o700)
            if os.geteuid() == 0:
                os.chown(self.path(path), ORDINARY, ORDINARY)

    def mails(self, name: bytes = b"Maildir") -> list[bytes]:
        return [self.get(name + b"/new/" + entry) for entry in os.listdir(self.path(name + b"/new"))]

    def deliver(
        self,
        dash: bytes = b"",
        ext: bytes = b"",
        sender: bytes = b"joe@x",
        default: bytes = b"./Default\n",
        message: bytes = MESSAGE,
        dry_run: bool = False,
        home: bytes | None = None,
        timeout: float = 3600,
        asked: tuple[bytes, bytes] = (b"", b""),
    ) -> Result:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(message)
        fd = os.open(path, os.O_RDONLY)
        # Where the offset is left by others must not matter.
        os.lseek(fd, 5, os.SEEK_SET)
        sent: list[Sent] = []

        def forward(
            fd: int, prefix: bytes, sender: bytes, recipients: Sequence[bytes], asked: tuple[bytes, bytes]
        ) -> Forwarded:
            sent.append(Sent(prefix + os.pread(fd, 100_000, 0), sender, tuple(recipients), asked))
            return self.answer

        job = Job(
            user=b"me",
            home=self.home if home is None else home,
            local=b"me" + dash + ext,
            dash=dash,
            ext=ext,
            domain=b"here.test",
            sender=sender,
            default_delivery=default,
            fd=fd,
            dry_run=dry_run,
            asked=asked,
        )
        parts = Parts(RealDisk(), lambda: NOW, b"mx", forward, BASE, timeout)
        try:
            return as_user(lambda: Result(deliver(job, parts), sent))
        finally:
            os.close(fd)

    def qmail(self, text: bytes, mode: int = 0o644, **arguments: object) -> Result:
        self.put(b".qmail", text, mode)
        return self.deliver(**arguments)  # type: ignore[arg-type]


class PreparationTests(DeliverCase):
    """§13.1 and §13.4."""

    def check(self, result: Result, code: int, text: bytes) -> None:
        self.assertEqual(result.code, code, result.output)
        self.assertIn(text, result.output)

    def test_default_delivery(self) -> None:
        """No .qmail file, and no extension: the default delivery."""
        self.check(self.deliver(), 0, b"did 1+0+0\n")
        self.assertEqual(
            self.get(b"Default"),
            b"From joe@x Tue Nov 14 22:13:20 2023\nReturn-Path: <joe@x>\nDelivered-To: me@here.test\n"
            b"Received: x\nSubject: test\n\n>From me\nto you\n\n",
        )

    def test_no_mailbox(self) -> None:
        """An extension without a .qmail file: no such mailbox, whatever the default is."""
        self.check(self.deliver(b"-", b"x"), 100, b"(#5.1.1)")

    def test_home(self) -> None:
        self.check(self.deliver(home=b"relative"), 100, b"")
        self.check(self.deliver(home=self.path(b"none")), 111, b"(#4.3.0)")
        self.put(b"file", b"")
        self.check(self.deliver(home=self.path(b"file")), 111, b"(#4.3.0)")

    def test_home_writable(self) -> None:
        """conf-patrn: writable by others is refused, by the group is not."""
        os.chmod(self.home, 0o772)
        self.check(self.deliver(), 111, b"(#4.7.0)")
        os.chmod(self.home, 0o770)
        self.check(self.deliver(), 0, b"did")

    def test_home_sticky(self) -> None:
        os.chmod(self.home, 0o1700)
        self.check(self.deliver(), 111, b"(#4.2.1)")
        self.check(self.deliver(dry_run=True), 0, b"sticky")

    def test_loop(self) -> None:
        self.check(self.deliver(message=b"A: b\nDelivered-To: me@here.test\n\nx\n"), 100, b"(#5.4.6)")
        self.check(self.deliver(message=b"Delivered-To: me@here.test\n"), 100, b"(#5.4.6)")
        for harmless in (
            b"\nDelivered-To: me@here.test\n",
            b"A: b\n\nDelivered-To: me@here.test\n",
            b"delivered-to: me@here.test\n\n",
            b"Delivered-To: me@here.test \n\n",
            b"X-Delivered-To: me@here.test\n\n",
            b"Delivered-To: me@here.test",  # a last line without LF is not looked at
            b"",
        ):
            self.check(self.deliver(message=harmless), 0, b"did 1+0+0\n")
        self.check(self.deliver(message=b"Delivered-To: me@here.test\n\n", dry_run=True), 0, b"did 1+0+0\n")

    def test_loop_in_long_header(self) -> None:
        """The line is found wherever a block ends."""
        line = b"Delivered-To: me@here.test\n"
        for size in range(16384 - 30, 16384 + 3):
            fd = os.memfd_create("message")
            self.addCleanup(os.close, fd)
            os.write(fd, b"x" * size + b"\n" + line + b"\n")
            self.assertTrue(has_line(RealDisk(), fd, line))
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"x" * size + b"\n\n" + line + b"\n", 0)
            self.assertFalse(has_line(RealDisk(), fd, line))

    def test_endless_header(self) -> None:
        """Only so much of a header is read (§26.1)."""
        fd = os.memfd_create("message")
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, 1 << 40)
        self.assertFalse(has_line(RealDisk(), fd, b"Delivered-To: x\n"))

    def test_search(self) -> None:
        """§13.4: the most specific file wins; names in lower case, dots as colons."""
        for name in (b".qmail", b".qmail-a-b", b".qmail-a-default", b".qmail-default", b".qmail-x:y"):
            self.put(name, b"|echo " + name + b' "$DEFAULT"\n')
        for dash, ext, expected in [
            (b"", b"", b".qmail \n"),
            (b"-", b"a-b", b".qmail-a-b \n"),
            (b"-", b"A-B", b".qmail-a-b \n"),
            (b"-", b"A-C.d", b".qmail-a-default C.d\n"),
            (b"-", b"a-b-C", b".qmail-a-default b-C\n"),
            (b"-", b"a", b".qmail-default a\n"),
            (b"-", b"A-default", b".qmail-a-default default\n"),
            (b"-", b"X.Y", b".qmail-x:y \n"),
        ]:
            self.check(self.deliver(dash, ext), 0, expected)

    def test_folder_below_home(self) -> None:
        """§26.8: a slash in the extension reaches below the home directory."""
        os.mkdir(self.path(b".qmail-lists"), 0o755)
        self.put(b".qmail-lists/a", b"joe@x\n")
        self.check(self.deliver(b"-", b"Lists/A"), 0, b"did 0+1+0\n")

    def test_not_a_file(self) -> None:
        """Something that is not a regular file counts as absent, and does not stop anything."""
        os.mkdir(self.path(b".qmail-a"))
        os.mkfifo(self.path(b".qmail-b"), 0o644)
        self.put(b".qmail-default", b"joe@x\n")
        for ext in (b"a", b"b"):
            self.check(self.deliver(b"-", ext), 0, b"did 0+1+0\n")

    def test_writable(self) -> None:
        self.put(b".qmail", b"joe@x\n", 0o646)
        self.check(self.deliver(), 111, b"(#4.7.0)")
        self.put(b".qmail", b"joe@x\n", 0o664)
        self.check(self.deliver(), 0, b"did 0+1+0\n")

    def test_unreadable(self) -> None:
        """A .qmail file that may not be read holds the mail up; the next candidate is not asked."""
        self.put(b".qmail-a", b"joe@x\n", 0o000)
        self.put(b".qmail-default", b"joe@x\n")
        self.check(self.deliver(b"-", b"a"), 111, b"(#4.3.0)")

    def test_name_too_long(self) -> None:
        """No other error holds it up: such a file cannot exist (§13.4)."""
        self.put(b".qmail-default", b"joe@x\n")
        self.check(self.deliver(b"-", b"a" * 500), 0, b"did 0+1+0\n")

    def test_empty_file(self) -> None:
        """§13.4: 0 octets mean the default delivery, whatever its mode says; for extensions, too."""
        self.put(b".qmail-a", b"", 0o755)
        self.check(self.deliver(b"-", b"a"), 0, b"did 1+0+0\n")
        self.assertTrue(self.get(b"Default"))

    def test_blank_start(self) -> None:
        self.put(b".qmail", b" \n./Mailbox\n")
        self.check(self.deliver(), 111, b"(#4.2.1)")
        self.assertFalse(os.path.exists(self.path(b"Mailbox")))

    def test_too_large(self) -> None:
        self.put(b".qmail", b"#" * (MAXIMUM_SIZE + 1))
        self.check(self.deliver(), 111, b"(#4.3.0)")
        self.put(b".qmail", b"#" * MAXIMUM_SIZE)
        self.check(self.deliver(), 0, b"did 0+0+0\n")

    def test_nul(self) -> None:
        self.check(self.deliver(b"-", b"a\0b"), 100, b"(#5.1.3)")


class InstructionTests(DeliverCase):
    """§13.5."""

    def test_every_kind(self) -> None:
        """Files and programs in order, forwards after them in one queue run, and the count of all."""
        self.maildir()
        result = self.qmail(b"# all\nann@x\n./Maildir/\n./Mailbox\n\n&bob@x\n|cat >copy\n+other\n")
        self.assertEqual(result.outcome, Outcome(0, b"did 2+2+1\nqp 77\n"))
        lines = b"Return-Path: <joe@x>\nDelivered-To: me@here.test\n"
        self.assertEqual(self.mails(), [lines + MESSAGE])
        self.assertTrue(self.get(b"Mailbox").startswith(b"From joe@x Tue Nov 14 22:13:20 2023\n" + lines))
        self.assertEqual(self.get(b"copy"), MESSAGE)
        self.assertEqual(result.sent, [Sent(b"Delivered-To: me@here.test\n" + MESSAGE, b"joe@x", (b"ann@x", b"bob@x"))])

    def test_absolute_paths(self) -> None:
        result = self.qmail(self.path(b"Mailbox") + b"\n")
        self.assertEqual(result.output, b"did 1+0+0\n")
        self.assertTrue(self.get(b"Mailbox"))

    def test_failing_mailbox(self) -> None:
        """The first failure ends it all; what was collected is not sent."""
        result = self.qmail(b"ann@x\n./None/\n./Mailbox\n")
        self.assertEqual((result.code, result.sent), (111, []))
        self.assertIn(b"(#4.2.1)", result.output)
        self.assertFalse(os.path.exists(self.path(b"Mailbox")))
        self.assertEqual(self.qmail(b"./None/Mailbox\n").code, 111)

    def test_forward_only(self) -> None:
        """The x bit and +list allow forwards only; what came before +list is done."""
        for line in (b"./Mailbox", b"./Maildir/", b"|true"):
            result = self.qmail(b"ann@x\n" + line + b"\n", 0o744)
            self.assertEqual((result.code, result.sent), (111, []))
            self.assertIn(b"(#4.7.0)", result.output)
            self.assertEqual(self.qmail(b"+list\nann@x\n" + line + b"\n").code, 111)
        self.assertEqual(self.qmail(b"ann@x\n", 0o744).outcome, Outcome(0, b"did 0+1+0\nqp 77\n"))
        self.assertEqual(self.qmail(b"./Mailbox\n+list\nann@x\n").outcome, Outcome(0, b"did 1+1+0\nqp 77\n"))
        self.assertEqual(self.qmail(b"+list more\n|true\n").outcome, Outcome(0, b"did 0+0+1\n"))

    def test_forward_failure(self) -> None:
        """D is permanent, everything else temporary."""
        for report, code in ((Report.failure(b"no (#5.1.3)\n"), 100), (Report.deferral(b"later (#4.3.0)"), 111)):
            self.answer = Forwarded(report)
            result = self.qmail(b"ann@x\n")
            self.assertEqual(result.code, code)
            self.assertIn(report.text.strip(), result.output)
            self.assertNotIn(b"did", result.output)

    def test_what_was_asked_goes_on(self) -> None:
        """RFC 3461 §5.2.7.2: with a forward to one address that is all there is; then whoever gets it reports."""
        asked = b"RET=HDRS ENVID=x", b"NOTIFY=NEVER ORCPT=rfc822;me@here.test"
        told = b"The server reports further.\n"
        for text, count, goes_on in (
            (b"ann@x\n", b"did 0+1+0\nqp 77\n", True),
            (b"# comment\n&ann@x\n", b"did 0+1+0\nqp 77\n", True),
            (b"ann@x\nbob@x\n", b"did 0+2+0\nqp 77\n", False),
            (b"ann@x\n./Mailbox\n", b"did 1+1+0\nqp 77\n", False),
            (b"|true\nann@x\n", b"did 0+1+1\nqp 77\n", False),
        ):
            result = self.qmail(text, asked=asked)
            self.assertEqual(result.outcome, Outcome(0, count + told * goes_on), text)
            self.assertEqual([one.asked for one in result.sent], [asked if goes_on else (b"", b"")], text)
        self.assertEqual(self.qmail(b"ann@x\n").output, b"did 0+1+0\nqp 77\n")
        result = self.qmail(b"ann@x\n", asked=(b"", b"NOTIFY=SUCCESS"))
        self.assertEqual(result.sent[0].asked, (b"", b"NOTIFY=SUCCESS"))
        self.put(b".qmail-owner", b"")  # a list: who gets its bounces is another one
        result = self.qmail(b"ann@x\n", asked=asked)
        self.assertEqual((result.output, result.sent[0].asked), (b"did 0+1+0\nqp 77\n", (b"", b"")))

    def test_owner(self) -> None:
        """§13.6: the list's owner becomes the sender, or a VERP pattern; the file is that of the actual extension."""
        self.put(b".qmail-default", b"ann@x\n|echo $NEWSENDER\n")
        self.put(b".qmail-list-owner", b"")
        for ext, sender, expected in [
            (b"List", b"joe@x", b"me-List-owner@here.test"),
            (b"list", b"", b""),
            (b"list", b"#@[]", b"#@[]"),
            (b"other", b"joe@x", b"joe@x"),
        ]:
            result = self.deliver(b"-", ext, sender)
            self.assertEqual(result.sent[0].sender, expected)
            self.assertEqual(result.output, expected + b"\ndid 0+1+1\nqp 77\n")
        self.put(b".qmail-list-owner-default", b"")
        result = self.deliver(b"-", b"list")
        self.assertEqual(result.sent[0].sender, b"me-list-owner-@here.test-@[]")

    def test_dry_run(self) -> None:
        """-n: prints what would be done, and does nothing; checks still hold."""
        text = b"./Mailbox\n./Maildir/\n| run me\n&ann@x\nbob@x\n#x\n"
        result = self.qmail(text, dry_run=True)
        self.assertEqual(
            result.outcome,
            Outcome(
                0,
                b"mbox ./Mailbox\nmaildir ./Maildir/\nprogram  run me\nforward ann@x\nforward bob@x\ndid 2+2+1\n",
            ),
        )
        self.assertEqual((result.sent, os.listdir(self.home)), ([], [b".qmail"]))
        self.assertEqual(self.qmail(text, 0o744, dry_run=True).code, 111)


class ProgramTests(DeliverCase):
    """Programs: §13.3, §13.5, §11.1."""

    def test_exit_codes(self) -> None:
        """The whole table of §13.5."""
        permanent = {100, 64, 65, 70, 76, 77, 78, 112}
        for code in (0, 1, 63, 64, 65, 70, 71, 74, 75, 76, 77, 78, 98, 99, 100, 111, 112, 113, 255):
            result = self.qmail(b"ann@x\n|echo said; exit %d\n./Mailbox\nbob@x\n" % code)
            self.assertTrue(result.output.startswith(b"said\n"))
            if code == 0:
                expected = (0, b"said\ndid 1+2+1\nqp 77\n", 1)
            elif code == 99:
                # The rest is left out; what was collected is sent.
                expected = (0, b"said\ndid 0+1+1\nqp 77\n", 1)
            else:
                expected = (100 if code in permanent else 111, b"said\n", 0)
            self.assertEqual((result.code, result.output, len(result.sent)), expected, code)
            self.assertEqual(os.path.exists(self.path(b"Mailbox")), code == 0)
            if code == 0:
                os.unlink(self.path(b"Mailbox"))
            if code == 99:
                self.assertEqual(result.sent[0].recipients, (b"ann@x",))

    def test_signal(self) -> None:
        result = self.qmail(b"|kill -9 $$\n")
        self.assertEqual(result.code, 111)
        self.assertIn(b"(#4.3.0)", result.output)

    def test_environment(self) -> None:
        """Exactly the variables of §13.3 and the base; nothing of the daemon's."""
        self.put(b".qmail-a-default", b"|env -0 >env\n")
        os.environ["QTWIST_SECRET"] = "x"
        self.addCleanup(os.environ.pop, "QTWIST_SECRET")
        evil = b"() { :;}; echo hit"
        self.assertEqual(self.deliver(b"-", b"A-" + evil, evil + b"@x y").output, b"did 0+0+1\n")
        found = dict(entry.split(b"=", 1) for entry in self.get(b"env").split(b"\0")[:-1])
        for shell_s_own in (b"PWD", b"OLDPWD", b"_", b"SHLVL"):
            found.pop(shell_s_own, None)
        local = b"me-A-" + evil
        self.assertEqual(
            found,
            {
                b"PATH": BASE[b"PATH"],
                b"USER": b"me",
                b"HOME": self.home,
                b"LOCAL": local,
                b"HOST": b"here.test",
                b"HOST2": b"here",
                b"HOST3": b"here",
                b"HOST4": b"here",
                b"RECIPIENT": local + b"@here.test",
                b"SENDER": evil + b"@x y",
                b"NEWSENDER": evil + b"@x y",
                b"EXT": b"A-" + evil,
                b"EXT2": evil,
                b"EXT3": b"",
                b"EXT4": b"",
                b"DEFAULT": evil,
                b"DTLINE": b"Delivered-To: " + local + b"@here.test\n",
                b"RPLINE": b'Return-Path: <"' + evil + b'"@x y>\n',
                b"UFLINE": b"From " + evil.replace(b" ", b"-") + b"@x-y Tue Nov 14 22:13:20 2023\n",
            },
        )

    def test_surroundings(self) -> None:
        """Home directory, umask 077, default SIGPIPE, no descriptors but three, a session of its own."""
        result = self.qmail(
            b"|pwd; umask; ls /proc/self/fd | tr '\\n' ' '; grep SigIgn /proc/self/status; "
            b"test $$ = $(ps -o sid= -p $$ | tr -d ' ') && echo leader\n"
        )
        pwd, umask, rest = result.output.split(b"\n", 2)
        self.assertEqual(pwd, os.path.realpath(self.home))
        self.assertEqual(int(umask, 8), 0o077)
        # ls itself opens one more.
        self.assertTrue(rest.startswith(b"0 1 2 3 SigIgn"), rest)
        sigpipe = 1 << 12
        self.assertFalse(int(rest.split()[5], 16) & sigpipe)

    def test_message_from_the_start(self) -> None:
        """Every program reads the whole message, although the offset is shared."""
        self.qmail(b"|cat >a; exit 0\n|head -c 3 >b\n|cat >c\n./Mailbox\n")
        self.assertEqual([self.get(name) for name in (b"a", b"b", b"c")], [MESSAGE, MESSAGE[:3], MESSAGE])
        self.assertIn(b"Subject: test", self.get(b"Mailbox"))

    def test_seekable(self) -> None:
        result = self.qmail(b"|head -c 3 >/dev/null; (cat) >/dev/null; wc -c </dev/stdin\n")
        self.assertEqual(result.output.split()[0], b"%d" % len(MESSAGE))

    def test_output_order(self) -> None:
        """Standard output and error are one stream (§28.13)."""
        result = self.qmail(b"|echo one; echo two >&2; echo three; exit 100\n")
        self.assertEqual(result.outcome, Outcome(100, b"one\ntwo\nthree\n"))

    def test_output_bound(self) -> None:
        """A program that talks without end is read to its end, but only so much is kept, over all programs."""
        result = self.qmail(b"|head -c 5000000 /dev/zero; echo x >done\n|echo more\n")
        self.assertEqual(result.outcome, Outcome(0, b"\0" * 10_000 + b"did 0+0+2\n"))
        self.assertEqual(self.get(b"done"), b"x\n")

    def test_big_message(self) -> None:
        message = b"Subject: x\n\n" + b"0123456789abcde\n" * 200_000
        result = self.qmail(b"|wc -c\n", message=message)
        self.assertEqual(result.output.split()[0], b"%d" % len(message))

    def test_program_that_does_not_read(self) -> None:
        self.assertEqual(self.qmail(b"|true\n", message=b"x" * 1_000_000).outcome, Outcome(0, b"did 0+0+1\n"))

    def test_no_directory(self) -> None:
        """What cannot be started is tried again."""
        result = self.qmail(b"|" + b"x" * 200_000 + b"\n")
        self.assertEqual(result.code, 111)
        self.assertIn(b"(#4.3.0)", result.output)

    def test_as_root(self) -> None:
        """No program ever runs as root."""
        if os.geteuid() != 0:
            from qtwist.local import program

            self.patch(program.os, "geteuid", lambda: 0)
        with open(os.devnull, "rb") as file:
            error = self.assertRaises(
                DeliveryError,
                run_program,
                b"echo hello",
                fd=file.fileno(),
                home=b"/",
                environment=BASE,
                timeout=10,
            )
        self.assertEqual(error.code, 113)


def is_dead(process: int) -> bool:
    """Whether a process has died, or does so within ten seconds; nobody need have reaped it yet."""
    try:
        fd = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(10_000))
    finally:
        os.close(fd)


class TimeTests(DeliverCase):
    """Programs are bounded in time; the deadlines here are those that must pass, no sleeps."""

    def run_for(self, command: bytes, timeout: float, grace: float = 10) -> Run:
        def run() -> Run:
            with open(os.devnull, "rb") as file:
                return run_program(
                    command, fd=file.fileno(), home=self.home, environment=BASE, timeout=timeout, grace=grace
                )

        return as_user(run)

    def test_told(self) -> None:
        """A program that takes too long is a temporary error that says so, and the forwards are not sent."""
        self.put(b".qmail", b"ann@x\n|echo hello; exec sleep 1000\n")
        result = self.deliver(timeout=0.2)
        self.assertEqual((result.code, result.sent), (111, []))
        self.assertTrue(result.output.startswith(b"hello\n"))
        self.assertIn(b"(#4.3.0)", result.output)

    def test_term(self) -> None:
        """The whole group is asked to end, and may tidy up."""
        run = self.run_for(b"trap 'echo bye; exit 0' TERM; echo hello; sleep 1000 & wait", 0.2)
        self.assertEqual(run, Run(0, b"hello\nbye\n", True))

    def test_term_of_children(self) -> None:
        """So may its children."""
        child = b"(trap 'echo tidied; exit 0' TERM; sleep 1000 & wait)"
        run = self.run_for(b"trap 'exit 1' TERM; %b & wait" % child, 0.2)
        self.assertEqual(run.output, b"tidied\n")

    def test_kill(self) -> None:
        """Who does not listen is killed, and so are its children."""
        run = self.run_for(b"trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000", 0.2, 0.2)
        self.assertTrue(run.timed_out)
        self.assertEqual(run.status, -9)
        self.assertTrue(is_dead(int(run.output)))

    def test_child_left_behind(self) -> None:
        """§11.1: the end of output and death are both waited for; the shell's own result counts."""
        self.assertEqual(self.run_for(b"mkfifo f; (cat f; echo late) & exec 5>f; exit 0", 30), Run(0, b"late\n", False))
        run = self.run_for(b"sleep 1000 & echo started; exit 3", 0.2)
        self.assertEqual(run, Run(3, b"started\n", False))

    def test_redirected_child(self) -> None:
        """A child that does not hold the pipe is left alone."""
        run = self.run_for(b"sleep 1000 >/dev/null 2>&1 & echo $!", 30)
        self.assertEqual((run.status, run.timed_out), (0, False))
        as_user(lambda: os.kill(int(run.output), 9))

    def test_child_that_left_the_group(self) -> None:
        """A daemon that keeps the pipe cannot hold the delivery for ever."""
        run = self.run_for(b"setsid sleep 1000 & echo $!; wait", 0.2, 0.2)
        self.assertTrue(run.timed_out)
        as_user(lambda: os.kill(int(run.output), 9))
