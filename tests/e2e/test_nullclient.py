"""A null client (spec/qmail.md §17.3): what is sent there arrives by way of our daemon's ``qmqp`` role."""

from __future__ import annotations

import os
import subprocess

from tests.e2e.harness import PATIENCE, DaemonCase, free_port


class NullClientTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.qmqp = free_port()
        self.write_control(
            "listen", f"smtp tcp:{self.port}:interface=127.0.0.1\nqmqp tcp:{self.qmqp}:interface=127.0.0.1\n"
        )
        self.write_control("qmqpclients", "127.0.0.1\n")
        self.null = os.path.join(self.directory, "null")
        os.makedirs(os.path.join(self.null, "control"))
        self.null_control("me", "null.test\n")
        self.null_control("qmqpservers", f"127.0.0.1:{free_port()}\n127.0.0.1:{self.qmqp}\n")

    def null_control(self, name: str, text: str) -> None:
        with open(os.path.join(self.null, "control", name), "w") as file:
            file.write(text)

    def run_null(self, name: str, *arguments: str, message: bytes) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the null client, as the account."""
        return subprocess.run(
            self.runtime.command(name, *arguments),
            check=False,
            cwd=self.directory,
            env={**self.environment(), "QTWISTHOME": self.null, "QMAILUSER": "joe"},
            input=message,
            capture_output=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )

    def test_delivered(self) -> None:
        """The first server is down, the second is our daemon; a large message goes the same way as a small one."""
        daemon = self.start()
        large = b"Subject: large\n\n" + (b"x" * 71 + b"\n") * 30_000
        for message in (b"Subject: small\n\nhello\n", large):
            done = self.run_null("inject", self.address, message=message)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))
        daemon.log.wait("end msg", 2)
        self.assertEqual(os.listdir(self.null), ["control"])
        small, big = sorted(self.maildir(), key=len)
        for message in (small, big):
            self.assertIn(b"Return-Path: <joe@null.test>\n", message)
            self.assertEqual(message.count(b"Received: "), 2, message[:1000])  # by the network, into the queue
            self.assertIn(b"Received: from unknown (127.0.0.1)\n  by 127.0.0.1 with QMQP; ", message)
        self.assertTrue(small.endswith(b"\nSubject: small\n\nhello\n"))
        self.assertTrue(big.endswith(large[len("Subject: large") :]))

    def test_stranger(self) -> None:
        """A null client that the server does not know is told so, in the server's words, and for good."""
        self.write_control("qmqpclients", "192.0.2.1\n")
        daemon = self.start()
        for size in (6, 20_000_000):
            done = self.run_null("inject", self.address, message=b"Subject: x\n\n" + b"x" * size)
            self.assertEqual(done.returncode, 100)
            self.assertRegex(done.stderr, rb"^qmail-inject: fatal: .*\(#5\.7\.1\)\n$")
        self.assertEqual(self.queued(), [])
        daemon.stop()
        done = self.run_null("inject", self.address, message=b"Subject: x\n\nhello\n")
        self.assertEqual(done.returncode, 111)
        self.assertRegex(done.stderr, rb"^qmail-inject: fatal: .*127\.0\.0\.1: Connection refused\. \(#4\.4\.1\)\n$")
