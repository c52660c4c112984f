"""A relay that wants a login: TLS first, one connection for each login, trouble (spec/related.md §14.3; issue 9)."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Any

from qtwist.mail.envelope import Report
from qtwist.remote.carrier import TLS_BACK_OFF
from tests.scripted_smtp import ScriptedSMTP
from tests.test_remote_tls import NAME, TLSCase

OFFER = b"250-mx.test\r\n250-STARTTLS\r\n250-PIPELINING\r\n250 AUTH PLAIN CRAM-MD5"
CLEAR = b"250-mx.test\r\n250 AUTH PLAIN"
LOGIN = b"AUTH PLAIN " + b64encode(b"\0us\0se|cret")
TRANSACTION = [b"MAIL", b"RCPT", b"DATA"]


class AuthCase(TLSCase):
    login = b"|us|se|cret"

    def route(self, *addresses: str) -> None:
        self.resolver._addresses[NAME.encode()] = addresses
        self.secret("smtproutes", b":relay.test:%d%b\n" % (self.port, self.login))

    def secret(self, name: str, text: bytes) -> None:
        self.write(f"control/{name}", text)
        os.chmod(f"{self.home}/control/{name}", 0o600)

    def relay(self, pem: bytes | None = None, **script: Any) -> ScriptedSMTP:
        return self.server(pem, **{"EHLO": OFFER, "AUTH": b"235 welcome", **script})


class Routes(AuthCase):
    async def test_login(self) -> None:
        """After TLS with a good certificate; then the connection is used again."""
        server = self.relay()
        for _ in range(2):
            self.assertEqual((await self.deliver()).letter, b"K")
        [session] = server.sessions
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS", b"EHLO", b"AUTH", *TRANSACTION, *TRANSACTION]])
        self.assertIn(LOGIN, session)
        self.assertIn(b"MAIL FROM:<me@example.net> AUTH=<>", session)
        self.assertEqual(self.logged.lines, [])

    async def test_no_good_certificate(self) -> None:
        """The password is not given to whoever stands in between; with authsenderstls 1, any TLS will do."""
        server = self.relay(self.other.certify(NAME))
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"unknown authority. It is demanded by control/authsenderstls", report.text)
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS"]])
        self.write("control/authsenderstls", b"1\n")
        self.assertEqual((await self.deliver()).letter, b"K")

    async def test_in_the_clear(self) -> None:
        """Never, unless control/authsenderstls is 0."""
        for strictness in (b"2\n", b"1\n"):
            self.again()
            self.write("control/authsenderstls", strictness)
            server = self.relay(EHLO=CLEAR)
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z")
            self.assertNotIn(b"AUTH", self.verbs(server)[0])
        self.again()
        self.write("control/authsenderstls", b"0\n")
        server = self.relay(EHLO=CLEAR)
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server), [[b"EHLO", b"AUTH", *TRANSACTION]])

    async def test_tls_that_fails(self) -> None:
        """There is no going on in the clear, not even later."""
        self.write("control/authsenderstls", b"1\n")
        server = self.relay()
        server.tls = None
        for _ in range(2):
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z")
            self.assertIn(b"It is demanded by control/authsenderstls. (#4.7.5)", report.text)
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS"]] * 2)

    async def test_tls_that_fails_where_none_is_demanded(self) -> None:
        """With authsenderstls 0, it goes on in the clear, as with any host."""
        self.write("control/authsenderstls", b"0\n")
        server = self.relay()
        server.tls = None
        self.assertEqual((await self.deliver()).letter, b"K")
        clear = [b"EHLO", b"AUTH", *TRANSACTION]
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS"], clear])
        self.clock.advance(TLS_BACK_OFF - 1)
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server)[2:], [clear])

    async def test_refused(self) -> None:
        """The mail waits: it is our password that is wrong. The log has the name, and nothing has the password."""
        for reply in (b"535 5.7.8 no", b"454 later"):
            self.again()
            self.relay(AUTH=reply)
            report = await self.deliver()
            said = b"Connected to 127.0.0.1 but the login was refused. (#4.7.8)\nRemote host said: %b\n" % reply
            self.assertEqual(report, Report(b"Z", said))
        self.assertEqual(self.logged.lines[-1], "login of us at relay.test (127.0.0.1) failed: the login was refused")
        self.assertNotIn("cret", "".join(self.logged.lines))

    async def test_readable_by_others(self) -> None:
        """A file with a password in it has to be a secret; one without need not."""
        server = self.relay()
        os.chmod(f"{self.home}/control/smtproutes", 0o644)
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(
            b"control/smtproutes: found a password in it, expected a file that others cannot read", report.text
        )
        self.assertEqual(server.sessions, [])
        os.chmod(f"{self.home}/control/smtproutes", 0o640)
        self.assertEqual((await self.deliver()).letter, b"K")


class Senders(AuthCase):
    login = b""

    async def test_senders(self) -> None:
        """A connection belongs to a login; who is not listed has none."""
        server = self.relay()
        self.secret(
            "authsenders",
            b"ann@x.test:relay.test:%d|ann|a\n@x.test:relay.test:%d|x|b\n" % (self.port, self.port),
        )
        for sender in (b"ann@x.test", b"bob@x.test", b"me@y.test", b"ann@x.test"):
            self.assertEqual((await self.deliver(sender=sender)).letter, b"K")
        logins = [[command for command in session if command.startswith(b"AUTH")] for session in server.sessions]
        wanted = [[b"AUTH PLAIN " + b64encode(b"\0" + one)] for one in (b"ann\0a", b"x\0b")]
        self.assertEqual(logins, [*wanted, []])

    async def test_wrong_line(self) -> None:
        self.relay()
        self.secret("authsenders", b":relay.test|us\n")
        report = await self.deliver()
        self.assertEqual(report, Report(b"Z", b"The line for example.org in control/authsenders is wrong. (#4.3.5)\n"))
