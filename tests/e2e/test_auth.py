"""AUTH against the real daemon: swaks, curl and msmtp, with each mechanism that they know (RFC 4954; issue 9)."""

from __future__ import annotations

import os
import subprocess
import time

from tests.e2e.harness import ME, PATIENCE, DaemonCase, free_port, program, wait_until

SECRET = "open sesame"
FAR = "somebody@far.test"


class AuthCase(DaemonCase):
    """A home with one user, who has `flag` given to `qtwist user passwd`; mail for far.test goes nowhere."""

    flag = ""
    control = {"smtproutes": "far.test:127.0.0.1:1\n", "journal": "0\n"}  # the queue's files are looked at

    def setUp(self) -> None:
        super().setUp()
        flags = [self.flag] if self.flag else []
        done = subprocess.run(
            self.runtime.command("qtwist", "user", "add", "tim", "--home", self.home, *flags),
            check=False,
            input=SECRET + "\n",
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def file(self, name: str, text: str) -> str:
        """A file for a client, which nobody else can read."""
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o600)
        return path


class ReadablePassword(AuthCase):
    flag = "--apop"

    def test_swaks(self) -> None:
        """Each mechanism that swaks has in common with us; a wrong password; and nothing is shown."""
        daemon = self.start()
        for number, mechanism in enumerate(("PLAIN", "LOGIN", "CRAM-MD5"), 1):
            common = ("--auth", mechanism, "--auth-user", "tim", "--from", f"tim@{ME}", "--to", FAR)
            done = self.swaks(*common, "--auth-password", SECRET)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertIn("ESMTPA", self.newest())
            daemon.log.wait(f"login of tim from 127.0.0.1 by {mechanism}")
            daemon.log.wait("accepted message .*, login tim$", number)
        done = self.swaks(*common, "--auth-password", "guess")
        self.assertEqual(done.returncode, 28, done.stdout)
        self.assertIn("535 5.7.8 wrong name or password", done.stdout)
        done = self.swaks("--from", f"tim@{ME}", "--to", FAR)
        self.assertIn(" 553 ", done.stdout)
        self.assertEqual(daemon.stop(), 0)
        log = "\n".join(daemon.log.lines)
        self.assertNotIn(SECRET, log)
        self.assertNotIn("guess", log)

    def newest(self) -> str:
        """The header that the newest message in the queue begins with."""
        mess = os.path.join(self.home, "queue", "mess")
        paths = [
            os.path.join(mess, split, name) for split in os.listdir(mess) for name in os.listdir(f"{mess}/{split}")
        ]
        with open(max(paths, key=os.path.getmtime)) as file:
            return file.read()

    def test_curl(self) -> None:
        daemon = self.start()
        message = self.file("message", "Subject: x\r\n\r\nhello\r\n")
        for mechanism in ("PLAIN", "LOGIN", "CRAM-MD5"):
            done = self.run_program(
                *(program("curl", "curl"), "-sS", f"smtp://127.0.0.1:{self.port}", "--user", f"tim:{SECRET}"),
                *("--login-options", f"AUTH={mechanism}", "--mail-from", f"tim@{ME}", "--mail-rcpt", FAR),
                *("--upload-file", message),
            )
            self.assertEqual(done.returncode, 0, done.stderr)
            daemon.log.wait(f"login of tim from 127.0.0.1 by {mechanism}")


class Keys(AuthCase):
    flag = "--scram"

    def test_mpop(self) -> None:
        """The same in POP3 (RFC 5034)."""
        port = free_port()
        with open(os.path.join(self.home, "control", "listen"), "a") as listen:
            listen.write(f"pop3 tcp:{port}:interface=127.0.0.1\n")
        daemon = self.start()
        self.send([f"tim@{ME}"])
        daemon.log.wait(r"end msg \d+$")
        second = int(time.time())
        wait_until("the next second", lambda: int(time.time()) > second)
        settings = self.file(
            "mpoprc",
            f"account default\nhost 127.0.0.1\nport {port}\nuser tim\npassword {SECRET}\nauth scram-sha-256\ntls off\n"
            f"delivery mbox {self.directory}/inbox\nuidls_file {self.directory}/uidls\nkeep on\n",
        )
        done = self.run_program(program("mpop", "mpop"), "-C", settings)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait("login of 'tim' from 127.0.0.1 by AUTH SCRAM-SHA-256, 1 messages")
        with open(os.path.join(self.directory, "inbox")) as inbox:
            self.assertIn("\nhello\n", inbox.read())

    def test_msmtp(self) -> None:
        """GNU SASL's SCRAM-SHA-256, which checks our signature, too."""
        daemon = self.start()
        for number, secret in enumerate((SECRET, "guess")):
            settings = self.file(
                f"msmtprc{number}",
                f"defaults\nauth scram-sha-256\nhost 127.0.0.1\nport {self.port}\nuser tim\npassword {secret}\n"
                f"from tim@{ME}\ntls off\naccount default\n",
            )
            done = subprocess.run(
                [program("msmtp", "msmtp"), "-C", settings, FAR],
                check=False,
                input="Subject: x\n\nhello\n",
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            self.assertEqual(done.returncode == 0, secret == SECRET, done.stderr)
        daemon.log.wait("login of tim from 127.0.0.1 by SCRAM-SHA-256")
        self.assertIn("535 5.7.8 wrong name or password", done.stderr)
