"""Logins and certificates against other people's programs: GNU SASL, openssl and ldns.
xtext and quoting against Python.

The vectors of the RFCs are in test_wire_scram, test_auth_login and test_wire_smtp_client_auth; whole sessions with
openssl, curl, swaks and unbound in e2e.
"""

from __future__ import annotations

import base64
import email.headerregistry
import os
import re
import select
import subprocess
from typing import Any

from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.auth.credentials import CRAMCredentials
from qtwist.auth.scram import ScramKeys
from qtwist.mail.address import unquote
from qtwist.mail.quoting import quote
from qtwist.mail.verp import bounce_address, expand
from qtwist.tls.dane import TLSA, usable
from qtwist.wire import sasl
from qtwist.wire.sasl_client import Login, choose
from qtwist.wire.sasl_mechanisms import exchange
from qtwist.wire.xclient import parse_xclient
from tests.command_tools import debian

#: Names and passwords with all that one of the mechanisms gives a meaning to. Without TLS, SCRAM's client sends the
#: password's bytes prepared (RFC 4013), which these are already.
PEOPLE = (
    ("joe", "secret"),
    ("joe@example.org", "pencil sharpener"),
    ("a,b=c", "n=x,r=y,s="),
    ("=2C=3D", "="),
    ("ann mary", "<1896.697170952@postoffice.example.net>"),
    ("j\u00f6rg", "p\u00e4sswort"),
)
PATIENCE = 20


class Gsasl:
    """A client of GNU SASL, with whom lines of base64 are exchanged."""

    def __init__(self, test: SynchronousTestCase, mechanism: str, name: str, password: str) -> None:
        command = [debian("gsasl", "gsasl"), "--client", "--quiet", "--mechanism", mechanism, "--no-cb"]
        command += ["--authentication-id", name, "--password", password]
        command += ["--hostname", "mx.test", "--service", "smtp"]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        test.addCleanup(self._end)
        if self.line().rstrip() != mechanism.encode():
            raise AssertionError("it begins with the name of the mechanism")

    def line(self) -> bytes:
        """What it says next, with its end; nothing when it has left."""
        stdout: Any = self._process.stdout
        if not select.select([stdout], [], [], PATIENCE)[0]:
            raise AssertionError("gsasl says nothing")
        said: bytes = stdout.readline()
        return said

    def say(self, line: bytes) -> None:
        stdin: Any = self._process.stdin
        stdin.write(line + b"\n")

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


class SASLTests(SynchronousTestCase):
    """Our servers' side with the client of GNU SASL."""

    def begun(self, mechanism: str, name: str, password: str) -> tuple[Gsasl, sasl.Exchange]:
        channel = sasl.Channel(b"mx.test", lambda: b"1896.697170952")
        return Gsasl(self, mechanism, name, password), exchange(mechanism.encode(), channel)

    def test_plain(self) -> None:
        for name, password in PEOPLE:
            client, server = self.begun("PLAIN", name, password)
            claim = server.begin(client.line().rstrip())
            self.assertEqual(claim, sasl.Secret(b"", name.encode(), password.encode()))

    def test_login(self) -> None:
        for name, password in PEOPLE:
            client, server = self.begun("LOGIN", name, password)
            step: Any = server.begin(None)
            while isinstance(step, bytes):
                client.say(step)
                step = server.respond(client.line().rstrip())
            self.assertEqual(step, sasl.Secret(b"", name.encode(), password.encode()))

    def test_cram_md5(self) -> None:
        for name, password in PEOPLE:
            client, server = self.begun("CRAM-MD5", name, password)
            challenge = server.begin(None)
            assert isinstance(challenge, bytes)
            client.line()
            client.say(challenge)
            claim = server.respond(client.line().rstrip())
            assert isinstance(claim, sasl.Digest)
            self.assertEqual(claim.username, name.encode())
            right = CRAMCredentials(claim.username, claim.challenge, claim.digest)
            self.assertTrue(right.checkPassword(password.encode()))
            self.assertFalse(right.checkPassword(password.encode() + b"x"))

    def test_scram(self) -> None:
        """Both sides are told that the other knows the password; the client leaves when our signature is wrong."""
        for name, password in PEOPLE:
            for right in (True, False):
                client, server = self.begun("SCRAM-SHA-256", name, password)
                asked = server.begin(client.line().rstrip())
                self.assertEqual(asked, sasl.SaltWanted(name.encode()))
                keys = ScramKeys.make(password.encode(), b"a salt of sixteen", 4096)
                client.say(server.salted(keys.salt, keys.iterations))
                claim = server.respond(client.line().rstrip())
                assert isinstance(claim, sasl.Proof)
                signature = keys.signature_for(claim.message, claim.proof)
                assert signature is not None
                other = ScramKeys.make(b"other", keys.salt, 4096)
                self.assertIsNone(other.signature_for(claim.message, claim.proof))
                client.say(server.confirm(signature if right else bytes(32)))
                self.assertEqual(client.line(), b"\n" if right else b"")

    def test_scram_keys(self) -> None:
        """What is kept for a password is what `gsasl --mkpasswd` keeps."""
        salt = b"0123456789abcdef"
        for _, password in PEOPLE:
            command = [debian("gsasl", "gsasl"), "--mkpasswd", "--mechanism", "SCRAM-SHA-256", "--password", password]
            command += ["--iteration-count", "5000", "--salt", base64.b64encode(salt).decode()]
            shown = subprocess.run(
                command, check=True, capture_output=True, timeout=PATIENCE, env={**os.environ, "LC_ALL": "C.UTF-8"}
            )
            _, _, stored, server = shown.stdout.strip().split(b",")
            keys = ScramKeys.make(password.encode(), salt, 5000)
            self.assertEqual(base64.b64encode(keys.stored_key), stored)
            self.assertEqual(base64.b64encode(keys.server_key), server)

    @given(st.binary(max_size=200))
    def test_base64(self, data: bytes) -> None:
        """One way to write it, which is Python's; no other is taken."""
        line = base64.b64encode(data)
        self.assertEqual(sasl.encode(data), line)
        self.assertEqual(sasl.decode(line), data)
        for other in (line + b"=", b" " + line, line[:-1] if line.endswith(b"=") else line + b"\n"):
            self.assertRaises(sasl.SASLError, sasl.decode, other)


class ClientTests(SynchronousTestCase):
    """Our side as a client of relays, judged by our servers, which the above has judged."""

    def test_each(self) -> None:
        for mechanism in (b"PLAIN", b"LOGIN", b"CRAM-MD5"):
            for name, password in PEOPLE:
                ours = choose(Login(name.encode(), password.encode()), {mechanism}, True)
                assert ours is not None
                server = exchange(mechanism, sasl.Channel(b"mx.test", lambda: b"1.2"))
                _, _, initial = ours.command.partition(b" ")
                step: Any = server.begin(initial or None)
                while isinstance(step, bytes):
                    response = ours.answer(step)
                    assert response is not None
                    step = server.respond(response)
                self.assertEqual(step.username, name.encode())
                if isinstance(step, sasl.Digest):
                    right = CRAMCredentials(step.username, step.challenge, step.digest)
                    self.assertTrue(right.checkPassword(password.encode()))
                else:
                    self.assertEqual(step.password, password.encode())


class DANETests(SynchronousTestCase):
    """RFC 6698 §2.1: what a certificate's records say, with keys of all kinds."""

    def setUp(self) -> None:
        self.folder = self.mktemp()
        os.mkdir(self.folder)

    def certificates(self) -> list[str]:
        """Files with a certificate each."""
        found = []
        openssl = debian("openssl", "openssl")
        for number, kind in enumerate(("rsa:2048", "ec -pkeyopt ec_paramgen_curve:P-384", "ed25519")):
            path = os.path.join(self.folder, f"{number}.pem")
            command = [openssl, "req", "-x509", "-nodes", "-newkey", *kind.split(), "-subj", "/C=DE/O=Ä/CN=a.test"]
            command += ["-utf8", "-days", "9", "-keyout", os.devnull, "-out", path]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            found.append(path)
        return found

    def test_like_openssl(self) -> None:
        """The key of a certificate, octet for octet, and both digests of it."""
        openssl = debian("openssl", "openssl")
        for path in self.certificates():
            certificate = self.read(path)
            key = subprocess.run([openssl, "x509", "-in", path, "-noout", "-pubkey"], check=True, capture_output=True)
            der = subprocess.run(
                [openssl, "pkey", "-pubin", "-outform", "DER"], input=key.stdout, check=True, capture_output=True
            ).stdout
            self.assertTrue(TLSA(3, 1, 0, der).matches(certificate))
            self.assertFalse(TLSA(3, 1, 0, der[:-1]).matches(certificate))
            for matching, name in ((1, "sha256"), (2, "sha512")):
                digest = subprocess.run(
                    [openssl, "dgst", f"-{name}", "-binary"], input=der, check=True, capture_output=True
                ).stdout
                self.assertTrue(TLSA(3, 1, matching, digest).matches(certificate))

    def test_like_ldns(self) -> None:
        """Each record that `ldns-dane create` makes for mail."""
        ldns = debian("ldns-dane", "ldnsutils")
        paths = self.certificates()
        for path in paths:
            certificate = self.read(path)
            others = [self.read(other) for other in paths if other != path]
            for selector in "01":
                for matching in "012":
                    made = subprocess.run(
                        [ldns, "-c", path, "create", "a.test", "25", "3", selector, matching],
                        check=True,
                        capture_output=True,
                        timeout=PATIENCE,
                    )
                    match = re.search(rb"TLSA\s+(\d) (\d) (\d) ([0-9a-fA-F ]+)", made.stdout)
                    assert match is not None, made.stdout
                    record = TLSA(int(match[1]), int(match[2]), int(match[3]), bytes.fromhex(match[4].decode()))
                    self.assertEqual(usable([record]), (record,))
                    self.assertTrue(record.matches(certificate), made.stdout)
                    self.assertFalse(any(record.matches(other) for other in others))

    @staticmethod
    def read(path: str) -> x509.Certificate:
        with open(path, "rb") as file:
            return x509.load_pem_x509_certificate(file.read())


#: What the local part of an address may have in it (RFC 5322 §3.2.4), written as it is meant.
LOCAL = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)


class AddressTests(SynchronousTestCase):
    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(LOCAL)
    def test_quoting(self, local: str) -> None:
        """email.headerregistry reads what we quote, and we what it does."""
        written = quote(local.encode()) + b"@a.test"
        theirs = email.headerregistry.Address(addr_spec=written.decode())
        self.assertEqual((theirs.username, theirs.domain), (local, "a.test"))
        self.assertEqual(
            unquote(email.headerregistry.Address(username=local, domain="a.test").addr_spec.encode()),
            local.encode() + b"@a.test",
        )

    @given(st.binary(min_size=1, max_size=60))
    def test_xtext(self, value: bytes) -> None:
        """RFC 3461 §4, where XCLIENT has it: an encoder from its words, for what a HELO may be."""
        coded = b"".join(b"%c" % one if 33 <= one <= 126 and one not in b"+=" else b"+%02X" % one for one in value)
        try:
            found = parse_xclient(b"HELO=" + coded)[b"HELO"]
        except ValueError:
            self.assertTrue(any(not 32 <= one <= 126 for one in value))
            return
        self.assertEqual(found, None if value.upper() in (b"[UNAVAILABLE]", b"[TEMPUNAVAIL]") else value)

    @given(LOCAL, LOCAL, st.sampled_from([b"dest.test", b"a=b.test", b"[127.0.0.1]"]))
    def test_verp(self, prefix: str, box: str, domain: bytes) -> None:
        """§9.9: who reads the bounce's address from the right, at the last ``=``, gets the recipient back."""
        pattern = prefix.encode() + b"-@host.test-@[]"
        sent = expand(pattern, box.encode() + b"@" + domain)
        local, _, host = sent.rpartition(b"@")
        self.assertEqual(host, b"host.test")
        carried = local.removeprefix(prefix.encode() + b"-")
        self.assertEqual(carried, box.encode() + b"=" + domain)
        self.assertEqual(bounce_address(pattern), prefix.encode() + b"-@host.test")

    def test_verp_vectors(self) -> None:
        """§9.9, and what ezmlm makes of its sender (§27)."""
        self.assertEqual(expand(b"list-@host.test-@[]", b"ok@dest.test"), b"list-ok=dest.test@host.test")
        self.assertEqual(
            expand(b"list-return-7-@host.test-@[]", b"a@b@dest.test"), b"list-return-7-a@b=dest.test@host.test"
        )
        for sender, recipient in (
            (b"list-@host.test", b"a@b"),
            (b"list--@[]", b"a@b"),
            (b"l-@h-@[]", b"a"),
            (b"", b"a@b"),
        ):
            self.assertEqual(expand(sender, recipient), sender)
