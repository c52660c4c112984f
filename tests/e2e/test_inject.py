"""Mail from programs that call sendmail and its kin, with the real daemon (spec/qmail.md §19-§21; LWQ G.11)."""

from __future__ import annotations

import subprocess

from tests.e2e.harness import ME, PATIENCE, DaemonCase
from tests.e2e.test_flow import END


class CallerTests(DaemonCase):
    def call(self, command: str, *words: str, message: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.runtime.command(command, *words),
            check=False,
            cwd="/",
            env={**self.environment(), "QTWISTHOME": self.home, "LOGNAME": self.user},
            input=message,
            capture_output=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )

    def deliver(self, command: str, *words: str, message: bytes) -> bytes:
        """Send a message by a command, wait for its delivery; the message as delivered, without what is added last."""
        before = self.maildir()
        ends = len(self.daemon.log.find(END))
        done = self.call(command, *words, message=message)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.daemon.log.wait(END, ends + 1)
        [new] = [mail for mail in self.maildir() if mail not in before]
        return new.partition(b"invoked by uid ")[2].partition(b"\n")[2]

    def test_callers(self) -> None:
        self.daemon = self.start()
        to = self.user.encode()
        at_me = b"@" + ME.encode()
        with self.subTest("PHP"):
            mail = self.deliver(
                "sendmail", "-t", "-i", message=b"To: " + to + b"\r\nSubject: php\r\nX-A: b\r\n\r\n.\r\nend\r\n"
            )
            self.assertTrue(mail.endswith(b"To: " + to + at_me + b"\nSubject: php\nX-A: b\n\n.\nend\n"), mail)
            self.assertNotIn(b"\r", mail)
        with self.subTest("cron"):
            message = b"From: root (Cron Daemon)\nTo: " + to + b"\nSubject: Cron\n\noutput\n"
            mail = self.deliver("sendmail", "-FCronDaemon", "-i", "-B8BITMIME", "-oem", self.user, message=message)
            self.assertIn(b"\nFrom: root" + at_me + b" (Cron Daemon)\n", mail)
        with self.subTest("mutt"):
            words = ("-oem", "-oi", "-f", "joe@x.test", "--", self.address)
            mail = self.deliver("sendmail", *words, message=b"From: Joe <joe@x.test>\nBcc: secret@x.test\n\nhi\n")
            self.assertTrue(mail.endswith(b"\nFrom: Joe <joe@x.test>\n\nhi\n"), mail)
            self.assertIn(b"Return-Path: <joe@x.test>\n", b"".join(self.maildir()))
        with self.subTest("mailsubj"):
            mail = self.deliver("mailsubj", "the subject", self.user, message=b"text")
            self.assertTrue(mail.endswith(b"\nSubject: the subject\nTo: " + to + at_me + b"\n\ntext\n"), mail)
        with self.subTest("datemail"):
            mail = self.deliver("datemail", self.user, message=b"Subject: dated\n\n")
            self.assertRegex(mail, rb"\nDate: [^\n]* [+-]\d{4}\nSubject: dated\n\n$")
        with self.subTest("sendmail -bs"):
            lines = (
                "HELO x",
                "MAIL FROM:<>",
                f"RCPT TO:<{self.address}>",
                "DATA",
                "Subject: bs",
                "",
                "x",
                ".",
                "QUIT",
                "",
            )
            done = self.call("sendmail", "-bs", message="\r\n".join(lines).encode())
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertRegex(done.stdout, rb"\r\n250 ok \d+ qp \d+\r\n221 ")
            self.daemon.log.wait(END, 6)
            self.assertIn(b"\nReceived: from localhost (HELO x) (sendmail-bs@127.0.0.1)\n", b"".join(self.maildir()))
        self.wait_empty_queue()

    def test_bounce(self) -> None:
        """An address that does not exist: whoever called sendmail gets the bounce."""
        self.daemon = self.start()
        self.assertEqual(self.call("sendmail", f"missing@{ME}", message=b"Subject: x\n\n").returncode, 0)
        self.daemon.log.wait(END, 2)
        [bounce] = self.maildir()
        self.assertIn(f"\n<missing@{ME}>:\n".encode(), bounce)

    def test_wrong_address(self) -> None:
        """Nothing is queued when the header is wrong."""
        self.daemon = self.start()
        done = self.call("inject", message=b"From: (x\nTo: " + self.user.encode() + b"\n\n")
        self.assertEqual(done.returncode, 100)
        self.assertEqual((self.queued(), self.daemon.log.find("new msg")), ([], []))
