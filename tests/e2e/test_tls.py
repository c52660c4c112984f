"""TLS with programs that nobody here wrote: openssl, swaks, curl, fetchmail, Postfix, against the real daemon."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, free_port, program, wait_until
from tests.e2e.postfix import Postfix
from tests.e2e.test_pop3 import SECRET, POP3Case


class TLSCase(POP3Case):
    """A home with a certificate for mx.test and localhost, and all ports."""

    authority = Authority()

    def setUp(self) -> None:
        super().setUp()
        self.smtps_port, self.pop3s_port = free_port(), free_port()
        with open(os.path.join(self.home, "control", "listen"), "a") as file:
            file.write(f"smtps tcp:{self.smtps_port}:interface=127.0.0.1\n")
            file.write(f"pop3s tcp:{self.pop3s_port}:interface=127.0.0.1\n")
        self.certify(ME, "localhost")
        self.trusted = os.path.join(self.directory, "authority.pem")
        with open(self.trusted, "wb") as trusted:
            trusted.write(self.authority.pem)
        os.chmod(self.directory, 0o755)

    def certify(self, *names: str, path: str = "servercert.pem", days: float = 20) -> None:
        """A certificate in control/`path`, in place of the one before."""
        directory = os.path.dirname(os.path.join(self.home, "control", path))
        os.makedirs(directory, exist_ok=True)
        self.own(directory)
        self.write_control(path + ".new", self.authority.certify(*names, days=days).decode())
        control = os.path.join(self.home, "control")
        os.rename(os.path.join(control, path + ".new"), os.path.join(control, path))

    def openssl(self, port: int, *options: str, say: str = "QUIT\r\n") -> str:
        """What `openssl s_client` shows of a session."""
        done = subprocess.run(
            [
                program("openssl", "openssl"),
                "s_client",
                "-connect",
                f"127.0.0.1:{port}",
                "-CAfile",
                self.trusted,
                "-ign_eof",
                *options,
            ],
            check=False,
            input=say.encode(),
            capture_output=True,
            timeout=PATIENCE,
        )
        return (done.stdout + done.stderr).decode("utf-8", "replace")


class ServerTests(TLSCase):
    def test_openssl(self) -> None:
        """Four ports, two protocols; versions; no renegotiation, no compression; names; a certificate replaced."""
        self.certify("two.test", path="servercerts/two.test/servercert.pem")
        daemon = self.start()
        for port, options in (
            (self.port, ("-starttls", "smtp")),
            (self.smtps_port, ()),
            (self.pop3_port, ("-starttls", "pop3")),
            (self.pop3s_port, ()),
        ):
            shown = self.openssl(port, *options, "-servername", ME, "-verify_hostname", ME)
            self.assertIn("Verify return code: 0 (ok)", shown)
            self.assertIn("TLSv1.3", shown)
            self.assertRegex(shown, r"221 mx\.test|\+OK")
        shown = self.openssl(self.smtps_port, "-tls1_2")
        self.assertIn("Verify return code: 0 (ok)", shown)
        self.assertRegex(shown, r"Secure Renegotiation IS supported\s+(No ALPN|Compression: NONE)")
        self.assertIn("No ALPN negotiated", self.openssl(self.smtps_port, "-alpn", "h2"))
        for version in ("-tls1", "-tls1_1"):
            shown = self.openssl(self.smtps_port, version, "-cipher", "ALL:@SECLEVEL=0")
            self.assertNotIn("221 ", shown)
        daemon.log.wait(r"TLS handshake with 127\.0\.0\.1 failed: unsupported protocol", 2)
        self.assertRegex(self.openssl(self.smtps_port, "-servername", "two.test"), r"subject=CN ?= ?two\.test")
        self.certify("three.test")
        self.assertRegex(self.openssl(self.smtps_port), r"subject=CN ?= ?three\.test")
        self.assertEqual(daemon.stop(), 0)

    def test_replaced_under_load(self) -> None:
        """While clients come side by side, certificates come and go, a broken file among them: each handshake succeeds,
        with one of the good ones."""
        daemon = self.start()
        context = ssl.create_default_context(cafile=self.trusted)
        seen, stop = set(), threading.Event()

        def visit() -> int:
            visits = 0
            while not stop.is_set():
                with (
                    socket.create_connection(("127.0.0.1", self.smtps_port), PATIENCE) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as client,
                ):
                    seen.add((client.getpeercert() or {})["serialNumber"])
                    if not client.recv(1000).startswith(b"220 "):
                        raise AssertionError("no greeting")
                visits += 1
            return visits

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(visit) for _ in range(4)]
            try:
                for number in range(12):
                    before = len(seen)
                    if number % 4 == 3:
                        self.write_control("servercert.pem", "garbage")
                        daemon.log.wait("the certificate of before stays in use", number // 4 + 1)
                    else:
                        self.certify(ME, "localhost")
                        wait_until("it to be seen", lambda before=before: len(seen) > before)  # type: ignore[misc]
            finally:
                stop.set()
            self.assertGreater(min(client.result(PATIENCE) for client in clients), 0)
        self.assertEqual(len(seen), 10)
        self.assertEqual(daemon.stop(), 0)

    def test_renegotiation(self) -> None:
        """TLS 1.2: a client that asks for it (R of s_client) gets nowhere, and the daemon goes on."""
        daemon = self.start()
        done = subprocess.run(
            [program("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{self.smtps_port}", "-tls1_2"],
            check=False,
            input=b"R\n",
            capture_output=True,
            timeout=PATIENCE,
        )
        self.assertRegex(done.stderr, rb"(?s)RENEGOTIATING.*no renegotiation")
        self.send([self.address])
        daemon.log.wait(r"end msg \d+$")

    def test_swaks(self) -> None:
        daemon = self.start()
        for options in (["-tls"], ["-tlsc", "--server", f"127.0.0.1:{self.smtps_port}"]):
            done = self.swaks(
                "--to",
                self.address,
                "--from",
                "joe@cli.test",
                "--tls-verify",
                "--tls-ca-path",
                self.trusted,
                "--tls-sni",
                ME,
                *options,
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        daemon.log.wait(r"end msg \d+$", 2)
        for message in self.maildir():
            self.assertRegex(message, rb"\n  by 127\.0\.0\.1 with ESMTPS \(TLS_AES_256_GCM_SHA384 encrypted\); ")

    def test_injection(self) -> None:
        """CVE-2011-0411, at both doors."""
        daemon = self.start()
        for port, greeting, text in (
            (self.port, b"220", b"EHLO a\r\nSTARTTLS\r\nMAIL FROM:<evil@a.test>\r\n"),
            (self.pop3_port, b"+OK", b"STLS\r\nUSER evil\r\n"),
        ):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock, sock.makefile("rb") as file:
                self.assertTrue(file.readline().startswith(greeting))
                sock.sendall(text)
                rest = file.read()
            self.assertRegex(rest, rb"(554 5\.5\.1|-ERR) nothing may follow ST")
        self.assertEqual(daemon.stop(), 0)

    def test_posttls_finger(self) -> None:
        """Postfix as the other side: it trusts us when it verifies the name."""
        self.start()
        finger = program("posttls-finger", "postfix")
        with open(f"{self.directory}/main.cf", "w") as file:
            file.write("compatibility_level = 3.6\n")  # it wants one, where Postfix is not configured, too
        done = self.run_program(
            *("env", f"MAIL_CONFIG={self.directory}", finger, "-c"),
            *("-l", "secure", "-F", self.trusted, "-L", "summary", f"[127.0.0.1]:{self.port}", ME),
        )
        self.assertRegex(done.stdout + done.stderr, r"Verified TLS connection established .*: TLSv1\.3 with cipher")

    def test_curl(self) -> None:
        """smtp and smtps, pop3 and pop3s; passwords are taken over TLS."""
        curl = program("curl", "curl")
        self.put(b"Subject: one\n\nx\n")
        daemon = self.start()
        resolve = [
            word
            for port in (self.port, self.smtps_port, self.pop3_port, self.pop3s_port)
            for word in ("--resolve", f"{ME}:{port}:127.0.0.1")
        ]
        common = [curl, "--silent", "--show-error", "--ssl-reqd", "--cacert", self.trusted, *resolve]
        for scheme, port in (("smtp", self.port), ("smtps", self.smtps_port)):
            done = subprocess.run(
                [
                    *common,
                    f"{scheme}://{ME}:{port}/cli.test",
                    "--mail-from",
                    "a@b.test",
                    "--mail-rcpt",
                    self.address,
                    "--upload-file",
                    "-",
                ],
                check=False,
                input=b"Subject: two\r\n\r\ny\r\n",
                capture_output=True,
                timeout=PATIENCE,
            )
            self.assertEqual((done.returncode, done.stderr), (0, b""))
        daemon.log.wait(r"end msg \d+$", 2)
        for scheme, port in (("pop3", self.pop3_port), ("pop3s", self.pop3s_port)):
            done = subprocess.run(
                [
                    *common,
                    f"{scheme}://{ME}:{port}/1",
                    "--user",
                    f"{self.user}:{SECRET}",
                    "--login-options",
                    "AUTH=PLAIN",
                ],
                check=False,
                capture_output=True,
                timeout=PATIENCE,
            )
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            self.assertEqual(done.stdout, b"Subject: one\r\n\r\nx\r\n")

    def test_fetchmail(self) -> None:
        """STLS and pop3s, with the certificate checked."""
        fetchmail = program("fetchmail", "fetchmail")
        daemon = self.start()
        for number, (port, how) in enumerate(((self.pop3_port, "sslproto 'TLS1.2+'"), (self.pop3s_port, "ssl"))):
            self.put(b"Subject: %d\n\nx\n" % number)
            rc = self.settings(
                f"fetchmailrc{number}",
                [
                    f"poll localhost protocol pop3 service {port} user '{self.user}' password '{SECRET}' {how}",
                    f"  sslcertck sslcertfile {self.trusted} mda 'cat >> {self.directory}/client/got' no keep",
                ],
            )
            done = self.as_account(fetchmail, "--nosyslog", "-f", rc)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        with open(os.path.join(self.directory, "client", "got"), "rb") as file:
            self.assertEqual(re.findall(rb"^Subject: (\d)", file.read(), re.MULTILINE), [b"0", b"1"])
        self.assertEqual(daemon.stop(), 0)

    def test_start_without_a_certificate(self) -> None:
        os.unlink(os.path.join(self.home, "control", "servercert.pem"))
        done = subprocess.run(
            self.runtime.command("twistd", "-n", "--pidfile=", "qtwist", "--home", self.home),
            check=False,
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(
            "control/servercert.pem: found nothing, expected a certificate, for smtps in control/listen", done.stderr
        )


class ClientTests(TLSCase):
    """Our daemon as the client: of Postfix, and of another one of its kind."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": self.trusted}

    def setUp(self) -> None:
        self.trusted = ""
        super().setUp()

    def route(self, port: int) -> None:
        self.write_control("smtproutes", f":[127.0.0.1]:{port}\n")
        self.write_control("relayclients", "127.0.0.1\n")

    def demand(self, pem: bytes) -> None:
        directory = os.path.join(self.home, "control", "tlshosts")
        os.makedirs(directory, exist_ok=True)
        self.own(directory)
        self.write_control("tlshosts/127.0.0.1.pem", pem.decode())

    def test_postfix(self) -> None:
        """A good certificate, then another one that nobody vouches for, with and without a demand."""
        postfix = Postfix(self, "relay.test", self.authority.certify("127.0.0.1"))
        self.route(postfix.port)
        daemon = self.start()
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertRegex(line, r"success: 127\.0\.0\.1_accepted_message\..*/TLSv1\.3_\S+,_certificate_verified\./")
        self.assertRegex(postfix.log(), r"TLS connection established from \S+: TLSv1\.3 with cipher")
        self.demand(Authority("Somebody else").pem)
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 2: ")
        self.assertRegex(line, r"deferral: \S+_but_TLS_failed:_the_certificate_comes_from_an_unknown_authority\.")
        self.assertEqual(daemon.stop(), 0)

    def test_what_was_secure_once(self) -> None:
        """A host that had a good certificate has none any more: kept back, through a restart."""
        postfix = Postfix(self, "relay.test", self.authority.certify("127.0.0.1"))
        self.route(postfix.port)
        daemon = self.start()
        self.send(["joe@example.org"])
        daemon.log.wait("delivery 1: success: .*verified")
        self.assertEqual(daemon.stop(), 0)
        port, _ = self.smtp_sink()
        self.route(port)
        daemon = self.start()
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertIn("deferral: Connected_to_127.0.0.1_but_TLS_failed:_STARTTLS_is_not_offered.", line)
        daemon.log.wait("mail for 127.0.0.1 is kept back: it had a good certificate before")
        self.assertEqual(daemon.stop(), 0)
