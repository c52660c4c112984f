"""Submission against the real daemon: swaks, curl, msmtp and Python, with TLS (RFC 6409, 8314; issue 9, item 3)."""

from __future__ import annotations

import hashlib
import os
import smtplib
import ssl
import subprocess

from tests.e2e.harness import ME, PATIENCE, free_port, program, wait_until
from tests.e2e.test_pop3 import SECRET
from tests.e2e.test_tls import TLSCase
from tests.scram_client import ScramClient


class SubmissionCase(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.submission, self.submissions = free_port(), free_port()
        with open(os.path.join(self.home, "control", "listen"), "a") as file:
            file.write(f"submission tcp:{self.submission}:interface=127.0.0.1\n")
            file.write(f"submissions tcp:{self.submissions}:interface=127.0.0.1\n")
        self.context = ssl.create_default_context(cafile=self.trusted)
        self.context.check_hostname = False

    def mail(self, count: int = 1) -> list[bytes]:
        wait_until("mail in the maildir", lambda: len(self.maildir()) >= count)
        return self.maildir()


class ProgramTests(SubmissionCase):
    def test_swaks(self) -> None:
        """530 without a login; then on both ports. Bcc is gone, the header whole."""
        daemon = self.start()
        common = ("--from", self.address, "--to", self.address, "--header", "Bcc: secret@far.test")
        first = ("--server", f"127.0.0.1:{self.submission}", "-tls")
        done = self.run_program(program("swaks", "swaks"), *first, *common)
        self.assertIn("530 5.7.0 log in first", done.stdout)
        login = ("--auth", "PLAIN", "--auth-user", self.user, "--auth-password", SECRET)
        for server in (first, ("--server", f"127.0.0.1:{self.submissions}", "-tlsc")):
            done = self.run_program(program("swaks", "swaks"), *server, *common, *login)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for message in self.mail(2):
            self.assertIn(b" with ESMTPSA (", message)
            self.assertIn(b"\nMessage-Id: ", message)
            self.assertNotIn(b"secret@far.test", message)
        done = self.run_program(
            program("swaks", "swaks"), *server, *login, "--from", "x@far.test", "--to", self.address
        )
        self.assertIn("553 5.7.1 that sender does not belong to your login", done.stdout)
        daemon.log.wait("may not send as <x@far.test>")
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn(SECRET, "\n".join(daemon.log.lines))

    def test_curl_and_msmtp(self) -> None:
        self.start()
        message = os.path.join(self.directory, "message")
        with open(message, "w") as file:
            file.write("Subject: by curl\r\n\r\nhello\r\n")
        done = self.run_program(
            *(program("curl", "curl"), "-sS", "--cacert", self.trusted, "--user", f"{self.user}:{SECRET}"),
            *(f"smtps://localhost:{self.submissions}", "--mail-from", self.address, "--mail-rcpt", self.address),
            *("--upload-file", message),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        [first] = self.mail()
        self.assertIn(f"\nFrom: <{self.address}>\n".encode(), first)
        settings = self.settings(
            "msmtprc",
            [
                *("account default", "auth on", "host localhost", f"port {self.submission}", f"from {self.address}"),
                *(f"user {self.user}", f'password "{SECRET}"', "tls on", f"tls_trust_file {self.trusted}"),
            ],
        )
        done = subprocess.run(
            [program("msmtp", "msmtp"), "-C", settings, self.address],
            check=False,
            input="Subject: by msmtp\n\nhello\n",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.mail(2)


class SmarthostTests(SubmissionCase):
    """The same daemon as both sides: what it has no other way for goes to its own submission port, with a login."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": os.path.join(self.directory, "authority.pem")}

    def test_relay(self) -> None:
        """STARTTLS, a good certificate, AUTH; a wrong password keeps the mail (RFC 4954; spec/related.md §14.3)."""
        self.certify(ME, "localhost", "127.0.0.1")
        path = os.path.join(self.home, "control", "authsenders")
        self.write_control("forceauthmailfrom", "0\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        refused = "deferral: Connected_to_127.0.0.1_but_the_login_was_refused"
        for password, seen in (("guess", refused), (SECRET, "success: 127.0.0.1_accepted_message")):
            self.write_control("authsenders", f"@away.test:127.0.0.1:{self.submission}|{self.user}|{password}\n")
            os.chmod(path, 0o600)
            self.send(["joe@far.test"], sender="ann@away.test")
            daemon.log.wait(seen)
        daemon.log.wait(f"login of {self.user} from 127.0.0.1 by PLAIN")
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn(SECRET, "\n".join(daemon.log.lines))


class PythonTests(SubmissionCase):
    def client(self) -> smtplib.SMTP:
        client = smtplib.SMTP("localhost", self.submission, timeout=PATIENCE)
        self.addCleanup(client.close)
        client.starttls(context=self.context)
        client.ehlo()
        return client

    def test_channel_binding(self) -> None:
        """SCRAM-SHA-256-PLUS, bound to the certificate that both have seen; another one is none (RFC 5929 §4)."""
        daemon = self.start()
        client = self.client()
        self.assertIn("SCRAM-SHA-256-PLUS SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN", client.esmtp_features["auth"])
        assert isinstance(client.sock, ssl.SSLSocket)
        shown = hashlib.sha256(client.sock.getpeercert(binary_form=True) or b"").digest()
        kind = b"tls-server-end-point"
        for seen, code in ((hashlib.sha256(b"another").digest(), 535), (shown, 235)):
            scram = ScramClient(self.user.encode(), SECRET.encode(), binding=(kind, seen))
            _, challenge = client.docmd("AUTH SCRAM-SHA-256-PLUS " + scram.first().decode())
            got, last = client.docmd(scram.final(challenge).decode())
            if code == 235:
                self.assertTrue(scram.check(last))
                got, _ = client.docmd("")
            self.assertEqual(got, code)
        daemon.log.wait(f"login of {self.user} from 127.0.0.1 by SCRAM-SHA-256-PLUS")

    def test_certificate(self) -> None:
        """EXTERNAL: who shows a certificate with their address in it needs no password (RFC 4422 appendix A)."""
        self.write_control("authmechanisms", "EXTERNAL\nPLAIN\n")
        self.write_control("clientca.pem", self.authority.pem.decode())
        pem = os.path.join(self.directory, "client.pem")
        with open(pem, "wb") as file:
            file.write(self.authority.certify(common="somebody", email=self.address))
        self.context.load_cert_chain(pem)
        self.start()
        client = self.client()
        self.assertIn("EXTERNAL", client.esmtp_features["auth"])
        self.assertEqual(client.docmd("AUTH EXTERNAL =")[0], 235)
        client.sendmail(self.address, [self.address], "Subject: x\n\nhello\n")
        self.mail()

    def test_limits(self) -> None:
        self.write_control("relaylimits", f"{self.user}:2/3600\n")
        daemon = self.start()
        client = self.client()
        client.login(self.user, SECRET)
        client.mail(self.address)
        codes = [client.rcpt(f"joe{number}@far.test")[0] for number in range(3)]
        self.assertEqual(codes, [250, 250, 450])
        daemon.log.wait(f"login {self.user} from 127.0.0.1 is stopped: more than 2 recipients in 3600 seconds")
