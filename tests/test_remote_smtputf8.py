"""Addresses in letters of all the world on their way out (RFC 6531 §3)."""

from __future__ import annotations

from qtwist.mail.envelope import Report
from tests.scripted_smtp import ScriptedSMTP
from tests.test_mail_domains import BOOKS, BOOKS_ASCII, RECEIVED
from tests.test_remote_spawn import SpawnerCase

KNOWS = b"250-mx.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 PIPELINING"
MUELLER = "müller@example.org".encode()
LACKING = (
    b"Connected to 127.0.0.1 but it does not offer SMTPUTF8, which addresses or header of this message need. (#5.6.7)\n"
)


class OutTests(SpawnerCase):
    def server(self, ehlo: bytes = KNOWS) -> ScriptedSMTP:
        server = ScriptedSMTP(EHLO=ehlo)
        self.serve(server)
        return server

    async def test_to_one_that_knows_it(self) -> None:
        """The local part as it is, without quotes that it does not need (§3.3); the domain in ASCII."""
        server = self.server()
        recipient = "jürgen@".encode() + BOOKS
        self.assertEqual((await self.deliver(recipient, sender=MUELLER)).letter, b"K")
        mail, rcpt = server.sessions[0][1:3]
        self.assertTrue(mail.startswith("MAIL FROM:<müller@example.org>".encode()), mail)
        self.assertTrue(mail.endswith(b" SMTPUTF8"), mail)
        self.assertEqual(rcpt, "RCPT TO:<jürgen@".encode() + BOOKS_ASCII + b">")

    async def test_to_one_that_does_not(self) -> None:
        """§3.6: it comes back; nothing was said of it."""
        server = self.server(b"250 mx.test")
        self.assertEqual(await self.deliver(MUELLER), Report.failure(LACKING))
        self.assertEqual(await self.deliver(sender=MUELLER), Report.failure(LACKING))
        body = RECEIVED + "Subject: für\n\n".encode()
        self.assertEqual(await self.deliver(body=body), Report.failure(LACKING))
        self.assertNotIn(b"MAIL", [command[:4] for session in server.sessions for command in session])

    async def test_the_next_host(self) -> None:
        first, second = ScriptedSMTP(EHLO=b"250 mx.test"), ScriptedSMTP(EHLO=KNOWS)
        self.serve(first, second)
        self.assertIn(b"127.0.0.2 accepted message", (await self.deliver(MUELLER)).text)

    async def test_domains_need_nothing(self) -> None:
        """Their MX records are those of the A-label, and so is the route."""
        server = self.server(b"250 mx.test")
        self.write("control/smtproutes", BOOKS + b":relay.test:%d\n" % self.port)
        self.assertEqual((await self.deliver(b"joe@" + BOOKS)).letter, b"K")
        self.assertEqual(server.sessions[0][2], b"RCPT TO:<joe@" + BOOKS_ASCII + b">")
        self.write("control/smtproutes", b"")
        await self.deliver(b"joe@" + BOOKS)
        self.assertIn(("mx", BOOKS_ASCII), self.resolver.asked)

    async def test_letters_that_nobody_has_named(self) -> None:
        """Latin-1 in an address, 8-bit letters in a header: as ever."""
        server = self.server()
        self.assertEqual((await self.deliver(b"m\xfcller@example.org", body=b"Subject: f\xc3\xbcr\n\n")).letter, b"K")
        self.assertNotIn(b"SMTPUTF8", b"".join(server.sessions[0]))
