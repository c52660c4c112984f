"""Postfix as our smarthost, and as a client that submits to us: TLS and AUTH both ways (RFC 4954; issue 9)."""

from __future__ import annotations

import base64
import glob
import os
import shutil
import smtplib
import socketserver
import subprocess
import threading
from unittest import SkipTest

from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, free_port, program, wait_until
from tests.e2e.postfix import Postfix
from tests.e2e.test_pop3 import SECRET
from tests.e2e.test_submission import SubmissionCase

RELAYMAN = b"\0relayman\0open sesame"


class _Verdicts(socketserver.StreamRequestHandler):
    """What Dovecot's auth server says to Postfix: relayman's password is right, by PLAIN or LOGIN."""

    def handle(self) -> None:
        greeting = ("VERSION\t1\t2", "MECH\tPLAIN\tplaintext", "MECH\tLOGIN\tplaintext", "SPID\t1", "CUID\t1")
        self.say(*greeting, "COOKIE\t" + "0" * 32, "DONE")
        for line in self.rfile:
            command, *words = line.decode().rstrip("\n").split("\t")
            if command == "AUTH":
                response = next((word[5:] for word in words if word.startswith("resp=")), None)
                said = self.by_login(words[0]) if words[1] == "LOGIN" else base64.b64decode(response or "")
                good = said == RELAYMAN
                self.say(f"OK\t{words[0]}\tuser=relayman" if good else f"FAIL\t{words[0]}\tuser=relayman")

    def by_login(self, number: str) -> bytes:
        parts = [b""]
        for prompt in (b"Username:", b"Password:"):
            self.say(f"CONT\t{number}\t{base64.b64encode(prompt).decode()}")
            parts.append(base64.b64decode(self.rfile.readline().split(b"\t")[2]))
        return b"\0".join(parts)

    def say(self, *lines: str) -> None:
        self.wfile.write("".join(f"{line}\n" for line in lines).encode())


class SmarthostTests(SubmissionCase):
    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": os.path.join(self.directory, "authority.pem")}

    def smarthost(self, pem: bytes, *settings: str) -> Postfix:
        """One that takes mail from relayman, through TLS."""
        verdicts = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Verdicts)
        verdicts.daemon_threads = True
        self.addCleanup(verdicts.server_close)
        self.addCleanup(verdicts.shutdown)
        threading.Thread(target=verdicts.serve_forever, args=(0.05,), daemon=True).start()
        return Postfix(
            self,
            "relay.test",
            pem,
            "smtpd_sasl_auth_enable = yes",
            "smtpd_sasl_type = dovecot",
            f"smtpd_sasl_path = inet:127.0.0.1:{verdicts.server_address[1]}",
            "smtpd_tls_auth_only = yes",
            "smtpd_relay_restrictions = permit_sasl_authenticated, reject",
            *settings,
        )

    def route(self, port: int, password: str) -> None:
        path = os.path.join(self.home, "control", "smtproutes")
        self.write_control("smtproutes", f":[127.0.0.1]:{port}|relayman|{password}\n")
        os.chmod(path, 0o600)
        self.write_control("relayclients", "127.0.0.1\n")

    def check(self, mechanism: str) -> None:
        """A wrong password keeps the mail; the right one sends it."""
        postfix = self.smarthost(self.authority.certify("127.0.0.1"), f"smtpd_sasl_mechanism_filter = {mechanism}")
        self.route(postfix.port, "guess")
        daemon = self.start()
        self.send(["joe@far.test"])
        daemon.log.wait("deferral: Connected_to_127.0.0.1_but_the_login_was_refused.*535")
        self.route(postfix.port, "open sesame")
        self.send(["joe@example.org"])
        daemon.log.wait("success: 127.0.0.1_accepted_message.*certificate_verified")
        wait_until("the log", lambda: f"sasl_method={mechanism}, sasl_username=relayman" in postfix.log())
        self.assertNotIn("sesame", "\n".join(daemon.log.lines))

    def test_plain(self) -> None:
        self.check("PLAIN")

    def test_login(self) -> None:
        self.check("LOGIN")

    def test_a_wrong_certificate(self) -> None:
        """The password is not given away."""
        postfix = self.smarthost(Authority("Somebody else").certify("127.0.0.1"))
        self.route(postfix.port, "open sesame")
        daemon = self.start()
        self.send(["joe@example.org"])
        daemon.log.wait("deferral: Connected_to_127.0.0.1_but_TLS_failed:_the_certificate_comes_from_an_unknown_auth")
        self.assertNotIn("sasl_", postfix.log())


class CyrusTests(SubmissionCase):
    """Cyrus SASL judges, Postfix carries: each of our mechanisms, by STARTTLS, and TLS from the first octet."""

    MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256")
    #: Where TLS begins with the first octet is known by the port, so that an address is needed on which it is free.
    IMPLICIT = "127.0.46.5"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SSL_CERT_FILE": os.path.join(self.directory, "authority.pem")}

    def database(self, name: str, password: str) -> None:
        """Where Debian's Postfix has Cyrus SASL look: the secrets of `name` at relay.test."""
        folder = os.path.join(self.directory, "postfix", "sasl")
        os.makedirs(folder)
        command = [program("saslpasswd2", "sasl2-bin"), "-p", "-c", "-u", "relay.test", "-f", f"{folder}/db", name]
        subprocess.run(command, input=password.encode(), check=True, timeout=PATIENCE)
        with open(os.path.join(folder, "smtpd.conf"), "w") as file:
            file.write("pwcheck_method: auxprop\nauxprop_plugin: sasldb\n")
            file.write(f"sasldb_path: {folder}/db\nmech_list: {' '.join(self.MECHANISMS)}\n")
        for path in (folder, f"{folder}/db"):
            shutil.chown(path, "postfix")

    def test_all_mechanisms(self) -> None:
        """The right password by each, and a wrong one: deferred."""
        if not glob.glob("/usr/lib/*/sasl2/libscram.so*"):
            raise SkipTest("Cyrus SASL has no mechanisms here (Debian package libsasl2-modules)")
        if os.geteuid() != 0:
            raise SkipTest("needs root: Postfix changes its user ids")
        program("postfix", "postfix")
        name, password = "relay,man=x", "open s\u00e9same"
        ports = {mechanism: free_port() for mechanism in self.MECHANISMS}
        own = " -o smtpd_sasl_mechanism_filter="
        self.database(name, password)
        postfix = Postfix(
            self,
            "relay.test",
            self.authority.certify("127.0.0.1", self.IMPLICIT),
            "smtpd_sasl_auth_enable = yes",
            "smtpd_sasl_type = cyrus",
            "smtpd_sasl_path = smtpd",
            "smtpd_sasl_local_domain = relay.test",
            "smtpd_tls_auth_only = yes",
            "smtpd_relay_restrictions = permit_sasl_authenticated, reject",
            services=[
                *(f"127.0.0.1:{port} inet n - n - - smtpd{own}{mechanism}" for mechanism, port in ports.items()),
                f"{self.IMPLICIT}:465 inet n - n - - smtpd -o smtpd_tls_wrappermode=yes{own}SCRAM-SHA-256",
            ],
        )
        relays = {mechanism.lower(): f"[127.0.0.1]:{port}" for mechanism, port in ports.items()}
        relays["implicit"] = f"[{self.IMPLICIT}]:465"
        path = os.path.join(self.home, "control", "smtproutes")
        lines = [f"{key}.test:{relay}|{name}|{password}" for key, relay in relays.items()]
        lines += [f"wrong-{key}.test:{relay}|{name}|guess" for key, relay in relays.items()]
        self.write_control("smtproutes", "")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.chmod(path, 0o600)
        self.write_control("relayclients", "127.0.0.1\n")
        daemon = self.start()
        for key in relays:
            self.send([f"joe@{key}.test", f"joe@wrong-{key}.test"])
        daemon.log.wait(r"success: 127\.0\.\d+\.\d_accepted_message.*certificate_verified", len(relays))
        daemon.log.wait(r"deferral: Connected_to_127\.0\.\d+\.\d_but_the_login_was_refused.*535", len(relays))
        for mechanism in self.MECHANISMS:
            line = f"sasl_method={mechanism}, sasl_username={name}"
            times = 2 if mechanism == self.MECHANISMS[-1] else 1
            self.assertEqual(postfix.log().count(line), times, postfix.log())


class ClientTests(SubmissionCase):
    def test_postfix_submits(self) -> None:
        """With a login, through STARTTLS, to our submission port; SASL is Cyrus's there."""
        if not glob.glob("/usr/lib/*/sasl2/libplain.so*"):
            raise SkipTest("Cyrus SASL has no mechanisms here (Debian package libsasl2-modules)")
        postfix = Postfix(
            self,
            "client.test",
            self.authority.certify("client.test"),
            f"default_transport = relay:[127.0.0.1]:{self.submission}",
            "smtpd_relay_restrictions = permit_mynetworks, reject",
            "smtp_tls_security_level = encrypt",
            "smtp_tls_loglevel = 1",
            "smtp_sasl_auth_enable = yes",
            "smtp_sasl_security_options = noanonymous",
            f"smtp_sasl_password_maps = inline:{{ {{ [127.0.0.1]:{self.submission} = {self.user}:{SECRET} }} }}",
        )
        daemon = self.start()
        with smtplib.SMTP("127.0.0.1", postfix.port, timeout=PATIENCE) as client:
            client.sendmail(self.address, [self.address], b"Subject: by Postfix\r\n\r\n")
        [message] = self.mail()
        self.assertIn(b" with ESMTPSA (", message)
        self.assertIn(b"Subject: by Postfix", message)
        daemon.log.wait(f"login of {self.user} from 127.0.0.1 by ")
        self.assertIn(f"to=<{self.user}@{ME}>, relay=127.0.0.1", postfix.log())
