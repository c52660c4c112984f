"""Tests of qtwist.smtpd.stdio: sendmail -bs (spec/qmail.md §16, §20)."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence

from twisted.trial.unittest import SynchronousTestCase

from qtwist.commands import sendmail
from qtwist.queue.client import QueueRefused
from qtwist.smtpd import stdio


class SessionTests(SynchronousTestCase):
    refusal: Exception | None = None

    def setUp(self) -> None:
        self.home = tempfile.mkdtemp(prefix="qtwist-bs-")
        self.addCleanup(shutil.rmtree, self.home)
        os.mkdir(f"{self.home}/control")
        self.control("me", "mx.example.test\n")
        self.environ: dict[str, str] = {}
        self.queued: list[tuple[bytes, bytes, list[bytes]]] = []
        self.patch(stdio, "submit", self.submit)

    def control(self, name: str, text: str) -> None:
        with open(f"{self.home}/control/{name}", "w") as file:
            file.write(text)

    def submit(
        self,
        home: str,
        message: Iterable[bytes],
        sender: bytes,
        recipients: Sequence[bytes],
        environ: Mapping[str, str],
    ) -> int:
        self.assertEqual(home, self.home)
        if self.refusal is not None:
            raise self.refusal
        self.queued.append((b"".join(message), sender, list(recipients)))
        return 4711

    def serve(self, text: str) -> tuple[int, str]:
        """Run a session in which the client says all of `text` at once and hangs up: exit code, and what it is told."""
        source, client = os.pipe()
        answers, sink = os.pipe()
        try:
            os.write(client, text.encode("latin-1"))
            os.close(client)
            code = stdio.serve(self.home, self.environ, source, sink)
        finally:
            os.close(sink)
            os.close(source)
            with open(answers, "rb") as pipe:
                said = pipe.read().decode("latin-1")
        return code, said

    def check(self, transcript: str, code: int = 0) -> None:
        """`transcript` has what the client says (C:) and what it is told (S:); numbers after ``ok`` do not count."""
        lines = [line.strip() for line in transcript.strip().split("\n")]
        client = "".join(line[3:] + "\r\n" for line in lines if line.startswith("C:"))
        result, said = self.serve(client.replace("C: ", ""))
        expected = [line[3:] for line in lines if line.startswith("S:")]
        self.assertEqual([re.sub(r"ok \d+", "ok T", line) for line in said.split("\r\n")], [*expected, ""])
        self.assertEqual(result, code)

    def test_message(self) -> None:
        self.check(
            """
            S: 220 mx.example.test ESMTP
            C: HELO cli.test
            S: 250 mx.example.test
            C: MAIL FROM:<a@b.c>
            S: 250 ok
            C: RCPT TO:<d@elsewhere.test>
            S: 250 ok
            C: RCPT TO:<e f@g.h>
            S: 250 ok
            C: DATA
            S: 354 go ahead
            C: Subject: x
            C:
            C: ..
            C: .
            S: 250 ok T qp 4711
            C: QUIT
            S: 221 mx.example.test
            """
        )
        ((message, sender, recipients),) = self.queued
        self.assertEqual((sender, recipients), (b"a@b.c", [b"d@elsewhere.test", b"e f@g.h"]))
        self.assertRegex(
            message,
            rb"^Received: from localhost \(HELO cli\.test\) \(sendmail-bs@127\.0\.0\.1\)\n"
            rb"  by localhost with SMTP; [^\n]* -0000\nSubject: x\n\n\.\n$",
        )

    def test_messages_in_a_row(self) -> None:
        text = "MAIL FROM:<{0}@b.c>\r\nRCPT TO:<{0}@d.e>\r\nDATA\r\n{0}\r\n.\r\n"
        code, said = self.serve(text.format("x") + "RSET\r\nHELO z\r\n" + text.format("y") + "QUIT\r\n")
        self.assertEqual(code, 0)
        self.assertEqual(said.count(" qp 4711\r\n"), 2)
        self.assertEqual([queued[1:] for queued in self.queued], [(b"x@b.c", [b"x@d.e"]), (b"y@b.c", [b"y@d.e"])])
        self.assertTrue(self.queued[1][0].endswith(b"\ny\n"))

    def test_hang_up(self) -> None:
        """Without QUIT the session has failed, and half a message is none."""
        for text in ("", "NOOP\r\n", "MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\nhalf\r\n"):
            self.assertEqual(self.serve(text)[0], 1)
        self.assertEqual(self.queued, [])

    def test_silence(self) -> None:
        self.control("timeoutsmtpd", "1\n")
        source, client = os.pipe()
        answers, sink = os.pipe()
        self.patch(stdio.select, "select", lambda *arguments: ([], [], []))
        self.assertEqual(stdio.serve(self.home, {}, source, sink), 1)
        self.assertEqual(os.read(answers, 1000), b"220 mx.example.test ESMTP\r\n451 timeout (#4.4.2)\r\n")
        for descriptor in (source, client, answers, sink):
            os.close(descriptor)

    def test_refused_message(self) -> None:
        """What the machine refuses is not queued: here a message that loops."""
        text = "MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\n" + "Received: x\r\n" * 100 + "\r\n.\r\nQUIT\r\n"
        code, said = self.serve(text)
        self.assertEqual((code, self.queued), (0, []))
        self.assertIn("\r\n554 this message has passed", said)

    def test_refused_by_queue(self) -> None:
        """The client says the whole message before it gets to know."""
        for number, letter, answer in ((53, b"", "451 no\r\n"), (31, b"", "554 no\r\n"), (82, b"D", "554 no\r\n")):
            self.refusal = QueueRefused(number, b"no", letter)
            text = "MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\nRCPT x\r\n.\r\nQUIT\r\n"
            code, said = self.serve(text)
            self.assertTrue(said.endswith("354 go ahead\r\n" + answer + "221 mx.example.test\r\n"), said)
            self.assertEqual(code, 0)

    def test_badmailfrom(self) -> None:
        self.control("badmailfrom", "@bad.test\n")
        _, said = self.serve("MAIL FROM:<x@bad.test>\r\nRCPT TO:<a@b.c>\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nQUIT\r\n")
        self.assertRegex(said, r"250 ok\r\n553 [^\r]*\r\n250 ok\r\n250 ok\r\n221")

    def test_environment(self) -> None:
        """Under something like tcp-env it is a server like others: rcpthosts count, and so do its variables."""
        self.control("rcpthosts", "here.test\n")
        self.control("databytes", "5\n")
        self.environ = {
            "PROTO": "TCP",
            "TCPREMOTEIP": "10.0.0.9",
            "TCPREMOTEHOST": "cli.test",
            "TCPLOCALHOST": "mx.local",
        }
        text = "HELO cli.test\r\nMAIL FROM:<>\r\nRCPT TO:<a@there.test>\r\nRCPT TO:<a@here.test>\r\n"
        text += "DATA\r\n{}\r\n.\r\nQUIT\r\n"
        _, said = self.serve(text.format("123"))
        self.assertRegex(said, r"250 ok\r\n553 [^\r]*\r\n250 ok\r\n354 ")
        ((message, _, recipients),) = self.queued
        self.assertEqual(recipients, [b"a@here.test"])
        self.assertTrue(message.startswith(b"Received: from cli.test (10.0.0.9)\n  by mx.local with SMTP; "), message)
        self.assertIn("\r\n552 ", self.serve(text.format("12345"))[1])
        self.environ.update(RELAYCLIENT="@gw", DATABYTES="6x")
        _, said = self.serve(text.format("12345"))
        self.assertNotIn("\r\n552 ", said)
        self.assertEqual(self.queued[1][2], [b"a@there.test@gw", b"a@here.test@gw"])

    def test_localiphost(self) -> None:
        """§16.3: the addresses that we are known by here are 127.0.0.1 and 0.0.0.0."""
        self.control("localiphost", "mx.example.test\n")
        self.serve("MAIL FROM:<>\r\nRCPT TO:<a@[127.0.0.1]>\r\nRCPT TO:<b@[10.1.2.3]>\r\nDATA\r\n.\r\nQUIT\r\n")
        self.assertEqual(self.queued[0][2], [b"a@mx.example.test", b"b@[10.1.2.3]"])

    def test_no_controls(self) -> None:
        os.unlink(f"{self.home}/control/me")
        code, said = self.serve("QUIT\r\n")
        self.assertEqual((code, said[:4]), (1, "421 "))

    def test_unreadable_rules(self) -> None:
        """One recipient more or less is no reason to end with a traceback."""
        os.mkdir(f"{self.home}/control/badmailfrom")
        _, said = self.serve("MAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nQUIT\r\n")
        self.assertIn("250 ok\r\n451 the rules cannot be read (#4.3.0)\r\n221 ", said)

    def test_option(self) -> None:
        """sendmail -bs gets here, with the home of the environment."""
        calls: list[tuple[str, Mapping[str, str]]] = []
        self.patch(stdio, "serve", lambda home, environ: calls.append((home, environ)) or 1)
        environ = {"QTWISTHOME": self.home}
        self.assertEqual(sendmail.run(["-bs"], environ, []), 1)
        self.assertEqual(calls, [(self.home, environ)])
