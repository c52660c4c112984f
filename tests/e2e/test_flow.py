"""Mail flows: from swaks, smtp-source and smtplib through the real daemon to mailboxes, programs and other hosts."""

from __future__ import annotations

import os
import re
import smtplib

from tests.e2e.harness import ME, PATIENCE, DaemonCase, wait_until

END = r"end msg \d+$"


def marks(messages: list[bytes]) -> list[int]:
    """The numbers of the X-Mark fields, in order."""
    return sorted(int(number) for message in messages for number in re.findall(rb"^X-Mark: (\d+)$", message, re.M))


class LocalTests(DaemonCase):
    """Issue 2's first roads: Maildir, extension, mbox, program, forward, and a bounce (spec/qmail.md §9, §13)."""

    def test_swaks_to_maildir(self) -> None:
        daemon = self.start()
        done = self.swaks("--to", self.address, "--from", "joe@client.test", "--body", "eight bits: ä")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait(END)
        [message] = self.maildir()
        lines = message.split(b"\n")
        # §13.2: a Maildir gets Return-Path and Delivered-To; §6.2, §16.7: then the two Received lines.
        self.assertEqual(lines[0], b"Return-Path: <joe@client.test>")
        self.assertEqual(lines[1], b"Delivered-To: " + self.address.encode())
        self.assertRegex(lines[2], rb"^Received: \(qmail \d+ invoked from network\); ")
        self.assertRegex(lines[3], rb"^Received: from ")
        self.assertIn("eight bits: ä".encode(), message)
        self.assertNotIn(b"\r", message)
        self.wait_empty_queue()
        self.assertEqual(daemon.stop(), 0)

    def test_log_lines(self) -> None:
        """§9.7: the life of one message in the log, in this order."""
        daemon = self.start()
        self.send([self.address])
        daemon.log.wait(END)
        self.assertEqual(daemon.stop(), 0)
        expected = (
            r"status: local 0/10 remote 0/20$",
            r"new msg (\d+)$",
            r"info msg \d+: bytes \d+ from <joe@client\.test> qp \d+ uid \d+$",
            rf"starting delivery 1: msg \d+ to local {re.escape(self.address)}$",
            r"status: local 1/10 remote 0/20$",
            r"delivery 1: success: did_1\+0\+0/$",
            r"status: local 0/10 remote 0/20$",
            r"end msg \d+$",
            r"status: exiting$",
        )
        lines = iter(daemon.log.lines)
        for pattern in expected:
            self.assertTrue(any(re.search(pattern, line) for line in lines), f"{pattern} is missing:\n{daemon.log}")

    def test_every_kind_of_line(self) -> None:
        """§13.5: extension to an mbox, a program, a forward; §9.10: what nobody wants comes back."""
        self.write_dotqmail("box", "./box\n")
        self.write_dotqmail("program", '|cat >program.out; echo "$SENDER $RECIPIENT" >program.env\n')
        self.write_dotqmail("forward", f"&{self.user}@{ME}\n")
        daemon = self.start()
        for extension in ("box", "program", "forward", "nowhere"):
            self.send([f"{self.user}-{extension}@{ME}"], f"Subject: {extension}\n\nhello\n", sender=self.address)
        # Four, the forwarded one again, and the bounce.
        daemon.log.wait(END, 6)
        mailbox = os.path.join(self.home, "mail", self.user)
        with open(os.path.join(mailbox, "box"), "rb") as file:
            box = file.read()
        self.assertTrue(box.startswith(b"From " + self.address.encode() + b" "))
        self.assertTrue(box.endswith(b"hello\n\n"))
        with open(os.path.join(mailbox, "program.out"), "rb") as file:
            self.assertTrue(file.read().endswith(b"Subject: program\n\nhello\n"))
        with open(os.path.join(mailbox, "program.env")) as env:
            self.assertEqual(env.read(), f"{self.address} {self.user}-program@{ME}\n")
        messages = self.maildir()
        self.assertEqual(len(messages), 2)
        forwarded = next(message for message in messages if b"Subject: forward\n" in message)
        bounce = next(message for message in messages if b"Subject: failure notice\n" in message)
        self.assertIn(f"Delivered-To: {self.user}-forward@{ME}\n".encode(), forwarded)
        self.assertTrue(bounce.startswith(b"Return-Path: <>\n"))
        self.assertIn(f"\n<{self.user}-nowhere@{ME}>:\n".encode(), bounce)
        self.assertIn(b"--- Below this line is a copy of the message.\n", bounce)

    def test_hundred_messages_from_smtp_source(self) -> None:
        daemon = self.start()
        done = self.smtp_source("-s", "10", "-m", "100", "-l", "5000", "-f", "joe@client.test", "-t", self.address)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait(END, 100)
        messages = self.maildir()
        self.assertEqual(len(messages), 100)
        self.assertTrue(all(len(message) > 5000 for message in messages))
        self.wait_empty_queue()

    def test_aliases(self) -> None:
        """§24: the required aliases reach the first mailbox."""
        daemon = self.start()
        self.send([f"postmaster@{ME}", f"MAILER-DAEMON@{ME}", f"root@{ME}"])
        daemon.log.wait(END, 2)
        wait_until("three messages", lambda: len(self.maildir()) == 3)


class RelayTests(DaemonCase):
    """LWQ D.4 from outside: rem2local is the tests above, relaybad and relaygood are here; and §15 to another host."""

    def test_relaybad(self) -> None:
        daemon = self.start()
        done = self.swaks("--to", "someone@elsewhere.test", "--from", "joe@client.test")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("<** 553 ", done.stdout)
        self.assertEqual(daemon.log.find("new msg"), [])
        self.assertEqual(self.queued(), [])

    def test_relaygood_to_smtp_sink(self) -> None:
        port, folder = self.smtp_sink()
        self.write_control("relayclients", "127.0.0.1\n")
        self.write_control("smtproutes", f"elsewhere.test:127.0.0.1:{port}\n")
        daemon = self.start()
        body = "Subject: far\n\n.leading dot\n..two\nlast\n"
        self.send(["someone@elsewhere.test"], body, sender=self.address)
        self.assertIn("127.0.0.1_accepted_message.", daemon.log.wait(r"delivery 1: success: ")[0])
        daemon.log.wait(END)
        [name] = os.listdir(folder)
        with open(os.path.join(folder, name)) as file:
            arrived = file.read()
        self.assertIn(f"X-Mail-Args: <{self.address}>", arrived)
        self.assertIn("X-Rcpt-Args: <someone@elsewhere.test>", arrived)
        self.assertIn(body, arrived)
        self.wait_empty_queue()

    def test_refusal_elsewhere_bounces(self) -> None:
        """§15.4, §9.11: what the other host refuses for good comes back to the sender."""
        port, _ = self.smtp_sink("-f", "RCPT")
        self.write_control("relayclients", "127.0.0.0/8\n")
        self.write_control("smtproutes", f"elsewhere.test:127.0.0.1:{port}\n")
        daemon = self.start()
        self.send(["someone@elsewhere.test"], sender=self.address)
        daemon.log.wait(r"delivery 1: failure: 127\.0\.0\.1_does_not_like_recipient\.")
        daemon.log.wait(END, 2)
        [bounce] = self.maildir()
        self.assertIn(b"\n<someone@elsewhere.test>:\n127.0.0.1 does not like recipient.\n", bounce)


class CrashTests(DaemonCase):
    """A 250 means: on disk. Kill -9 at any time loses nothing that was answered with it (design.md §4)."""

    def test_killed_between_accept_and_delivery(self) -> None:
        # §9.1: a concurrency of 0 puts the channel on hold, so nothing is delivered in the first life.
        self.write_control("concurrencylocal", "0\n")
        first = self.start()
        for number in range(20):
            self.send([self.address], f"X-Mark: {number}\n\nhello\n")
        first.kill()
        self.assertEqual(self.maildir(), [])
        os.unlink(os.path.join(self.home, "control", "concurrencylocal"))
        second = self.start()
        second.log.wait(END, 20)
        self.assertEqual(marks(self.maildir()), list(range(20)))
        self.wait_empty_queue()

    def test_killed_while_mail_comes_in(self) -> None:
        first = self.start()
        answered = []
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            for number in range(30):
                client.sendmail("joe@client.test", [self.address], f"X-Mark: {number}\n\nhello\n")
                answered.append(number)
            # In the middle of a message: its sender gets no 250, so it may vanish.
            client.mail("joe@client.test")
            client.rcpt(self.address)
            client.putcmd("data")
            client.getreply()
            client.send(b"X-Mark: 999\r\n\r\nhal")
            first.kill()
            client.close()
        second = self.start()
        wait_until("every message that was answered", lambda: set(answered) <= set(marks(self.maildir())))
        self.assertNotIn(999, marks(self.maildir()))
        self.assertEqual(second.stop(), 0)
