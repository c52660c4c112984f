"""Mail that starts on this host: qmail-queue and the programs of .qmail lines, with the real daemon (LWQ D.4)."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import socket
import subprocess
from typing import Any
from unittest import SkipTest

from qtwist.queue.client import QueueRefused, submit
from tests.e2e.harness import ME, MESSAGE, PATIENCE, DaemonCase, wait_until
from tests.e2e.test_flow import END, marks

COMMANDS = {
    "bouncesaying": "bouncesaying",
    "condredirect": "condredirect",
    "except": "except_",
    "forward": "forward",
    "preline": "preline",
    "qbiff": "qbiff",
    "qmail-queue": "queue",
    "qreceipt": "qreceipt",
}


class DoorCase(DaemonCase):
    """The commands lie in a folder of the daemon's $PATH, as an installation has them."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = os.path.join(self.directory, "bin")
        os.mkdir(self.bin)
        for name, module in COMMANDS.items():
            path = os.path.join(self.bin, name)
            command = shlex.join(self.runtime.command(module))
            with open(path, "w") as file:
                file.write(f'#!/bin/sh\nPYTHONPATH={shlex.quote(self.runtime.path)} exec {command} "$@"\n')
            os.chmod(path, 0o755)
        os.chmod(self.directory, 0o755)

    def environment(self) -> dict[str, str]:
        environ = super().environment()
        if hasattr(self, "bin"):
            environ["PATH"] = f"{self.bin}:{environ['PATH']}"
        return environ

    def submit(self, *recipients: str, text: str = MESSAGE, sender: str | None = None) -> int:
        """Queue a message in this process; its number."""
        envelope = [recipient.encode() for recipient in recipients]
        sender = self.address if sender is None else sender
        return submit(self.home, [text.encode()], sender.encode(), envelope, {})

    def queue(self, *recipients: str, text: str = MESSAGE, **identity: Any) -> int:
        """Queue a message with the program qmail-queue; its exit code. By default it runs as the daemon's account."""
        envelope = os.path.join(self.directory, "envelope")
        with open(envelope, "w") as file:
            file.write(f"F{self.address}\0" + "".join(f"T{recipient}\0" for recipient in recipients) + "\0")
        os.chmod(envelope, 0o644)
        with open(envelope) as addresses:
            done = subprocess.run(
                [os.path.join(self.bin, "qmail-queue")],
                check=False,
                cwd="/",
                input=text.encode(),
                stdout=addresses,
                stderr=subprocess.PIPE,
                env={"PATH": os.defpath, "QTWISTHOME": self.home},
                timeout=PATIENCE,
                **(identity or self.runtime.account.identity()),
            )
        self.assertEqual(done.stderr, b"")
        return done.returncode

    def mailbox(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self.home, "mail", self.user, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


class PictureTests(DoorCase):
    """The scenarios of LWQ D.4 that start locally."""

    def test_local2local(self) -> None:
        daemon = self.start()
        self.assertEqual(self.queue(self.address), 0)
        daemon.log.wait(END)
        [message] = self.maildir()
        uid = self.runtime.account.uid
        # §6.2: one Received line, with the user id that the kernel vouches for.
        self.assertRegex(message, rb"\nReceived: \(qmail \d+ invoked by uid %d\); .*\nSubject: x\n\nhello\n$" % uid)
        self.assertEqual(len(daemon.log.find(rf"info msg \d+: .* uid {uid}$")), 1)
        self.wait_empty_queue()

    def test_local2alias(self) -> None:
        self.write("alias/.qmail-list", f"&{self.user}\n&{self.user}-copy@{ME}\n")
        self.write_dotqmail("copy", "./copy\n")
        daemon = self.start()
        self.assertEqual(self.queue(f"list@{ME}"), 0)
        daemon.log.wait(END, 2)
        self.assertEqual(len(self.maildir()), 1)
        self.assertIn(f"\nDelivered-To: list@{ME}\n".encode(), self.mailbox("copy"))

    def test_local2ext(self) -> None:
        self.write_dotqmail("default", "./default\n")
        daemon = self.start()
        self.assertEqual(self.queue(f"{self.user}-any@{ME}", self.user), 0)
        daemon.log.wait(END)
        self.assertIn(f"\nDelivered-To: {self.user}-any@{ME}\n".encode(), self.mailbox("default"))
        # §9.3: without a host, envnoathost (here: me).
        self.assertEqual(len(self.maildir()), 1)

    def test_local2rem(self) -> None:
        port, folder = self.smtp_sink()
        self.write_control("smtproutes", f"elsewhere.test:127.0.0.1:{port}\n")
        daemon = self.start()
        self.assertEqual(self.queue("someone@elsewhere.test"), 0)
        self.assertIn("127.0.0.1_accepted_message.", daemon.log.wait(r"delivery 1: success: ")[0])
        self.assertEqual(len(os.listdir(folder)), 1)

    def test_local2virt(self) -> None:
        self.write_control("virtualdomains", f"virtual.test:{self.user}-virtual\n")
        self.write_dotqmail("virtual-joe", "./virtual\n")
        daemon = self.start()
        self.assertEqual(self.queue("joe@virtual.test", "nobody@virtual.test"), 0)
        daemon.log.wait(END, 2)
        self.assertIn(f"\nDelivered-To: {self.user}-virtual-joe@virtual.test\n".encode(), self.mailbox("virtual"))
        [bounce] = self.maildir()
        self.assertIn(b"\n<nobody@virtual.test>:\n", bounce)


class LineTests(DoorCase):
    """§21: .qmail files full of these programs, found by name in real deliveries."""

    def test_programs(self) -> None:
        user = self.user
        self.write_dotqmail("forward", f"|forward {user}-box@{ME}\n")
        self.write_dotqmail("box", "./box\n")
        self.write_dotqmail("redirect", f"|condredirect {user}-box@{ME} grep -q urgent\n./calm\n")
        self.write_dotqmail("preline", "|preline cat >preline\n|preline -f cat >preline-f\n")
        self.write_dotqmail("refuse", '|bouncesaying "not wanted here" grep -q spam\n./wanted\n')
        self.write_dotqmail("except", "|except grep -q spam\n./excepted\n")
        self.write_dotqmail("biff", "|qbiff\n./biffed\n")
        self.write_dotqmail("receipt", f"|qreceipt {user}-receipt@{ME}\n./receipt\n")
        daemon = self.start()
        joe = f"{user}-back@{ME}"
        self.write_dotqmail("back", "./back\n")

        def deliver(extension: str, text: str, ends: int = 1) -> None:
            before = len(daemon.log.find(END))
            self.submit(f"{user}-{extension}@{ME}", text=text, sender=joe)
            daemon.log.wait(END, before + ends)

        deliver("forward", "Subject: forwarded\n\nx\n", 2)
        self.assertIn(f"\nDelivered-To: {user}-forward@{ME}\n".encode(), self.mailbox("box"))
        self.assertIn(b"success: forward:_qp_", "\n".join(daemon.log.lines).encode())
        deliver("redirect", "Subject: urgent\n\nredirected\n", 2)
        self.assertTrue(self.mailbox("box").endswith(b"\nredirected\n\n"))
        self.assertIsNone(self.mailbox("calm"))
        deliver("redirect", "Subject: calm\n\nstays\n")
        self.assertTrue(self.mailbox("calm").endswith(b"\nstays\n\n"))
        deliver("preline", "Subject: lines\n\nx\n")
        lines = self.mailbox("preline").split(b"\n")
        self.assertTrue(lines[0].startswith(b"From " + joe.encode()))
        self.assertEqual(lines[1:3], [f"Return-Path: <{joe}>".encode(), f"Delivered-To: {user}-preline@{ME}".encode()])
        self.assertTrue(self.mailbox("preline-f").startswith(b"Return-Path: "))
        deliver("refuse", "Subject: spam\n\nx\n", 2)
        self.assertIn(b":\nnot wanted here\n", self.mailbox("back"))
        self.assertIsNone(self.mailbox("wanted"))
        deliver("refuse", "Subject: ham\n\nx\n")
        self.assertIsNotNone(self.mailbox("wanted"))
        deliver("except", "Subject: spam\n\nx\n", 2)
        self.assertIsNone(self.mailbox("excepted"))
        deliver("except", "Subject: ham\n\nx\n")
        self.assertIsNotNone(self.mailbox("excepted"))
        deliver("biff", "Subject: biff\n\nx\n")
        self.assertIsNotNone(self.mailbox("biffed"))
        deliver("receipt", f"Notice-Requested-Upon-Delivery-To: {user}-receipt@{ME}\nMessage-ID: <7@x>\n\nx\n", 2)
        self.assertIn(b"\nSubject: success notice\n", self.mailbox("back"))
        self.assertIn(b"\nMessage-ID: <7@x>\n", self.mailbox("back"))
        self.assertEqual(daemon.log.find("deferral"), [])

    def test_loop(self) -> None:
        """A file that forwards to itself: Delivered-To ends it (§13.1)."""
        self.write_dotqmail("loop", f"|forward {self.user}-loop@{ME}\n")
        daemon = self.start()
        self.submit(f"{self.user}-loop@{ME}")
        daemon.log.wait(r"delivery 2: failure: Mail_loop")


class LoadTests(DoorCase):
    def test_five_hundred(self) -> None:
        """One after the other, a few of them as processes; all arrive, none twice."""
        daemon = self.start()
        for number in range(500):
            text = f"X-Mark: {number}\n\nhello\n"
            if number % 50:
                self.submit(self.address, text=text)
            else:
                self.assertEqual(self.queue(self.address, text=text), 0)
        daemon.log.wait(END, 500)
        self.assertEqual(marks(self.maildir()), list(range(500)))
        self.wait_empty_queue()

    def test_large(self) -> None:
        daemon = self.start()
        body = b"x" * 999 + b"\n"
        submit(self.home, [b"Subject: large\n\n", *([body] * 20_000)], b"", [self.address.encode()], {})
        daemon.log.wait(END)
        [message] = self.maildir()
        self.assertTrue(message.endswith(b"\n\n" + body * 20_000))


class TroubleTests(DoorCase):
    def test_daemon_down(self) -> None:
        """Who may write the queue does so, and the next daemon delivers; others are told to try again."""
        self.assertEqual(self.queue(self.address, text="X-Mark: 1\n\nx\n"), 0)
        if self.runtime.account.switch:
            stranger = {"user": 54321, "group": 54321, "extra_groups": []}
            self.assertEqual(self.queue(self.address, text="X-Mark: 2\n\nx\n", **stranger), 56)
            self.assertEqual(self.queue(self.address, text="X-Mark: 3\n\nx\n", user=0), 0)
        self.assertEqual(len(self.queued()), 2 if self.runtime.account.switch else 1)
        daemon = self.start()
        daemon.log.wait(END, len(self.queued()))
        self.assertEqual(marks(self.maildir()), [1, 3] if self.runtime.account.switch else [1])
        self.wait_empty_queue()

    def test_stranger(self) -> None:
        """Everybody may hand in mail at the door; the Received line says who did."""
        if not self.runtime.account.switch:
            raise SkipTest("only root can become somebody else")
        daemon = self.start()
        self.assertEqual(self.queue(self.address, user=54321, group=54321, extra_groups=[]), 0)
        daemon.log.wait(END)
        self.assertIn(b" invoked by uid 54321); ", self.maildir()[0])

    def test_killed_in_the_middle(self) -> None:
        """The client gets a temporary failure, and no half message is ever delivered; the old socket is no obstacle."""
        first = self.start()

        def message() -> Any:
            yield b"X-Mark: 1\n\n" + b"x" * 300_000
            first.process.send_signal(signal.SIGKILL)
            first.process.wait(PATIENCE)
            yield b"y" * 300_000

        error = self.assertRaises(QueueRefused, submit, self.home, message(), b"", [self.address.encode()], {})
        self.assertEqual((error.code, error.letter), (74, b"Z"))
        self.assertTrue(os.path.lexists(os.path.join(self.home, "run", "queue")))
        second = self.start()
        self.submit(self.address, text="X-Mark: 2\n\nx\n")
        second.log.wait(END)
        self.assertEqual(marks(self.maildir()), [2])

    def test_cut_short(self) -> None:
        """A client that dies in the middle leaves nothing."""
        daemon = self.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.path.join(self.home, "run", "queue"))
            client.sendall(b"+200000:" + b"x" * 200_000 + b",0:,0:," + b"%d:%s," % (len(self.address), b"x"))
        wait_until("an empty queue", lambda: not self.queued())
        self.assertEqual(daemon.stop(), 0)
        self.assertFalse(os.path.lexists(os.path.join(self.home, "run", "queue")))

    def test_full_disk(self) -> None:
        """The daemon cannot write (here: a limit on the size of files): code 53, nothing kept, and it goes on."""
        _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
        try:
            daemon = self.start()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        error = self.assertRaises(
            QueueRefused, submit, self.home, [b"x" * 100_000] * 20, b"", [self.address.encode()], {}
        )
        self.assertEqual((error.code, error.letter), (53, b"Z"))
        self.assertEqual(self.queue(self.address, text="x" * 2_000_000), 53)
        self.assertEqual(self.queue(self.address), 0)
        daemon.log.wait(END)
        self.assertEqual(len(self.maildir()), 1)
        self.wait_empty_queue()
