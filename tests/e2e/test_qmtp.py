"""The daemon's ``qmtp`` role over TCP (spec/qmail.md §17.1, §27): byte transcripts, many packages, a large message."""

from __future__ import annotations

from qtwist.wire.netstring import encode
from tests.e2e.harness import DaemonCase, free_port
from tests.socket_tools import talk


def package(message: bytes, sender: str, *recipients: str) -> bytes:
    addresses = b"".join(encode(recipient.encode()) for recipient in recipients)
    return encode(message) + encode(sender.encode()) + encode(addresses)


class QMTPTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        self.qmtp = free_port()
        self.write_control(
            "listen", f"smtp tcp:{self.port}:interface=127.0.0.1\nqmtp tcp:{self.qmtp}:interface=127.0.0.1\n"
        )
        self.daemon = self.start()

    def test_delivered(self) -> None:
        """Both encodings, and a recipient who is not ours; the client ends its side before it reads."""
        data = package(b"\nSubject: one\n\nx\n", "joe@client.test", self.address, "ann@elsewhere.test")
        data += package(b"\rSubject: two\r\n\r\ny\r\n", "joe@client.test", self.address)
        answers = talk(self.qmtp, data)
        self.assertRegex(answers, rb"^\d+:Kok \d+ qp \d+,\d+:D[^,]*\(#5\.7\.1\),\d+:Kok \d+ qp \d+,$")
        self.daemon.log.wait("end msg", 2)
        self.wait_empty_queue()
        messages = sorted(self.maildir(), key=lambda message: b"Subject: two" in message)
        self.assertEqual(len(messages), 2)
        for message, end in zip(messages, (b"\nSubject: one\n\nx\n", b"\nSubject: two\n\ny\n"), strict=True):
            self.assertTrue(message.endswith(end), message)
            self.assertIn(b"with QMTP; ", message)

    def test_a_thousand_packages(self) -> None:
        """None waits for the answer to the one before; each has its answer, and each is in the maildir."""
        self.write_dotqmail("many", "./Many/\n")
        self.run_command("maildirmake", f"{self.home}/mail/{self.user}/Many")
        address = self.address.replace("@", "-many@")
        data = b"".join(package(b"\nSubject: %d\n\n" % number, "", address) for number in range(1000))
        self.assertEqual(talk(self.qmtp, data).count(b":Kok "), 1000)
        self.daemon.log.wait("end msg", 1000)
        self.assertEqual(len(self.maildir("Many")), 1000)
        self.wait_empty_queue()

    def test_large(self) -> None:
        text = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 500_000
        answers = talk(self.qmtp, package(b"\r" + text, "joe@client.test", self.address))
        self.assertRegex(answers, rb"^\d+:Kok ")
        self.daemon.log.wait("end msg")
        [message] = self.maildir()
        self.assertTrue(message.endswith(b"\n" + text.replace(b"\r\n", b"\n")))
