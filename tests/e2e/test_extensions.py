"""Extensions of SMTP against the real daemon: BDAT, PROXY by swaks and curl, XCLIENT by swaks, ETRN
(doc/extensions.md)."""

from __future__ import annotations

import os
import smtplib
import socket
import ssl

from tests.e2e.harness import ME, PATIENCE, DaemonCase, free_port, program
from tests.e2e.test_roles import RootCase
from tests.e2e.test_tls import TLSCase


class ChunkingTests(DaemonCase):
    def test_large(self) -> None:
        """Megabytes in chunks that are cut anywhere, all in one pipeline; the message is what was sent."""
        daemon = self.start()
        text = b"Subject: chunks\r\n\r\n" + b".\r\n" + b"x" * 70 + b"\r\n.\r\n" * 20000
        said = [b"EHLO client.test\r\nMAIL FROM:<joe@client.test>\r\nRCPT TO:<%s>\r\n" % self.address.encode()]
        sizes = (1, 17, 65536, 3, 100_001)
        at = 0
        for number in range(1000):
            size = sizes[number % len(sizes)]
            piece, at = text[at : at + size], at + size
            said.append(b"BDAT %d%s\r\n%s" % (len(piece), b" LAST" if at >= len(text) else b"", piece))
            if at >= len(text):
                break
        said.append(b"QUIT\r\n")
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            client.sendall(b"".join(said))
            replies = b"".join(iter(lambda: client.recv(65536), b""))
        self.assertIn(b"250-CHUNKING\r\n", replies)
        self.assertRegex(replies, rb"\r\n250 2\.0\.0 ok \d+ qp \d+\r\n221 2\.0\.0 ")
        daemon.log.wait("end msg")
        [message] = self.maildir()
        self.assertTrue(message.endswith(b"\n" + text.replace(b"\r\n", b"\n")))
        self.assertEqual(daemon.stop(), 0)


class FrontTests(DaemonCase):
    control = {"relayclients": "127.0.0.1\n"}

    def test_proxy(self) -> None:
        """swaks with both versions, curl with the first; who sends no header is not served."""
        port = free_port()
        self.write_control("proxyclients", f"127.0.0.1 {port}\n")
        self.write_control("listen", f"smtp tcp:{self.port}:interface=127.0.0.1\nsmtp tcp:{port}:interface=127.0.0.1\n")
        daemon = self.start()
        common = (program("swaks", "swaks"), "--server", f"127.0.0.1:{port}", "--to", self.address)
        told = ("--proxy-source", "192.0.2.7", "--proxy-source-port", "4000", "--proxy-dest", "192.0.2.1")
        for version, family in (("1", "TCP4"), ("2", "AF_INET")):
            done = self.run_program(
                *common, "--proxy-version", version, "--proxy-family", family, *told, "--proxy-dest-port", "25"
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait("end msg", 2)
        for message in self.maildir():
            self.assertRegex(
                message, rb"Received: from unknown \(HELO \S+\) \(192\.0\.2\.7\)\n  by 192\.0\.2\.1 with SMTP"
            )
        done = self.run_program(
            *common, "--to", "x@far.test", "--proxy-family", "TCP4", *told, "--proxy-dest-port", "25"
        )
        self.assertIn("553 5.7.1 ", done.stdout)
        done = self.run_program(*common, "--timeout", "5")
        self.assertNotEqual(done.returncode, 0)
        daemon.log.wait(r"connection from the proxy 127\.0\.0\.1 closed: no PROXY header")
        done = self.run_program(
            program("curl", "curl"), "-sv", "--haproxy-protocol", f"smtp://127.0.0.1:{port}", "-X", "NOOP"
        )
        self.assertIn("250 2.0.0 ok", done.stderr)
        self.assertEqual(daemon.stop(), 0)

    def test_xclient(self) -> None:
        self.write_control("xclients", "127.0.0.1\n")
        daemon = self.start()
        told = ("--xclient-addr", "192.0.2.7", "--xclient-name", "client.test")
        done = self.swaks("--to", self.address, *told)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait(r"127\.0\.0\.1 speaks for 192\.0\.2\.7")
        daemon.log.wait("end msg")
        [message] = self.maildir()
        self.assertRegex(
            message, rb"Received: from client\.test \(HELO \S+\) \(192\.0\.2\.7\)\n  by 127\.0\.0\.1 with SMTP"
        )
        done = self.swaks("--to", "x@far.test", *told)
        self.assertIn("553 5.7.1 ", done.stdout)
        self.assertEqual(daemon.stop(), 0)


class EncryptedFrontTests(TLSCase):
    def test_proxy(self) -> None:
        """The header comes before TLS, be it with the first word, by STARTTLS, or of another protocol; in one packet
        with the start of the handshake, too."""
        self.write_control("proxyclients", f"127.0.0.1 {self.smtps_port} {self.pop3s_port}\n")
        daemon = self.start()
        context = ssl.create_default_context(cafile=self.trusted)
        header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 25\r\n"
        for port, greeting in ((self.smtps_port, b"220 "), (self.pop3s_port, b"+OK ")):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                begin = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
                with self.assertRaises(ssl.SSLWantReadError):
                    begin.do_handshake()
                client.sendall(header + outgoing.read())
                text = b""
                while not text:
                    try:
                        if begin.version() is None:
                            begin.do_handshake()
                        text = begin.read(100)
                    except ssl.SSLWantReadError:
                        client.sendall(outgoing.read())
                        incoming.write(client.recv(65536))
                self.assertTrue(text.startswith(greeting), text)
        self.write_control("proxyclients", f"127.0.0.1 {self.port}\n")
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE) as client:
            client.sendall(header)
            client.recv(1000)
            client.sendall(b"STARTTLS\r\n")
            self.assertTrue(client.recv(1000).startswith(b"220 "))
            with context.wrap_socket(client, server_hostname="localhost") as secured:
                said = f"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<{self.address}>\r\nDATA\r\n\r\n.\r\nQUIT\r\n"
                secured.sendall(said.encode())
                b"".join(iter(lambda: secured.recv(1000), b""))
        daemon.log.wait("end msg")
        self.assertRegex(self.maildir()[0], rb"\(192\.0\.2\.7\)\n  by 192\.0\.2\.1 with ESMTPS ")
        self.assertEqual(daemon.stop(), 0)


class TurnTests(DaemonCase):
    def test_etrn(self) -> None:
        """Mail waits for a host that is not there; ETRN brings it; the other way round, AutoTURN does."""
        port = free_port()
        self.write_control("smtproutes", f"far.test:127.0.0.1:{port}\nother.test:127.0.0.1:{port}\n")
        self.write_control("rcpthosts", f"{ME}\nfar.test\nother.test\n")
        self.write_control("etrnclients", "far.test:127.0.0.1\n")
        daemon = self.start()
        self.send(["joe@far.test"])
        self.send(["joe@other.test"])
        daemon.log.wait("delivery .: deferral: No_SMTP_connection", 2)
        _, folder = self.smtp_sink(port=port)
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            self.assertTrue(client.has_extn("etrn"))
            self.assertEqual(client.docmd("ETRN", "far.test"), (253, b"2.0.0 ok, 1 messages for far.test are tried"))
            self.assertEqual(client.docmd("ETRN", "other.test")[0], 459)
        daemon.log.wait("success: 127.0.0.1_accepted_message")
        self.write_control("autoturn", "other.test:127.0.0.1\n")
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.noop()
        daemon.log.wait("success: 127.0.0.1_accepted_message", 2)
        self.assertEqual(len(os.listdir(folder)), 2)
        self.wait_empty_queue()
        self.assertEqual(daemon.stop(), 0)


class RolesTests(RootCase):
    def test_etrn(self) -> None:
        """The servers ask as accounts of their own, which may do nothing else at the desk."""
        self.write_control("etrnclients", "far.test:127.0.0.1\n")
        daemon = self.start()
        self.ready_roles(daemon)
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.ehlo()
            self.assertEqual(client.docmd("ETRN", "far.test"), (251, b"2.0.0 ok, no mail waits for far.test"))
        self.assertEqual(daemon.stop(), 0)
