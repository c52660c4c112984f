"""Two daemons: one sends to the other by QMTP, as control/qmtproutes says (spec/qmail.md §27; related.md §13.1)."""

from __future__ import annotations

import copy
import os
import signal

from tests.e2e.harness import DaemonCase, free_port

FAR = "far.test"


class TwoDaemonsTests(DaemonCase):
    """`self` sends; `self.far` is the other daemon's home, which takes mail for far.test."""

    def setUp(self) -> None:
        super().setUp()
        self.qmtp = free_port()
        self.far = copy.copy(self)  # cleanups are shared: both daemons end with the test
        self.far.home = os.path.join(self.directory, "far")
        self.far.port = free_port()
        listen = [f"smtp tcp:{self.far.port}:interface=127.0.0.1", f"qmtp tcp:{self.qmtp}:interface=127.0.0.1"]
        words = [word for line in listen for word in ("--listen", line)]
        self.run_command("init", self.far.home, "--me", FAR, "--user", self.user, *words)
        self.write_control("relayclients", "127.0.0.1\n")
        self.recipient = f"{self.user}@{FAR}"
        self.write_control("qmtproutes", f"{FAR}:127.0.0.1:{self.qmtp}\n")
        self.write_control("smtproutes", f"{FAR}:127.0.0.1:{self.far.port}\n")

    def test_by_qmtp(self) -> None:
        """Messages of all kinds arrive as they were, each once; the sender's log says what the receiver answered."""
        far, daemon = self.far.start(), self.start()
        texts = [
            "Subject: 1\n\nhello\n",
            "Subject: 2\n\n.\n..\n.dot\n",
            "Subject: 3\n\n" + "0123456789abcdef\n" * 200_000,
        ]
        for text in texts:
            self.send([self.recipient], text)
        daemon.log.wait("end msg", len(texts))
        far.log.wait("end msg", len(texts))
        answers = daemon.log.find(
            r"delivery \d+: success: 127\.0\.0\.1_accepted_message\./Remote_host_said:_ok_\d+_qp_\d+/"
        )
        self.assertEqual(len(answers), len(texts), daemon.log)
        self.wait_empty_queue()
        messages = sorted(self.far.maildir(), key=lambda message: message.partition(b"\nSubject: ")[2])
        self.assertEqual(len(messages), len(texts))
        for message, text in zip(messages, texts, strict=True):
            self.assertTrue(message.endswith(b"\n" + text.encode()))
            self.assertIn(b"with QMTP; ", message)

    def test_refused(self) -> None:
        """A recipient whom the other daemon does not take: the bounce has its words."""
        self.write_control("qmtproutes", f"other.test:127.0.0.1:{self.qmtp}\n")
        self.far.start()
        daemon = self.start()
        self.send(["joe@other.test"], sender=self.address)
        daemon.log.wait(r"delivery \d+: failure: .*\(#5\.7\.1\)")
        daemon.log.wait("end msg", 2)
        [bounce] = self.maildir()
        self.assertIn(b"<joe@other.test>:", bounce)
        self.assertIn(b"(#5.7.1)", bounce)

    def test_fallback(self) -> None:
        """Where nobody answers QMTP, the same host gets the message by SMTP, on the port of smtproutes."""
        self.write_control("qmtproutes", f"{FAR}:127.0.0.1:{free_port()}\n")
        far, daemon = self.far.start(), self.start()
        self.send([self.recipient])
        daemon.log.wait("end msg")
        far.log.wait("end msg")
        [message] = self.far.maildir()
        self.assertIn(b"with SMTP; ", message)

    def test_later(self) -> None:
        """A host that is down is a deferral; the message goes when it is up."""
        daemon = self.start()
        self.send([self.recipient])
        daemon.log.wait(r"delivery \d+: deferral: .*\(#4\.4\.1\)")
        far = self.far.start()
        daemon.process.send_signal(signal.SIGALRM)  # all that is deferred is tried now
        daemon.log.wait("end msg")
        far.log.wait("end msg")
        [message] = self.far.maildir()
        self.assertIn(b"with QMTP; ", message)
