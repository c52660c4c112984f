"""Mail that demands TLS all the way, and mail that would rather arrive (RFC 8689), on its way out."""

from __future__ import annotations

import os

import attrs
from twisted.internet.defer import gatherResults, succeed

from qtwist.interfaces import DNSTemporaryError
from qtwist.mail.envelope import Report
from tests.scripted_smtp import ScriptedSMTP
from tests.test_mail_require_tls import MARKED
from tests.test_remote_dane import SignedResolver, record
from tests.test_remote_spawn import BODY, reactor
from tests.test_remote_sts import TEXT
from tests.test_remote_tls import NAME, OFFER, PLAIN, TLSCase

KNOWS = OFFER.replace(b"250 8BITMIME", b"250-8BITMIME\r\n250 REQUIRETLS")
DEMANDING = MARKED + BODY
NOT_OFFERED = b"Connected to 127.0.0.1 but it does not offer REQUIRETLS, which the sender demands. (#5.7.30)\n"


class RouteTests(TLSCase):
    """By a relay of ours, whose name smtproutes has."""

    def setUp(self) -> None:
        super().setUp()
        self.write("control/tlsmemory", b"0\n")

    async def test_good(self) -> None:
        """§4.2: MAIL says it again, after the certificate was verified. Other mail goes over the same connection."""
        server = self.server(EHLO=KNOWS)
        report = await self.deliver(body=DEMANDING)
        self.assertIn(b"certificate verified.", report.text)
        await self.deliver()
        mails = [command for command in server.sessions[0] if command.startswith(b"MAIL")]
        self.assertEqual([mail.endswith(b" REQUIRETLS") for mail in mails], [True, False])

    async def test_not_offered(self) -> None:
        """§4.2.1 step 3: what the server does not know cannot be asked of it; nothing is sent, the mail comes back."""
        server = self.server()
        self.assertEqual(await self.deliver(body=DEMANDING), Report.failure(NOT_OFFERED))
        self.assertEqual(await self.deliver(body=DEMANDING), Report.failure(NOT_OFFERED), "nor over an open connection")
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server)[0][-3:], [b"MAIL", b"RCPT", b"DATA"])
        self.assertEqual([verbs.count(b"MAIL") for verbs in self.verbs(server)], [1, 0][: len(server.sessions)])

    async def test_no_good_certificate(self) -> None:
        for change in ({"pem": self.other.certify(NAME)}, {"EHLO": PLAIN}, {"EHLO": PLAIN + b"\r\n250 REQUIRETLS"}):
            self.again()
            server = self.server(**change)  # type: ignore[arg-type]
            report = await self.deliver(body=DEMANDING)
            self.assertEqual(report.letter, b"Z", report.text)
            self.assertIn(b"It is demanded by the sender (REQUIRETLS). (#4.7.5)", report.text)
            self.assertNotIn(b"MAIL", self.verbs(server)[0])

    async def test_where_tls_is_switched_off(self) -> None:
        """control/notlshosts does not break a promise that was given to others."""
        os.makedirs(f"{self.home}/control/notlshosts")
        self.write(f"control/notlshosts/{NAME}", b"")
        server = self.server(EHLO=KNOWS)
        self.assertEqual(await self.deliver(body=DEMANDING), Report.failure(NOT_OFFERED))
        self.assertNotIn(b"MAIL", self.verbs(server)[0])

    async def test_the_next_host(self) -> None:
        """One that knows it is found behind one that does not; and one that may know it tomorrow is waited for."""
        pem = self.creator(self.authority.certify(NAME))
        first, second = ScriptedSMTP(EHLO=OFFER, STAR=b"220 go"), ScriptedSMTP(EHLO=KNOWS, STAR=b"220 go")
        first.tls = second.tls = pem
        self.serve(first, second)
        self.assertIn(b"127.0.0.2 accepted message", (await self.deliver(body=DEMANDING)).text)
        self.again()
        first, second = ScriptedSMTP(EHLO=OFFER, STAR=b"220 go"), ScriptedSMTP(greeting=b"421 later")
        first.tls = pem
        self.serve(first, second)
        self.assertEqual((await self.deliver(body=DEMANDING)).letter, b"Z")

    async def test_not_by_qmtp(self) -> None:
        """QMTP cannot pass it on."""
        self.server(EHLO=KNOWS)
        by_qmtp = ScriptedSMTP()
        port = reactor.listenTCP(0, by_qmtp, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.write("control/qmtproutes", b":relay.test:%d\n" % port.getHost().port)
        self.assertEqual((await self.deliver(body=DEMANDING)).letter, b"K")
        self.assertEqual(by_qmtp.sessions, [])

    async def test_several_recipients(self) -> None:
        """In one transaction, each gets the report."""
        self.server()
        both = [
            self.spawner.deliver(attrs.evolve(self.delivery(name, body=DEMANDING, number=5), siblings=2))
            for name in (b"a@example.org", b"b@example.org")
        ]
        self.assertEqual(await gatherResults(both), [Report.failure(NOT_OFFERED)] * 2)


class ExchangerTests(TLSCase):
    """To the mail exchangers of a domain: somebody has to vouch for them (§4.2.1 step 1)."""

    def setUp(self) -> None:
        super().setUp()
        self.write("control/tlsmemory", b"0\n")
        self.signed = SignedResolver({b"example.org": [(10, b"relay.test")]})
        self.resolver = self.signed

    def exchanger(self, **script: bytes) -> ScriptedSMTP:
        server = self.server(**{"EHLO": KNOWS, **script})  # type: ignore[arg-type]
        port = reactor.listenTCP(self.port, server, interface="127.0.0.2")
        self.addCleanup(port.stopListening)
        self.signed._addresses[b"relay.test"] = ["127.0.0.2"]  # 127.0.0.1 is our own address
        self.write("control/smtproutes", b"example.org::%d\n" % self.port)
        return server

    async def test_nobody_vouches(self) -> None:
        """A good certificate for a name that anybody may have put into the DNS is worth nothing."""
        server = self.exchanger()
        report = await self.deliver(body=DEMANDING)
        self.assertEqual(report.letter, b"D")
        self.assertIn(
            b"neither DNSSEC nor MTA-STS vouches for the mail exchangers of example.org. (#5.7.30)", report.text
        )
        self.assertEqual(server.sessions, [])
        self.assertEqual((await self.deliver()).letter, b"K")

    async def test_signed(self) -> None:
        """DNSSEC says who the exchangers are; the certificate may then be good by name alone."""
        self.write("control/dane", b"1\n")
        server = self.exchanger()
        self.assertEqual((await self.deliver(body=DEMANDING)).letter, b"K")
        self.assertTrue(server.sessions[0][3].endswith(b" REQUIRETLS"), server.sessions)
        self.signed.unsigned.add(b"relay.test")
        self.assertEqual((await self.deliver(body=DEMANDING)).letter, b"D")

    async def test_tlsa(self) -> None:
        self.write("control/dane", b"1\n")
        own = self.other.certify(NAME)
        self.exchanger(pem=own)
        one = record(own)
        name = b"_%d._tcp.relay.test" % self.port
        self.signed.records[name] = [(one.usage, one.selector, one.matching, one.data)]
        self.assertIn(b"verified by DANE", (await self.deliver(body=DEMANDING)).text)

    async def test_sts(self) -> None:
        """An enforced policy that names them is as good."""
        self.write("control/mtasts", b"1\n")
        self.signed.texts[b"_mta-sts.example.org"] = [b"v=STSv1; id=1"]
        text = TEXT.replace(b"mx1.example.org", b"relay.test")
        self.exchanger()
        self.spawner._policies._fetch = lambda host, path: succeed(text)
        self.assertEqual((await self.deliver(body=DEMANDING)).letter, b"K")

    async def test_no_answer(self) -> None:
        """Who cannot be asked now is asked later."""
        self.write("control/dane", b"1\n")
        self.exchanger()
        self.signed.texts[b"arpa"] = DNSTemporaryError("no")
        report = await self.deliver(body=DEMANDING)
        self.assertEqual(report.letter, b"Z", report.text)

    async def test_waived(self) -> None:
        """§5: TLS-Required: No. Neither TLSA records nor a policy nor our memory stand in its way."""
        waiving = b"TLS-Required: No\n" + BODY
        self.write("control/dane", b"1\n")
        self.write("control/tlsmemory", b"1\n")
        self.exchanger()
        self.assertIn(b"certificate verified", (await self.deliver()).text)
        self.again()
        self.exchanger(EHLO=PLAIN)
        one = record(self.other.certify(NAME))
        name = b"_%d._tcp.relay.test" % self.port
        self.signed.records[name] = [(one.usage, one.selector, one.matching, one.data)]
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.assertEqual((await self.deliver(body=waiving)).letter, b"K")
