"""TLS with other hosts: opportunistic, demanded, remembered, from the start (spec/related.md §14.3; RFC 3207, 6125)."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.envelope import Report
from qtwist.remote import carrier, client, tlsrpt
from qtwist.remote.carrier import TLS_BACK_OFF
from qtwist.remote.tlsrpt import STS, TLSFigures
from qtwist.remote.tlsseen import LIFETIME, RECORDS, SIZE, WAYS, SeenTLS
from qtwist.tls.certificates import Creator
from qtwist.tls.contexts import SERVER_CIPHERS, read_authorities, read_identity, server_context
from tests.certificates import Authority
from tests.scripted_smtp import CLOSE, HANG, ScriptedSMTP
from tests.test_remote_spawn import SpawnerCase, reactor
from tests.test_tls_servers import Logged

OFFER = b"250-mx.test\r\n250-STARTTLS\r\n250-PIPELINING\r\n250 8BITMIME"
PLAIN = b"250-mx.test\r\n250 PIPELINING"
NAME = "relay.test"
DAY = 86400
NAMES = (b"a.test", b"b.test", b"c.test")


class TLSCase(SpawnerCase):
    authority = Authority()
    other = Authority("Somebody else")

    def setUp(self) -> None:
        super().setUp()
        self.logged = Logged(self)
        self.write("authority.pem", self.authority.pem)
        before = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = os.path.abspath(f"{self.home}/authority.pem")
        self.addCleanup(self.restore, before)

    def restore(self, before: str | None) -> None:
        del os.environ["SSL_CERT_FILE"]
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before

    def creator(self, pem: bytes, clients: bytes | None = None) -> Creator:
        """What a server needs to show a certificate."""
        self.write("server.pem", pem)
        path = f"{self.home}/server.pem"
        authorities = None
        if clients is not None:
            self.write("clients.pem", clients)
            authorities = read_authorities(f"{self.home}/clients.pem")
        return Creator(server_context(read_identity(path), path, SERVER_CIPHERS, path, authorities))

    def server(self, pem: bytes | None = None, **script: Any) -> ScriptedSMTP:
        """A server at relay.test that offers STARTTLS with this certificate, by default a good one."""
        server = ScriptedSMTP(**{"EHLO": OFFER, "STAR": b"220 go ahead", **script})
        server.tls = self.creator(self.authority.certify(NAME) if pem is None else pem)
        self.serve(server)
        return server

    def demand(self, text: bytes = b"", name: str = NAME) -> None:
        os.makedirs(f"{self.home}/control/tlshosts", exist_ok=True)
        self.write(f"control/tlshosts/{name}.pem", text)

    def again(self) -> None:
        """Another daemon, and another port."""
        self.made, self.port = None, 0

    def verbs(self, server: ScriptedSMTP) -> list[list[bytes]]:
        return [[command.split()[0] for command in session] for session in server.sessions]


class Opportunistic(TLSCase):
    async def test_where_it_is_offered(self) -> None:
        """The whole dialogue; the report says how, and that the certificate was good. The connection is used again."""
        server = self.server()
        report = await self.deliver()
        self.assertEqual(report.letter, b"K")
        self.assertEqual(
            report.text,
            b"127.0.0.1 accepted message.\nRemote host said: 250-ok\n250 queued\n"
            b"TLSv1.3 TLS_AES_256_GCM_SHA384, certificate verified.\n",
        )
        self.assertEqual((await self.deliver(body=b"x" * 3_000_000)).letter, b"K")
        transaction = [b"MAIL", b"RCPT", b"DATA"]
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS", b"EHLO", *transaction, *transaction]])
        self.assertEqual(len(server.messages[1]), 3_000_000 + len(b"\r\n.\r\n"))
        self.assertEqual(self.logged.lines, [])

    async def test_a_certificate_that_is_not_good(self) -> None:
        """Encryption is better than none; the report tells what was wrong."""
        for pem, why in (
            (self.other.certify(NAME), b"the certificate comes from an unknown authority"),
            (self.authority.certify(NAME, days=-1), b"the certificate has expired"),
            (self.authority.certify("mx.test"), b"the certificate is not for relay.test"),
            (self.authority.certify(), b"the certificate is not for relay.test"),
        ):
            self.again()
            server = self.server(pem)
            report = await self.deliver()
            self.assertEqual(report.letter, b"K")
            self.assertRegex(report.text.splitlines()[-1], rb"^TLSv1\.3 [A-Z0-9_]+, not verified: %s\.$" % why)
            self.assertEqual(self.verbs(server)[0][:3], [b"EHLO", b"STARTTLS", b"EHLO"])

    async def test_ciphers(self) -> None:
        """control/tlsclientciphers says which are offered up to TLS 1.2."""
        for cipher in (b"ECDHE-ECDSA-AES256-GCM-SHA384", b"ECDHE-ECDSA-AES128-GCM-SHA256"):
            self.again()
            server = self.server()
            path = f"{self.home}/server.pem"
            context = server_context(read_identity(path), path, SERVER_CIPHERS, path, None)
            context.set_max_proto_version(SSL.TLS1_2_VERSION)
            server.tls = Creator(context)
            self.write("control/tlsclientciphers", cipher + b"\n")
            self.assertIn(b"TLSv1.2 %b, certificate verified" % cipher, (await self.deliver()).text)

    async def test_refused(self) -> None:
        """454: the session goes on in the clear."""
        server = self.server(STAR=b"454 not now")
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server), [[b"EHLO", b"STARTTLS", b"MAIL", b"RCPT", b"DATA"]])

    async def test_a_handshake_that_fails(self) -> None:
        """The mail goes in the clear, over another connection; the log tells, and for an hour TLS is left alone
        there."""
        server = self.server()
        server.tls = None  # it goes on in the clear itself
        self.assertEqual((await self.deliver()).text.count(b"\n"), 3)
        clear = [b"EHLO", b"MAIL", b"RCPT", b"DATA"]
        self.assertEqual(self.verbs(server)[1:], [clear])
        [line] = self.logged.lines
        self.assertTrue(line.startswith("TLS with relay.test (127.0.0.1) failed: "), line)
        self.assertTrue(line.endswith("; mail goes there in the clear for the next 3600 s"), line)
        self.clock.advance(TLS_BACK_OFF - 1)
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server)[2:], [clear])
        self.clock.advance(5)
        server.tls = self.creator(self.authority.certify(NAME))
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertEqual(self.verbs(server)[3][:3], [b"EHLO", b"STARTTLS", b"EHLO"])

    async def test_a_handshake_without_end(self) -> None:
        server = self.server()
        server.tls = None
        server.script["STAR"] = HANG
        heard = server.heard("STAR")
        report = self.deliver()
        await heard
        server.open[0].transport.write(b"220 go ahead\r\n")
        await self.turn()
        self.clock.advance(client.HANDSHAKE_WAIT)
        self.assertEqual((await report).letter, b"K")
        self.assertIn("failed: the handshake was not over in 60 seconds", self.logged.lines[0])

    async def test_injection(self) -> None:
        """A man in the middle who answers for the server before TLS gets no mail."""
        server = self.server(STAR=b"220 go\r\n250 mx.test")
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"its reply to STARTTLS makes no sense", report.text)
        self.assertNotIn(b"MAIL", self.verbs(server)[0])

    async def test_dead_at_starttls(self) -> None:
        self.server(STAR=CLOSE)
        report = await self.deliver()
        self.assertIn(b"connection died", report.text)

    async def test_our_certificate(self) -> None:
        """clientcert.pem is for those who ask."""
        clients = Authority("Clients")
        server = self.server()
        server.tls = self.creator(self.authority.certify(NAME), clients.pem)
        self.write("control/clientcert.pem", clients.certify(email="us@me.test"))
        heard = server.heard("MAIL")
        report = self.deliver()
        await heard
        shown = server.open[0].transport.getPeerCertificate()
        self.assertEqual(shown.get_subject().emailAddress, "us@me.test")
        self.assertEqual((await report).letter, b"K")
        self.write("control/clientcert.pem", b"nothing")
        self.clock.advance(6)
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertIn("clientcert.pem: found no certificate", self.logged.lines[0])
        self.again()
        self.server()
        self.assertIn(b"clientcert.pem", (await self.deliver()).text)

    async def test_never(self) -> None:
        """notlshosts/HOST, and tlshosts/exhaustivelist."""
        os.makedirs(f"{self.home}/control/notlshosts")
        self.write(f"control/notlshosts/{NAME}", b"")
        server = self.server()
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertNotIn(b"STARTTLS", self.verbs(server)[0])
        os.unlink(f"{self.home}/control/notlshosts/{NAME}")
        self.demand(name="other.test")
        self.write("control/tlshosts/exhaustivelist", b"")
        self.again()
        server = self.server()
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertNotIn(b"STARTTLS", self.verbs(server)[0])

    async def test_from_the_start(self) -> None:
        """Port 465 in smtproutes; there is no way back to the clear."""
        server = self.server()
        server.immediate = True
        self.write("control/tlsmemory", b"0\n")
        self.patch(carrier, "SMTPS_PORT", self.port)
        report = await self.deliver()
        self.assertIn(b"certificate verified", report.text)
        self.assertEqual(self.verbs(server), [[b"EHLO", b"MAIL", b"RCPT", b"DATA"]])
        server.immediate = False
        self.clock.advance(6)
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertRegex(report.text, rb"TLS failed: .*\. It is demanded by port \d+\. \(#4\.7\.5\)")

    async def test_an_address(self) -> None:
        """A certificate may be for an IP address."""
        self.server(self.authority.certify("127.0.0.1"))
        self.write("control/smtproutes", b":[127.0.0.1]:%d\n" % self.port)
        self.assertIn(b"certificate verified", (await self.deliver()).text)


class Demanded(TLSCase):
    async def test_good(self) -> None:
        """By the authorities of the file alone; by the system's when it is empty; by the very certificate."""
        own = self.other.certify(NAME)
        for pem, demand in (
            (self.other.certify(NAME), self.other.pem),
            (self.authority.certify(NAME), b""),
            (own, own.split(b"-----BEGIN PRIVATE")[0]),
        ):
            self.again()
            self.demand(demand)
            self.server(pem)
            report = await self.deliver()
            self.assertTrue(report.text.endswith(b"certificate verified.\n"), report.text)
            # What a file of ours vouches for is not what the world would think good.
            self.assertEqual(os.path.exists(f"{self.home}/queue/lock/tlsseen"), not demand)
            if not demand:
                os.unlink(f"{self.home}/queue/lock/tlsseen")

    async def check_refused(self, server: ScriptedSMTP, why: bytes) -> None:
        report = await self.deliver()
        self.assertEqual(
            report,
            Report.deferral(
                b"Connected to 127.0.0.1 but TLS failed: %b."
                b" It is demanded by control/tlshosts/relay.test.pem. (#4.7.5)\n" % why
            ),
        )
        self.assertFalse([verb for session in self.verbs(server) for verb in session if verb == b"MAIL"])
        self.assertEqual(len(server.sessions), 1)

    async def test_not_good(self) -> None:
        """Nothing is sent, and nobody tries in the clear."""
        self.demand(self.authority.pem)
        unknown = b"the certificate comes from an unknown authority"
        for pem, why in (
            (self.other.certify(NAME), unknown),
            (self.authority.certify(NAME, days=-1), b"the certificate has expired"),
            (self.authority.certify("mx.test"), b"the certificate is not for relay.test"),
        ):
            self.again()
            await self.check_refused(self.server(pem), why)
        self.again()
        await self.check_refused(self.server(EHLO=PLAIN), b"STARTTLS is not offered")
        self.again()
        await self.check_refused(self.server(STAR=b"454 no"), b"STARTTLS was refused")
        self.again()
        await self.check_refused(self.server(EHLO=b"502 no"), b"STARTTLS is not offered")

    async def test_a_handshake_that_fails(self) -> None:
        self.demand(self.authority.pem)
        server = self.server()
        server.tls = None
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"TLS failed", report.text)
        self.assertEqual(len(server.sessions), 1)

    async def test_the_next_host(self) -> None:
        """A host without TLS is no reason not to try another one."""
        self.demand(self.authority.pem)
        first = ScriptedSMTP()
        second = ScriptedSMTP(EHLO=OFFER, STAR=b"220 go")
        second.tls = self.creator(self.authority.certify(NAME))
        self.serve(first, second)
        self.assertIn(b"127.0.0.2 accepted message", (await self.deliver()).text)

    async def test_an_open_connection(self) -> None:
        """One that was good enough before the demand is not used for it; nor is QMTP."""
        server = self.server(self.other.certify(NAME))
        self.assertEqual((await self.deliver()).letter, b"K")
        self.demand(self.authority.pem)
        by_qmtp = ScriptedSMTP()
        port = reactor.listenTCP(0, by_qmtp, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.write("control/qmtproutes", b":relay.test:%d\n" % port.getHost().port)
        self.write("control/smtproutes", b":relay.test:%d\n" % self.port)
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.assertEqual((len(server.sessions), len(by_qmtp.sessions)), (2, 0))

    async def test_a_file_that_is_none(self) -> None:
        self.demand(b"nothing")
        server = self.server()
        report = await self.deliver()
        self.assertEqual(report.letter, b"Z")
        self.assertIn(b"relay.test.pem: found no certificate that can be read, expected one in PEM", report.text)
        self.assertEqual(server.sessions, [])

    async def test_odd_names(self) -> None:
        """A host's name from the DNS leads to no file but its own."""
        self.demand(b"", name="x")
        for name in (b"../tlshosts/x", b"x/.", b"\xff", b"a" * 300):
            self.assertFalse(self.spawner._carrier._tls.files.demand(name.decode("latin-1")).verified)  # type: ignore[union-attr]
        self.assertTrue(self.spawner._carrier._tls.files.demand("X.").verified)  # type: ignore[union-attr]


class Remembered(TLSCase):
    """A domain that had a good certificate: TLS is not given up in silence (issue 9 item 1)."""

    async def test_downgrade(self) -> None:
        """For a day mail is kept back, through a restart too; then it goes, and the log tells."""
        good = self.server()
        self.assertIn(b"certificate verified", (await self.deliver()).text)
        await self.stop(self.spawner)
        await good.empty()
        for change in ({"EHLO": PLAIN}, {"pem": self.other.certify(NAME)}, {"STAR": b"454 no"}):
            self.again()
            bad = self.server(**change)
            report = await self.deliver()
            self.assertEqual(report.letter, b"Z", change)
            self.assertRegex(
                report.text, rb"It is demanded by the good certificate that the domain had before \(control/tlsmemory\)"
            )
            self.assertNotIn(b"MAIL", self.verbs(bad)[0])
            self.assertEqual(len(self.logged.find("mail for relay.test is kept back: it had a good certificate")), 1)
            self.logged.lines.clear()
        self.clock.advance(DAY - 1)
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.clock.advance(1)
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.assertEqual(len(self.logged.find("relay.test has no good certificate any more (STARTTLS was refused)")), 1)
        self.assertEqual((await self.deliver()).letter, b"K")

    async def test_it_comes_back(self) -> None:
        """A certificate that is good again is remembered anew."""
        server = self.server()
        await self.deliver()
        self.clock.advance(6)
        server.script["EHLO"] = PLAIN
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.clock.advance(DAY - 10)
        server.script["EHLO"] = OFFER
        self.assertEqual((await self.deliver()).letter, b"K")
        self.clock.advance(20)
        server.script["EHLO"] = PLAIN
        for _ in range(2):
            self.assertEqual((await self.deliver()).letter, b"Z")

    async def test_switched_off(self) -> None:
        self.write("control/tlsmemory", b"0\n")
        server = self.server()
        await self.deliver()
        self.clock.advance(6)
        server.script["EHLO"] = PLAIN
        self.assertEqual((await self.deliver()).letter, b"K")

    async def test_what_was_not_good(self) -> None:
        server = self.server(self.other.certify(NAME))
        await self.deliver()
        self.clock.advance(6)
        server.script["EHLO"] = PLAIN
        self.assertEqual((await self.deliver()).letter, b"K")
        self.assertFalse(os.path.exists(f"{self.home}/queue/lock/tlsseen"))


class Memory(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.now = 1_700_000_000.0
        self.seen = self.again()

    def again(self) -> SeenTLS:
        return SeenTLS(self.path, lambda: self.now)

    def test_over_a_restart(self) -> None:
        self.seen.good(b"Example.ORG.")
        seen = self.again()
        self.assertTrue(seen.demands(b"example.org"))
        self.assertFalse(seen.demands(b"example.com"))
        self.assertFalse(seen.failed(b"example.org", 10))
        self.now += 10
        self.assertTrue(self.again().failed(b"example.org", 10))
        self.assertFalse(self.again().demands(b"example.org"))
        self.assertFalse(self.again().failed(b"example.org", 10))
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_lifetime(self) -> None:
        """What was good is known for 90 days from the last time; that is written once a day."""
        self.seen.good(b"a")
        self.now += DAY - 1
        self.seen.good(b"a")
        self.now += LIFETIME - DAY
        self.assertTrue(self.seen.demands(b"a"))
        self.now += 1
        self.assertFalse(self.seen.demands(b"a"))

    def test_no_file(self) -> None:
        seen = SeenTLS(self.mktemp() + "/no/where", lambda: self.now)
        seen.good(b"a")
        self.assertTrue(seen.demands(b"a"))

    def test_odd_files(self) -> None:
        for contents in (b"", b"x" * 100, os.urandom(SIZE + 17)):
            with open(self.path, "wb") as file:
                file.write(contents)
            seen = self.again()
            self.assertFalse(seen.demands(b"nobody.test"))
            seen.good(b"a")
            self.assertTrue(self.again().demands(b"a"))

    @given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from("gfr"), st.integers(0, 3))))
    def test_as_a_dictionary_has_it(self, steps: list[tuple[bytes, str, int]]) -> None:
        """However it is used and restarted, it knows what a dictionary would."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        seen, model = self.again(), dict[bytes, int]()
        for domain, step, seconds in steps:
            self.now += seconds
            if step == "r":
                seen = self.again()
            elif step == "g":
                seen.good(domain)
                model[domain] = 0
            elif domain in model:
                since = model[domain] or int(self.now)
                model[domain] = since
                forgotten = seen.failed(domain, 5)
                self.assertEqual(forgotten, self.now - since >= 5)
                if forgotten:
                    del model[domain]
            for name in NAMES:
                self.assertEqual(seen.demands(name), name in model)

    def test_many(self) -> None:
        """More domains than have room: the last ones are known, and the file does not grow."""
        for number in range(3 * RECORDS):
            self.now += 1
            if number % 3 == 0:
                self.seen.good(b"%d.test" % number)
        self.assertEqual(os.path.getsize(self.path) <= SIZE, True)
        known = [number for number in range(0, 3 * RECORDS, 3) if self.seen.demands(b"%d.test" % number)]
        self.assertGreater(len(known), RECORDS * 3 // 4)
        self.assertEqual(known[-1], 3 * RECORDS - 3)
        self.assertEqual(RECORDS % WAYS, 0)


class Figures(TLSCase):
    """RFC 8460 §4: sessions by domain, policy and result."""

    async def test_sessions(self) -> None:
        self.write("control/tlsmemory", b"0\n")
        for change in ({}, {"EHLO": PLAIN}, {"STAR": b"454 no"}):
            server = self.server(**change)
            self.assertEqual((await self.deliver()).letter, b"K")
            self.clock.advance(6)
            await server.empty()
            self.port = 0
        self.demand(self.authority.pem)
        self.server(self.authority.certify("mx.test"))
        self.assertEqual((await self.deliver()).letter, b"Z")
        self.logged.lines.clear()
        self.spawner._figures.tell()
        self.assertEqual(
            self.logged.lines,
            [
                "TLS figures of 2023-11-14 for relay.test (no-policy-found): 1 sessions good, 3 failed,"
                " certificate-host-mismatch 1, starttls-not-supported 2"
            ],
        )

    def test_days(self) -> None:
        """A day is told when the next one has begun; too many domains are one."""
        now = [1_700_000_000.0]
        figures = TLSFigures(lambda: now[0])
        self.patch(tlsrpt, "MOST_DOMAINS", 2)
        for domain in (b"b.test", b"A.test", b"c.test", b"d.test"):
            figures.count(domain, STS, "the certificate has expired")
        self.assertEqual(self.logged.lines, [])
        now[0] += DAY
        figures.count(b"a.test", STS, None)
        self.assertEqual(
            self.logged.lines,
            [
                f"TLS figures of 2023-11-14 for {name} (sts): 0 sessions good, {number} failed,"
                f" certificate-expired {number}"
                for name, number in (("*", 2), ("a.test", 1), ("b.test", 1))
            ],
        )
        for why, result in (
            ("the certificate comes from an unknown authority", "certificate-not-trusted"),
            ("wrong version number", "validation-failure"),
        ):
            self.assertEqual(tlsrpt.result_type(why), result)
