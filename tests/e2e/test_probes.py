"""What a scanner would find at our ports, by `openssl s_client`; mutt as a reader and a sender; haproxy in front (issue
9, item 6; doc/tls.md, doc/extensions.md)."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import smtplib
import subprocess
import tempfile
import threading
from typing import Any

from tests.e2e.harness import ME, PATIENCE, accepts, free_port, program, wait_until
from tests.e2e.test_pop3 import SECRET
from tests.e2e.test_submission import SubmissionCase

WEAK = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"
BROKEN = re.compile(r"NULL|EXP|anon|ADH|AECDH|RC4|DES|MD5|PSK|SRP|SEED|IDEA|CAMELLIA|ARIA")


class ScannerTests(SubmissionCase):
    def doors(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """Every port at which there is TLS, and how s_client gets there."""
        return (
            (self.port, ("-starttls", "smtp")),
            (self.submission, ("-starttls", "smtp")),
            (self.pop3_port, ("-starttls", "pop3")),
            (self.smtps_port, ()),
            (self.submissions, ()),
            (self.pop3s_port, ()),
        )

    def cipher(self, port: int, *options: str) -> str | None:
        """The cipher of a handshake, None where there was none."""
        shown = self.openssl(port, *options)
        match = re.search(r"^New, (\S+), Cipher is (\S+)$", shown, re.MULTILINE)
        assert match is not None, shown
        return None if match[2] == "(NONE)" else match[2]

    def test_versions(self) -> None:
        """TLS 1.2 and 1.3 at each port, nothing older whatever ciphers are offered for it (RFC 8996); and who can do
        1.3 is not talked down to 1.2 (RFC 7507)."""
        daemon = self.start()
        for port, options in self.doors():
            with self.subTest(port=port, options=options):
                self.assertIsNotNone(self.cipher(port, *options, "-tls1_3"))
                self.assertIsNotNone(self.cipher(port, *options, "-tls1_2"))
                for version in ("-tls1", "-tls1_1"):
                    self.assertIsNone(self.cipher(port, *options, version, "-cipher", WEAK))
                self.assertIn("inappropriate fallback", self.openssl(port, *options, "-tls1_2", "-fallback_scsv"))
        self.assertEqual(daemon.stop(), 0)

    def test_ciphers(self) -> None:
        """All that TLS 1.2 gets, found as scanners do: each that was taken is left out of the next offer. Forward
        secrecy always, those with authentication of their own first."""
        self.start()
        taken: list[str] = []
        while (got := self.cipher(self.smtps_port, "-tls1_2", "-cipher", ":!".join([WEAK, *taken]))) is not None:
            self.assertNotIn(got, taken)
            taken.append(got)
        self.assertGreater(len(taken), 2)
        for name in taken:
            self.assertTrue(name.startswith("ECDHE-"), taken)
            self.assertIsNone(BROKEN.search(name), taken)
        modern = [re.search("GCM|CHACHA20", name) is not None for name in taken]
        self.assertEqual(modern, sorted(modern, reverse=True), taken)
        # Without forward secrecy there is nothing, at no port.
        for port, options in self.doors():
            self.assertIsNone(self.cipher(port, *options, "-tls1_2", "-cipher", f"kRSA:{WEAK}:!ECDHE"), port)

    def test_nothing_is_kept_of_a_session(self) -> None:
        """A session that a client brings back is not resumed: the handshake is a whole one. OpenSSL gives numbers of
        sessions to clients of TLS 1.3 all the same, which lead nowhere. No compression, no early data, no legacy
        renegotiation, no client certificate asked for."""
        self.start()
        for port, options in self.doors():
            for version in ("-tls1_2", "-tls1_3"):
                kept = os.path.join(self.directory, f"session{port}{version}")
                shown = self.openssl(port, *options, version, "-sess_out", kept)
                self.assertIn("No client certificate CA names sent", shown)
                self.assertNotRegex(shown, r"Compression: (?!NONE)|Max Early Data: [1-9]")
                if version == "-tls1_2":
                    self.assertNotIn("TLS session ticket", shown)
                    self.assertIn("Secure Renegotiation IS supported", shown)
                    self.assertIn("Extended master secret: yes", shown)
                if os.path.exists(kept):
                    self.assertRegex(self.openssl(port, *options, version, "-sess_in", kept), "(?m)^New, TLSv1")

    def test_renegotiation(self) -> None:
        """TLS 1.2: refused at each port (R of s_client)."""
        daemon = self.start()
        for port, options in self.doors():
            done = subprocess.run(
                [program("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_2", *options],
                check=False,
                input=b"R\n",
                capture_output=True,
                timeout=PATIENCE,
            )
            self.assertRegex(done.stderr, rb"(?s)RENEGOTIATING.*no renegotiation", port)
        self.assertEqual(daemon.stop(), 0)

    def test_names(self) -> None:
        """The certificate of the name that is asked for; that of the server for other names, odd ones, and none."""
        self.certify("two.test", path="servercerts/two.test/servercert.pem")
        self.start()
        for port, options in self.doors():
            for asked, shown in (
                (("-servername", "two.test"), "two.test"),
                (("-servername", "TWO.test"), "two.test"),
                (("-servername", "three.test"), ME),
                (("-servername", "../two.test"), ME),
                (("-noservername",), ME),
            ):
                with self.subTest(port=port, asked=asked):
                    self.assertRegex(self.openssl(port, *options, *asked), rf"subject=CN ?= ?{re.escape(shown)}\b")


class MuttTests(SubmissionCase):
    """mutt, built with GnuTLS and GNU SASL: neither is what we use."""

    def mutt(self, settings: str, *arguments: str, text: str | None = None) -> tuple[int, str]:
        """Run it as the account, with `text` as its input, or with a terminal; its exit code, and what it shows."""
        mutt = program("mutt", "mutt")
        home = os.path.join(self.directory, "client")
        os.makedirs(home, 0o700, exist_ok=True)
        self.own(home)
        common = f'set ssl_ca_certificates_file="{self.trusted}" ssl_force_tls=yes tmpdir="{home}"'
        rc = self.settings(
            "muttrc", [common, f'set folder="{home}" record="" realname=Joe from="{self.address}"', settings]
        )
        options: Any = {"cwd": home, "env": {**os.environ, "HOME": home, "TERM": "vt100"}, **self.identity()}
        command = [mutt, "-n", "-F", rc, *arguments]
        if text is not None:
            done = subprocess.run(
                command,
                check=False,
                input=text.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                **options,
            )
            return done.returncode, done.stdout.decode("utf-8", "replace")
        master, slave = pty.openpty()
        with open(master, "rb", buffering=0) as screen:
            process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, **options)
            os.close(slave)
            # A reader that waits for a key is left to itself no longer than this.
            impatience = threading.Timer(PATIENCE, process.kill)
            impatience.start()
            shown = b""
            with contextlib.suppress(OSError):  # EIO: nobody has the other side any more
                while part := screen.read(65536):
                    shown += part
            code = process.wait()
            impatience.cancel()
        return code, shown.decode("utf-8", "replace")

    def test_reads(self) -> None:
        """STLS and pop3s: mail is fetched and removed."""
        daemon = self.start()
        home = os.path.join(self.directory, "client")
        os.mkdir(home, 0o700)
        self.own(home)
        inbox = os.path.join(home, "inbox")
        with open(inbox, "x"):
            self.own(inbox)
        for number, url in enumerate(
            (f"pop://{self.user}@localhost:{self.pop3_port}", f"pops://{self.user}@localhost:{self.pop3s_port}")
        ):
            method = ("scram-sha-256", "plain")[number]
            self.put(b"From: a@b.test\nSubject: mail %d\n\nx\n" % number)
            settings = f'set pop_host="{url}" pop_pass="{SECRET}" pop_authenticators="{method}"'
            settings += f' pop_delete=yes spoolfile="{inbox}"'
            done = self.mutt(settings, "-e", "push <fetch-mail><sync-mailbox><exit>", "-f", inbox)
            daemon.log.wait("login of .* by ", number + 1)
            self.assertEqual(done[0], 0, done[1])
        with open(inbox, "rb") as file:
            self.assertEqual(re.findall(rb"^Subject: (.*)$", file.read(), re.MULTILINE), [b"mail 0", b"mail 1"])
        self.assertEqual(self.files(), [])
        self.assertEqual(daemon.stop(), 0)
        self.assertNotIn(SECRET, "\n".join(daemon.log.lines))

    def test_sends(self) -> None:
        """STARTTLS and submissions. Left to itself it would choose SCRAM-SHA-256-PLUS, for which it has no binding."""
        daemon = self.start()
        for number, url in enumerate(
            (f"smtp://{self.user}@localhost:{self.submission}", f"smtps://{self.user}@localhost:{self.submissions}")
        ):
            settings = f'set smtp_url="{url}" smtp_pass="{SECRET}" smtp_authenticators="scram-sha-256"'
            done = self.mutt(settings, "-s", f"by mutt {number}", "--", self.address, text="one\n.\ntwo\n")
            self.assertEqual(done, (0, ""))
        for message in self.mail(2):
            self.assertIn(b" with ESMTPSA (", message)
            self.assertTrue(message.endswith(b"\n\none\n.\ntwo\n"), message)
        daemon.log.wait(f"login of {self.user} from 127.0.0.1 by SCRAM-SHA-256", 2)
        done = self.mutt(settings.replace(SECRET, "guess"), "-s", "x", "--", self.address, text="x\n")
        self.assertNotEqual(done[0], 0)
        self.assertEqual(daemon.stop(), 0)


class HaproxyTests(SubmissionCase):
    def balance(self, *ways: tuple[int, int, str]) -> None:
        """Run haproxy: from the first port of each way to the second, with the options of its line `server`."""
        haproxy = program("haproxy", "haproxy")
        # Without a bound it takes as much as the descriptors that are allowed would need.
        lines = [
            "global",
            "maxconn 50",
            "defaults",
            "mode tcp",
            "timeout connect 30s",
            "timeout client 60s",
            "timeout server 60s",
        ]
        for there, here, options in ways:
            lines += [f"listen from-{there}", f"bind 127.0.0.1:{there}", f"server us 127.0.0.1:{here} {options}"]
        said = tempfile.TemporaryFile()  # noqa: SIM115  # haproxy may write to it until it ends
        self.addCleanup(said.close)
        process = subprocess.Popen(
            [haproxy, "-db", "-f", self.settings("haproxy.cfg", lines)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=self.directory,
            **self.identity(),
        )

        def end() -> None:
            process.kill()
            process.wait(PATIENCE)

        self.addCleanup(end)
        for there, _, _ in ways:
            wait_until("haproxy to listen", lambda there=there: accepts(there) or process.poll() is not None)  # type: ignore[misc]
        said.seek(0)
        self.assertIsNone(process.poll(), said.read())

    def test_both_versions(self) -> None:
        """Clients behind it are who they are; its health checks (LOCAL in version 2) are no clients; TLS goes through;
        nobody relays because haproxy might."""
        self.write_control("proxyclients", f"127.0.0.1 {self.submission} {self.smtps_port}\n")
        listen = os.path.join(self.home, "control", "listen")
        behind = free_port()
        with open(listen, "a") as file:
            file.write(f"smtp tcp:{behind}:interface=127.0.0.1\n")
        self.write_control("proxyclients", f"127.0.0.1 {behind} {self.smtps_port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        one, two, tls = free_port(), free_port(), free_port()
        self.balance(
            (one, behind, "send-proxy"),
            (two, behind, "send-proxy-v2 check inter 200ms"),
            (tls, self.smtps_port, "send-proxy-v2"),
        )
        source = ("127.0.0.7", 0)
        for port in (one, two):
            with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE, source_address=source) as client:
                client.sendmail("a@b.test", [self.address], "Subject: x\n\nx\n")
                client.mail("a@b.test")
                self.assertEqual(client.rcpt("x@far.test")[0], 553)
        with smtplib.SMTP_SSL(
            "127.0.0.1", tls, timeout=PATIENCE, source_address=source, context=self.context
        ) as client:
            client.sendmail("a@b.test", [self.address], "Subject: x\n\nx\n")
        for message in self.mail(3):
            self.assertIn(b"(127.0.0.7)\n  by 127.0.0.1 with ", message)
        self.assertEqual(daemon.stop(), 0)
        self.assertEqual(daemon.log.find("closed: no PROXY header"), [])
