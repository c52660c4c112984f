"""DANE for mail: certificates against TLSA records, and when those are believed (RFC 6698, RFC 7671, RFC 7672)."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from qtwist.dns.resolver import make_resolver
from qtwist.interfaces import Answer, DNSTemporaryError
from qtwist.remote.dane import ANYWHERE, DANE, ON_THIS_HOST
from qtwist.remote.hosts import Host
from qtwist.remote.lookup import find_hosts
from qtwist.remote.routes import Relay
from qtwist.tls.dane import NO_MATCH, TLSA, problem, public_key_info, usable
from tests.certificates import Authority
from tests.test_remote_hosts import FakeResolver
from tests.test_remote_spawn import reactor
from tests.test_remote_sts import TEXT
from tests.test_remote_tls import OFFER, PLAIN, TLSCase
from tests.test_tls_servers import Logged

NAME = "relay.test"
DIGESTS: dict[int, Any] = {
    0: bytes,
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def record(pem: bytes, usage: int = 3, selector: int = 1, matching: int = 1) -> TLSA:
    certificate = load(pem)
    if selector:
        selected = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        selected = certificate.public_bytes(Encoding.DER)
    return TLSA(usage, selector, matching, DIGESTS[matching](selected))


class SignedResolver(FakeResolver):
    """A validating resolver: `unsigned` names have no AD bit; `here` says whether it is on this host."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.records: dict[bytes, Any] = {}
        self.texts: dict[bytes, Any] = {b"arpa": []}
        self.unsigned = {b"10.in-addr.arpa"}
        self.here = True

    def txt(self, name: bytes) -> Deferred[Answer]:
        return self._answer("txt", self.texts, name)

    def tlsa(self, name: bytes) -> Deferred[Answer]:
        return self._answer("tlsa", self.records, name)

    def local(self) -> bool:
        return self.here

    def _answer(self, kind: str, known: dict[bytes, Any], name: bytes) -> Deferred[Answer]:
        answer = super()._answer(kind, known, name)
        return answer.addCallback(lambda one: Answer(one.status, one.records, name not in self.unsigned))


class Records(SynchronousTestCase):
    authority = Authority()
    other = Authority("Somebody else")

    def held(self, pem: bytes, *records: TLSA, chain: tuple[bytes, ...] = (), name: str | None = None) -> str | None:
        self.assertEqual(usable(records), records)
        return problem([load(one) for one in (pem, *chain)], records, lambda: name)

    def test_end_entity(self) -> None:
        """RFC 7671 §5.1: every selector and matching type; neither name nor dates count."""
        pem = self.authority.certify(NAME, days=-1)
        for selector in (0, 1):
            for matching in (0, 1, 2):
                good = record(pem, 3, selector, matching)
                self.assertIsNone(self.held(pem, good, name="the certificate is not for relay.test"))
                another = record(self.authority.certify(NAME), 3, selector, matching)
                self.assertEqual(self.held(pem, another), NO_MATCH)
                self.assertIsNone(self.held(pem, another, good))

    def test_authority(self) -> None:
        """RFC 7671 §5.2: what the host shows leads to it; name and dates count."""
        pem, above = self.authority.certify(NAME), self.authority.pem
        for selector in (0, 1):
            for matching in (0, 1, 2):
                good = record(above, 2, selector, matching)
                self.assertIsNone(self.held(pem, good, chain=(above,)))
                self.assertEqual(self.held(pem, good, chain=(above,), name="another name"), "another name")
                self.assertIsNotNone(self.held(pem, record(self.other.pem, 2, selector, matching), chain=(above,)))
                # §5.2.2: without the authority in the chain there is only what stands in the record.
                wanted = None if (selector, matching) == (0, 0) else NO_MATCH
                self.assertEqual(self.held(pem, good), wanted)
        old = self.authority.certify(NAME, days=-1)
        self.assertIn("expired", str(self.held(old, record(above, 2), chain=(above,))))

    def test_an_authority_that_did_not_sign(self) -> None:
        """To show somebody's certificate beside one's own proves nothing."""
        pem = self.other.certify(NAME)
        why = self.held(pem, record(self.authority.pem, 2), chain=(self.authority.pem,))
        self.assertIn("not good by the TLSA records", str(why))
        forged = self.other.certify(NAME)
        self.assertIsNotNone(self.held(forged, record(self.authority.pem, 2, 0, 0), chain=(self.authority.pem,)))
        # The host's own certificate is no authority, even if a record says so.
        self.assertEqual(self.held(pem, record(pem, 2)), NO_MATCH)

    def test_usable(self) -> None:
        """RFC 7672 §3.1.3: PKIX usages mean nothing to mail; RFC 7671 §9: the stronger digest counts."""
        digest = bytes(32)
        for wrong in (
            TLSA(0, 1, 1, digest),
            TLSA(1, 1, 1, digest),
            TLSA(4, 1, 1, digest),
            TLSA(3, 2, 1, digest),
            TLSA(3, 1, 3, digest),
            TLSA(3, 1, 1, digest[1:]),
            TLSA(3, 1, 2, digest),
            TLSA(3, 1, 0, b""),
        ):
            self.assertEqual(usable([wrong]), (), wrong)
        weak, strong = TLSA(3, 1, 1, digest), TLSA(3, 1, 2, bytes(64))
        self.assertEqual(usable([weak, strong]), (strong,))
        self.assertEqual(usable([weak, TLSA(2, 1, 2, bytes(64))]), (weak, TLSA(2, 1, 2, bytes(64))))
        self.assertLess(len(usable([TLSA(3, 1, 1, bytes([number]) * 32) for number in range(200)])), 100)

    def test_no_certificate(self) -> None:
        self.assertEqual(problem([], (TLSA(3, 1, 1, bytes(32)),), lambda: None), NO_MATCH)
        self.assertEqual(self.held(self.authority.certify(NAME), TLSA(2, 0, 0, b"no certificate")), NO_MATCH)

    @given(st.binary(max_size=200), st.integers(0, 400))
    def test_key_of_any_octets(self, junk: bytes, cut: int) -> None:
        """The key, or ValueError."""
        tbs = load(self.authority.pem).tbs_certificate_bytes
        for data in (junk, tbs[:cut], tbs[:cut] + junk):
            try:
                public_key_info(data)
            except ValueError:
                continue


class Believed(SynchronousTestCase):
    """When the AD bit counts, and what follows from the answers (RFC 7672 §2)."""

    def setUp(self) -> None:
        self.resolver = SignedResolver(
            {b"example.org": [(10, b"mx1.test"), (20, b"mx2.test")]},
            {b"mx1.test": ["192.0.2.1"], b"mx2.test": ["192.0.2.2"], b"plain.test": ["192.0.2.3"]},
        )
        self.good = TLSA(3, 1, 1, bytes(32))
        for name in (b"_25._tcp.mx1.test", b"_25._tcp.mx2.test", b"_25._tcp.plain.test"):
            self.resolver.records[name] = [(3, 1, 1, bytes(32))]
        self.logged = Logged(self)
        self.dane = DANE(self.resolver)

    def look(
        self, domain: bytes = b"example.org", trust: int = ON_THIS_HOST, relay: bytes = b"", port: int = 25
    ) -> Any:
        async def both() -> Any:
            hosts = await find_hosts(self.resolver, domain, Relay(relay, port), lambda: (), lambda _: None)
            assert isinstance(hosts, tuple)
            return await self.dane.look(hosts, port, trust)

        found = self.successResultOf(Deferred.fromCoroutine(both()))
        if isinstance(found, tuple):
            return [(host.address, len(host.tlsa)) for host in found]
        return found.letter, found.text

    def test_records(self) -> None:
        """Of each exchanger, of a domain without one, and of a relay on its port."""
        self.assertEqual(self.look(), [("192.0.2.1", 1), ("192.0.2.2", 1)])
        self.assertEqual(self.look(b"plain.test"), [("192.0.2.3", 1)])
        self.resolver.records[b"_587._tcp.plain.test"] = [(3, 1, 1, bytes(32))] * 2
        self.assertEqual(self.look(relay=b"plain.test", port=587), [("192.0.2.3", 2)])
        self.assertEqual(self.look(relay=b"[192.0.2.9]"), [("192.0.2.9", 0)])
        self.assertEqual(self.logged.lines, [])

    def test_not_signed(self) -> None:
        """§2.2.1, §2.2.2: an answer on the way that is not authenticated makes the records worth nothing."""
        for names, wanted in (
            ({b"example.org"}, [0, 0]),
            ({b"mx1.test"}, [0, 1]),
            ({b"_25._tcp.mx1.test"}, [0, 1]),
        ):
            self.resolver.unsigned = {b"10.in-addr.arpa", *names}
            self.assertEqual([number for _, number in self.look()], wanted)
        self.resolver.unsigned.add(b"plain.test")
        self.resolver.asked.clear()
        self.assertEqual(self.look(b"plain.test"), [("192.0.2.3", 0)])
        self.assertNotIn("tlsa", [kind for kind, _ in self.resolver.asked])

    def test_none(self) -> None:
        self.resolver.records = {b"_25._tcp.mx1.test": []}
        self.assertEqual(self.look(), [("192.0.2.1", 0), ("192.0.2.2", 0)])

    def test_failures(self) -> None:
        """§2.1.2: no answer is no licence; the other host gets the mail, or it waits."""
        self.resolver.records[b"_25._tcp.mx1.test"] = DNSTemporaryError("SERVFAIL")
        self.assertEqual(self.look(), [("192.0.2.2", 1)])
        self.resolver.records[b"_25._tcp.mx2.test"] = DNSTemporaryError("SERVFAIL")
        letter, text = self.look()
        self.assertEqual(letter, b"Z")
        self.assertIn(b"no answer for now about TLSA records of mx1.test", text)

    def test_faults_of_ours_come_out(self) -> None:
        """They are no answer of the DNS."""
        self.resolver.records[b"_25._tcp.mx1.test"] = RuntimeError("a bug")
        host = Host("192.0.2.1", 10, b"mx1.test", secure=True)
        self.failureResultOf(Deferred.fromCoroutine(self.dane.look((host,), 25, ON_THIS_HOST)), RuntimeError)

    def test_the_proof(self) -> None:
        """A resolver is believed when it says AD of what is signed and of nothing else."""
        none = [("192.0.2.1", 0), ("192.0.2.2", 0)]
        self.resolver.unsigned = set()
        self.assertEqual([self.look(), self.look()], [none, none])
        self.assertEqual(len(self.logged.find("says of unsigned names that they are authentic")), 1)
        self.resolver.unsigned = {b"arpa", b"10.in-addr.arpa"}
        self.assertEqual(self.look(), none)
        self.assertEqual(len(self.logged.find("does not say that signed names are authentic")), 1)
        self.resolver.unsigned = {b"10.in-addr.arpa"}
        self.resolver.here = False
        self.assertEqual(self.look(), none)
        self.assertEqual(
            len(self.logged.find("control/dane is of no use now: a resolver in use is not on this host")), 1
        )
        self.assertEqual(self.look(trust=ANYWHERE), [("192.0.2.1", 1), ("192.0.2.2", 1)])

    def test_no_proof_now(self) -> None:
        """Somebody who keeps the proof away must not win by it."""
        self.resolver.texts[b"arpa"] = DNSTemporaryError("timeout")
        self.assertEqual(self.look()[0], b"Z")

    def test_where_a_resolver_is(self) -> None:
        for servers, wanted in (
            (["127.0.0.1"], True),
            (["127.0.0.53:5353", "[::1]"], True),
            (["127.0.0.1", "192.0.2.53"], False),
        ):
            self.assertEqual(make_resolver(None, servers).local(), wanted, servers)


class Mail(TLSCase):
    """What TLSA records mean for mail."""

    def setUp(self) -> None:
        super().setUp()
        self.signed = SignedResolver({b"example.org": [(10, b"relay.test")]})
        self.resolver = self.signed
        self.write("control/dane", b"1\n")
        self.write("control/tlsmemory", b"0\n")

    async def send(self, *records: TLSA, pem: bytes, ehlo: bytes = OFFER) -> tuple[bytes, bytes]:
        self.again()
        self.heard = self.server(pem, EHLO=ehlo)
        self.signed.records[b"_%d._tcp.relay.test" % self.port] = [
            (one.usage, one.selector, one.matching, one.data) for one in records
        ]
        report = await self.deliver()
        return report.letter, report.text

    async def test_good(self) -> None:
        """A certificate that nobody else knows, expired and for another name, is good by DANE-EE."""
        pem = self.other.certify("x.test", days=-1)
        letter, text = await self.send(record(pem), pem=pem)
        self.assertEqual(letter, b"K")
        self.assertIn(b"certificate verified by DANE.", text)
        self.spawner._figures.tell()
        self.assertIn("(tlsa): 1 sessions good", self.logged.lines[-1])
        # What TLSA records vouch for is not demanded of the domain when it has none any more.
        self.assertFalse(os.path.exists(f"{self.home}/queue/lock/tlsseen"))

    async def test_wrong(self) -> None:
        """Nothing is sent, not even to a host whose certificate the system's authorities believe."""
        good = self.authority.certify(NAME)
        letter, text = await self.send(record(self.other.certify(NAME)), pem=good)
        self.assertEqual(
            (letter, text),
            (
                b"Z",
                b"Connected to 127.0.0.1 but TLS failed: the certificate does not match the TLSA records."
                b" It is demanded by the TLSA records of relay.test. (#4.7.5)\n",
            ),
        )
        self.assertEqual(len(self.heard.sessions), 1)
        _, text = await self.send(record(good), pem=good, ehlo=PLAIN)
        self.assertIn(b"STARTTLS is not offered", text)
        self.assertEqual([verbs[-1] for verbs in self.verbs(self.heard)], [b"EHLO"])

    async def test_authority(self) -> None:
        """DANE-TA: the name is the host's, or the one of the route or domain (RFC 7672 §3.2.2)."""
        anchor = record(self.other.pem, 2, 0, 0)
        self.assertEqual((await self.send(anchor, pem=self.other.certify(NAME)))[0], b"K")
        letter, text = await self.send(anchor, pem=self.other.certify("evil.test"))
        self.assertEqual(letter, b"Z")
        self.assertIn(b"the certificate is not for relay.test", text)

    async def test_of_no_use(self) -> None:
        """RFC 7672 §2.2: records that cannot be used still mean TLS, with whatever certificate."""
        pem = self.other.certify("x.test")
        letter, text = await self.send(record(pem, 1), pem=pem)
        self.assertEqual(letter, b"K")
        self.assertIn(b"not verified", text)
        letter, text = await self.send(record(pem, 1), pem=pem, ehlo=PLAIN)
        self.assertEqual(letter, b"Z")
        self.assertIn(b"STARTTLS is not offered", text)

    async def test_none(self) -> None:
        """No records: as ever. Nor is anything asked when it is off, or where a control file says what is demanded."""
        pem = self.other.certify("x.test")
        self.assertEqual((await self.send(pem=pem, ehlo=PLAIN))[0], b"K")
        self.demand(self.other.pem)
        _, text = await self.send(record(self.authority.pem), pem=pem)
        self.assertIn(b"demanded by control/tlshosts/relay.test.pem", text)
        os.unlink(f"{self.home}/control/tlshosts/{NAME}.pem")
        self.write("control/dane", b"0\n")
        self.signed.asked.clear()
        self.assertEqual((await self.send(record(self.authority.pem), pem=pem))[0], b"K")
        self.assertNotIn("tlsa", [kind for kind, _ in self.signed.asked])

    async def test_before_mta_sts(self) -> None:
        """RFC 8461 §2: a policy never stands in for records, whichever way it would turn out."""
        self.write("control/mtasts", b"1\n")
        for number, text in enumerate((TEXT.replace(b"mx1.example.org", b"relay.test"), TEXT)):
            self.signed.texts[b"_mta-sts.example.org"] = [b"v=STSv1; id=%d" % number]
            own = self.other.certify(NAME)
            for pem, wanted in ((own, b"K"), (self.authority.certify(NAME), b"Z")):
                self.again()
                server = self.server(pem)
                port = reactor.listenTCP(self.port, server, interface="127.0.0.2")
                self.addCleanup(port.stopListening)
                self.write("control/smtproutes", b"example.org::%d\n" % self.port)
                self.signed._addresses[b"relay.test"] = ["127.0.0.2"]
                one = record(own)
                self.signed.records[b"_%d._tcp.relay.test" % self.port] = [(3, 1, 1, one.data)]
                self.spawner._policies._fetch = lambda host, path, text=text: succeed(text)  # type: ignore[misc]
                report = await self.deliver()
                self.assertEqual(report.letter, wanted, report.text)


class Hosts(SynchronousTestCase):
    def test_equality(self) -> None:
        """What the DNS says of an address does not make it another address."""
        self.assertEqual(Host("192.0.2.1", 0, b"a", True, (TLSA(3, 1, 1, b""),)), Host("192.0.2.1"))
