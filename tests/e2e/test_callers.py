"""Programs that people have, with our sendmail as theirs: mutt, both mailx, PHP (spec/qmail.md §20; LWQ G.11)."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any
from unittest import SkipTest

from tests.e2e.harness import ME, PATIENCE, Daemon, program
from tests.e2e.test_door import DoorCase
from tests.e2e.test_flow import END

#: PHP's mail(), with what people give it: header lines of their own, an envelope sender, either kind of line end.
PHP = r"""
[, $to, $end] = $argv;
$end = $end === "crlf" ? "\r\n" : "\n";
$headers = "From: Web <web@client.test>{$end}Cc: $to-copy@mx.test{$end}X-Who: php";
exit(mail("$to@mx.test", "caf\u{e9}", "one{$end}.{$end}two{$end}", $headers, "-fweb@client.test") ? 0 : 3);
"""


class CallersCase(DoorCase):
    def setUp(self) -> None:
        super().setUp()
        self.sendmail = os.path.join(self.bin, "sendmail")
        command = shlex.join(self.runtime.command("sendmail"))
        with open(self.sendmail, "w") as file:
            file.write(f'#!/bin/sh\nPYTHONPATH={shlex.quote(self.runtime.path)} exec {command} "$@"\n')
        os.chmod(self.sendmail, 0o755)
        self.account_home = os.path.join(self.home, "mail", self.user)

    def call(self, *command: str, text: str = "", **identity: Any) -> subprocess.CompletedProcess[str]:
        """Run a program from elsewhere as the account, or as `identity` says."""
        return subprocess.run(
            command,
            check=False,
            cwd="/",
            env={
                "PATH": os.defpath,
                "HOME": self.account_home,
                "USER": self.user,
                "LOGNAME": self.user,
                "LANG": "C.UTF-8",
                "TERM": "dumb",
                "MAILRC": os.path.join(self.home, "mailrc"),
                "QTWISTHOME": self.home,
            },
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **(identity or self.runtime.account.identity()),
        )

    def delivered(self, daemon: Daemon, *command: str, text: str = "") -> bytes:
        """What the program sent, as it lies in the Maildir."""
        before = self.maildir()
        ends = len(daemon.log.find(END))
        done = self.call(*command, text=text)
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        daemon.log.wait(END, ends + 1)
        [new] = [mail for mail in self.maildir() if mail not in before]
        self.assertNotIn(b"\r", new)
        return new

    def php(self, end: str) -> list[str]:
        php = program("php", "php-cli")
        return [php, "-n", "-d", f"sendmail_path={self.sendmail} -t -i", "-r", PHP, "--", self.user, end]


class CallerTests(CallersCase):
    def test_mutt(self) -> None:
        mutt = program("mutt", "mutt")
        self.write("muttrc", f'set sendmail="{self.sendmail} -oem -oi" copy=no use_envelope_from=yes tmpdir=/tmp\n')
        self.write_dotqmail("secret", "./secret\n")
        daemon = self.start()
        mail = self.delivered(
            daemon,
            *(mutt, "-n", "-F", os.path.join(self.home, "muttrc"), "-e", "set from=joe@client.test realname=Joe"),
            *("-s", "a café", "-b", f"{self.user}-secret@{ME}", "--", self.address),
            text="one\n.\nFrom here\n",
        )
        self.assertTrue(mail.startswith(b"Return-Path: <joe@client.test>\n"), mail)
        for line in (
            b"From: Joe <joe@client.test>",
            b"To: " + self.address.encode(),
            b"Subject: a =?iso-8859-1?Q?caf=E9?=\n",
        ):
            self.assertIn(b"\n" + line, mail)
        self.assertTrue(mail.endswith(b"\n\none\n.\nFrom here\n"), mail)
        # Who is in Bcc gets the mail, and nobody sees it.
        self.assertNotIn(b"secret", mail)
        self.assertIn(b"\n.\n>From here\n", self.mailbox("secret"))

    def test_bsd_mailx(self) -> None:
        mailx = program("bsd-mailx", "bsd-mailx")
        self.write("mailrc", f"set sendmail={self.sendmail}\n")
        daemon = self.start()
        self.write_dotqmail("copy", "./copy\n")
        mail = self.delivered(
            daemon,
            *(mailx, "-n", "-s", "a subject", "-c", f"{self.user}-copy@{ME}", "-a", "X-Who: mailx", self.user),
            text="one\n.\ntwo\n",
        )
        self.assertTrue(mail.startswith(f"Return-Path: <{self.address}>\n".encode()), mail)
        for line in (f"To: {self.address}", f"Cc: {self.user}-copy@{ME}", "Subject: a subject", "X-Who: mailx"):
            self.assertIn(f"\n{line}\n".encode(), mail)
        self.assertRegex(mail, rf"\nFrom: [^\n]*<?{self.address}>?\n".encode())
        self.assertTrue(mail.endswith(b"\n\none\n.\ntwo\n"), mail)
        self.assertIn(b"\nX-Who: mailx\n", self.mailbox("copy"))

    def test_s_nail(self) -> None:
        nail = program("s-nail", "s-nail")
        daemon = self.start()
        mail = self.delivered(
            daemon,
            *(nail, "-:/", "-S", f"mta={self.sendmail}", "-S", "from=joe@client.test", "-r", "joe@client.test"),
            *("-s", "a subject", self.address),
            text="one\n.\ntwo\n",
        )
        self.assertTrue(mail.startswith(b"Return-Path: <joe@client.test>\n"), mail)
        self.assertIn(b"\nSubject: a subject\n", mail)
        self.assertTrue(mail.endswith(b"\n\none\n.\ntwo\n"), mail)

    def test_php(self) -> None:
        """mail() ends its own lines with CRLF since PHP 8, and people's with what they wrote: both arrive as lines."""
        self.write_dotqmail("copy", "./copy\n")
        commands = [self.php(end) for end in ("crlf", "lf")]
        daemon = self.start()
        for count, command in enumerate(commands, 1):
            mail = self.delivered(daemon, *command)
            self.assertTrue(mail.startswith(b"Return-Path: <web@client.test>\n"), mail)
            for line in (f"To: {self.address}", "From: Web <web@client.test>", f"Cc: {self.user}-copy@{ME}"):
                self.assertIn(f"\n{line}\n".encode(), mail)
            self.assertIn("\nSubject: café\n".encode(), mail)
            self.assertIn(b"\nX-Who: php\n", mail)
            self.assertTrue(mail.rstrip().endswith(b"\n\none\n.\ntwo"), mail)
            self.assertEqual((self.mailbox("copy") or b"").count(b"\nX-Who: php\n"), count)

    def test_daemon_down(self) -> None:
        """Somebody who may not write the queue himself: the program hears of it, and tells."""
        if not self.runtime.account.switch:
            raise SkipTest("only root can become somebody else")
        stranger: dict[str, Any] = {"user": 54321, "group": 54321, "extra_groups": []}
        done = self.call(self.sendmail, "-oi", self.address, text="Subject: x\n\nx\n", **stranger)
        self.assertEqual((done.returncode, done.stdout), (111, ""))
        self.assertRegex(done.stderr, r"\A[^\n]*\(#4\.3\.2\)\n\Z")
        done = self.call(*self.php("lf"), **stranger)
        self.assertEqual(done.returncode, 3, "mail() is false")
        self.assertEqual(self.queued(), [])
