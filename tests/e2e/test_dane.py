"""DANE with a resolver and signatures that nobody here made: unbound validates a root of our own, ldns signs it;
Postfix has the certificate, openssl is a second opinion (RFC 7672)."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from cryptography import x509

from qtwist.tls.contexts import Identity
from tests.certificates import Authority
from tests.e2e.harness import ME, PATIENCE, free_port, program, wait_until
from tests.e2e.postfix import Postfix
from tests.e2e.test_tls import TLSCase

ZONE = """\
. 60 IN SOA ns.test. root.test. 1 3600 600 86400 60
. 60 IN NS ns.test.
ns.test. 60 IN A 127.0.0.1
arpa. 60 IN HINFO "none" "none"
"""


def tlsa(pem: bytes) -> str:
    """``3 1 1`` and the digest."""
    unused: Any = None
    return Identity((x509.load_pem_x509_certificate(pem),), unused).tlsa


class Validator:
    """A running unbound whose only trust anchor is the key of a root zone with `lines`; it is ended with the test.
    `forged` is changed into something else behind the signer's back."""

    def __init__(self, case: TLSCase, lines: str, forged: str = "") -> None:
        keygen, signzone = program("ldns-keygen", "ldnsutils"), program("ldns-signzone", "ldnsutils")
        unbound = program("unbound", "unbound")
        self.case, self.port = case, free_port()
        directory = self.directory = os.path.join(case.directory, "dns")
        os.mkdir(directory)
        self._run(keygen, "-r", "/dev/urandom", "-k", "-a", "ECDSAP256SHA256", ".")
        [self.key] = [name.removesuffix(".key") for name in os.listdir(directory) if name.endswith(".key")]
        self._write("zone", ZONE + lines)
        self._run(signzone, "-f", "signed", "-o", ".", "zone", self.key)
        if forged:
            with open(os.path.join(directory, "signed")) as file:
                signed = file.read()
            case.assertEqual(signed.count(forged), 1)
            self._write("signed", signed.replace(forged, "0" * len(forged)))
        self._write(
            "unbound.conf",
            f"""
server:
    directory: "{directory}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    interface: 127.0.0.1@{self.port}
    local-zone: "test." nodefault
    module-config: "validator iterator"
    trust-anchor-file: "{self.key}.key"
auth-zone:
    name: "."
    zonefile: "signed"
    for-downstream: no
    for-upstream: yes
    fallback-enabled: no
remote-control:
    control-enable: no
""",
        )
        with open(os.path.join(directory, "log"), "wb") as log:
            self.process = subprocess.Popen(
                [unbound, "-d", "-c", "unbound.conf"], cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        case.addCleanup(self.end)
        wait_until("a start of unbound", lambda: "start of service" in self.log() or self.process.poll() is not None)
        if self.process.poll() is not None:
            raise AssertionError(f"unbound ended:\n{self.log()}")

    def log(self) -> str:
        with open(os.path.join(self.directory, "log"), errors="replace") as log:
            return log.read()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)

    def _write(self, name: str, text: str) -> None:
        with open(os.path.join(self.directory, name), "w") as file:
            file.write(text)

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.directory, check=True, capture_output=True, timeout=PATIENCE)


class DANETests(TLSCase):
    def start_with(self, zone: str, port: int, forged: str = "") -> Any:
        resolver = Validator(self, zone, forged)
        self.write_control("dnsservers", f"127.0.0.1:{resolver.port}\n")
        self.write_control("dane", "1\n")
        self.write_control("smtproutes", f":relay.test:{port}\n")
        self.write_control("relayclients", "127.0.0.1\n")
        return self.start()

    def test_postfix(self) -> None:
        """Its certificate is nobody's but its own; then the record is another one's."""
        pem = Authority("Nobody knows it").certify("other.test")
        postfix = Postfix(self, "relay.test", pem)
        hosts = ""
        for name, text in (("relay.test.", tlsa(pem)), ("evil.test.", tlsa(Authority().certify("x.test")))):
            hosts += f"{name} 60 IN A 127.0.0.1\n_{postfix.port}._tcp.{name} 60 IN TLSA {text}\n"
        daemon = self.start_with(hosts, postfix.port)
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertRegex(line, r"success: .*_certificate_verified_by_DANE\./")
        self.write_control("smtproutes", f":evil.test:{postfix.port}\n")
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 2: ")
        self.assertIn("deferral: Connected_to_127.0.0.1_but_TLS_failed:_the_certificate_does_not_match", line)
        self.assertEqual(daemon.log.find("of no use now"), [])
        self.assertEqual(daemon.stop(), 0)

    def test_stripped(self) -> None:
        """A host with a record and without STARTTLS, as behind a man in the middle: nothing goes there."""
        port, _ = self.smtp_sink()
        record = tlsa(Authority().certify("x.test"))
        zone = f"relay.test. 60 IN A 127.0.0.1\n_{port}._tcp.relay.test. 60 IN TLSA {record}\n"
        daemon = self.start_with(zone, port)
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertIn("deferral: Connected_to_127.0.0.1_but_TLS_failed:_STARTTLS_is_not_offered.", line)
        self.assertEqual(daemon.stop(), 0)

    def test_forged(self) -> None:
        """A record that does not validate is none and no licence; a host that has no record is served as ever."""
        port, _ = self.smtp_sink()
        record = tlsa(Authority().certify("x.test"))
        zone = "plain.test. 60 IN A 127.0.0.1\nrelay.test. 60 IN A 127.0.0.1\n"
        zone += f"_{port}._tcp.relay.test. 60 IN TLSA {record}\n"
        daemon = self.start_with(zone, port, record.split()[-1])
        self.send(["joe@example.org"])
        [line] = daemon.log.wait("^delivery 1: ")
        self.assertIn("deferral: The_DNS_gave_no_answer_for_now_about_TLSA_records_of_relay.test", line)
        self.write_control("smtproutes", f":plain.test:{port}\n")
        self.send(["joe@example.org"])
        daemon.log.wait("^delivery 2: success")
        self.assertEqual(daemon.stop(), 0)

    def test_openssl_agrees(self) -> None:
        """What the doctor tells the owner to publish for our own certificate is good by OpenSSL's reading of it."""
        self.start()
        with open(os.path.join(self.home, "control", "servercert.pem"), "rb") as file:
            record = tlsa(file.read())
        for text, wanted in ((record, "0 (ok)"), (record[:-2] + "00", "65 (no matching DANE TLSA records)")):
            options = ("-dane_tlsa_domain", ME, "-dane_tlsa_rrdata", text)
            shown = self.openssl(self.smtps_port, *options, "-no-CAfile", "-no-CApath")
            self.assertRegex(shown, r"Verif(y return code|ication).*: " + re.escape(wanted))
