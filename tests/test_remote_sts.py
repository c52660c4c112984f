"""MTA-STS: records and policies, how they are fetched and kept, and what becomes of mail (RFC 8461)."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from qtwist.interfaces import Answer, DNSTemporaryError
from qtwist.remote import sts
from qtwist.remote.https import FetchError, HTTPSFetcher
from qtwist.remote.sts import PAUSE, STSPolicies
from qtwist.wire.mta_sts import MOST_OCTETS, MOST_SECONDS, PolicyError, STSPolicy, parse_policy, parse_record
from tests.test_remote_hosts import FakeResolver
from tests.test_remote_tls import OFFER, PLAIN, TLSCase
from tests.test_tls_servers import Logged

reactor: Any = _reactor
DAY = 86400
TEXT = b"version: STSv1\r\nmode: enforce\r\nmx: mx1.example.org\r\nmx: *.example.net\r\nmax_age: 604800\r\n"


class TextResolver(FakeResolver):
    """Knows TXT records, too."""

    def __init__(self, *args: Any, **texts: Any) -> None:
        super().__init__(*args)
        self.texts: dict[bytes, Any] = {}

    def txt(self, name: bytes) -> Deferred[Answer]:
        return self._answer("txt", self.texts, name)


class Formats(SynchronousTestCase):
    def test_record(self) -> None:
        """§3.1: one record that begins with the version; others are not looked at."""
        for texts, wanted in (
            ([b"v=STSv1; id=20160831085700Z;"], b"20160831085700Z"),
            ([b"v=STSv1;id=1"], b"1"),
            ([b"v=STSv1 ; x=y; id=1"], b"1"),
            ([b"v=spf1 -all", b"v=STSv1; id=1"], b"1"),
            ([b"v=STSv1; id=1", b"v=STSv1; id=2"], None),
            ([b"v=STSv2; id=1"], None),
            ([b"v=STSv1"], None),
            ([b"v=STSv1;"], None),
            ([b"v=STSv1; id="], None),
            ([b"v=STSv1; id=a-b"], None),
            ([b"v=STSv1; id=" + b"1" * 33], None),
            ([b"id=1; v=STSv1"], None),
            ([], None),
        ):
            self.assertEqual(parse_record(texts), wanted, texts)

    def test_policy(self) -> None:
        """§3.2: the example; LF as line end; unknown keys; of two keys the first."""
        policy = STSPolicy("enforce", (b"mx1.example.org", b"*.example.net"), 604800)
        self.assertEqual(parse_policy(TEXT), policy)
        self.assertEqual(parse_policy(TEXT.replace(b"\r", b"")), policy)
        self.assertEqual(parse_policy(TEXT + b"mode: none\nother: x\n\n"), policy)
        self.assertEqual(parse_policy(b"version: STSv1\nmode: none\nmax_age: 86400"), STSPolicy("none", (), 86400))
        huge = TEXT.replace(b"604800", b"9999999999")
        self.assertEqual(parse_policy(huge).seconds, MOST_SECONDS)

    def test_wrong_policies(self) -> None:
        for text in (
            b"",
            TEXT.replace(b"STSv1", b"STSv2"),
            TEXT.replace(b"enforce", b"perhaps"),
            TEXT.replace(b"604800", b"week"),
            TEXT.replace(b"max_age: 604800", b""),
            b"version: STSv1\nmode: enforce\nmax_age: 1",
            TEXT.replace(b"mx1.example.org", b"*"),
            TEXT.replace(b"mx1.example.org", b"a.*.example.org"),
            TEXT + b"<html>\n",
            TEXT + b"x: " + b"y" * MOST_OCTETS,
            TEXT + b"mx: a.test\n" * 1000,
        ):
            self.assertRaises(PolicyError, parse_policy, text)

    def test_matches(self) -> None:
        """§4.1: a star is one label."""
        policy = parse_policy(TEXT)
        for name in (b"mx1.example.org", b"MX1.example.org.", b"a.example.net"):
            self.assertTrue(policy.matches(name), name)
        for name in (
            b"mx2.example.org",
            b"example.net",
            b"a.b.example.net",
            b"xexample.net",
            b"",
            b"*.example.net.evil",
        ):
            self.assertFalse(policy.matches(name), name)

    @given(st.binary(max_size=200), st.lists(st.binary(max_size=40), max_size=3))
    def test_any_octets(self, text: bytes, texts: list[bytes]) -> None:
        """Parsed, or PolicyError."""
        parse_record(texts)
        for candidate in (text, TEXT + text):
            try:
                policy = parse_policy(candidate)
            except PolicyError:
                continue
            self.assertIn(policy.mode, ("enforce", "testing", "none"))
            policy.matches(text)


class Keeping(SynchronousTestCase):
    def setUp(self) -> None:
        self.resolver = TextResolver()
        self.resolver.texts[b"_mta-sts.example.org"] = [b"v=STSv1; id=1"]
        self.now = 1_700_000_000.0
        self.directory = self.mktemp()
        self.answers: list[Any] = [TEXT]
        self.fetched: list[tuple[bytes, bytes]] = []
        self.logged = Logged(self)
        self.policies = self.again()

    def again(self) -> STSPolicies:
        return STSPolicies(self.resolver, self.fetch, self.directory, lambda: self.now)

    def fetch(self, host: bytes, path: bytes) -> Deferred[bytes]:
        self.fetched.append((host, path))
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def mode(self, domain: bytes = b"example.org") -> str | None:
        policy = self.successResultOf(Deferred.fromCoroutine(self.policies.policy(domain)))
        return None if policy is None else policy.mode

    def test_fetched_once(self) -> None:
        for _ in range(3):
            self.assertEqual(self.mode(b"Example.ORG."), "enforce")
        self.policies = self.again()
        self.assertEqual(self.mode(), "enforce")
        self.assertEqual(self.fetched, [(b"mta-sts.example.org", b"/.well-known/mta-sts.txt")])

    def test_none(self) -> None:
        """No record, no policy, and no question to a web server; nor for what is no domain name."""
        self.assertIsNone(self.mode(b"example.com"))
        for name in (b"localhost", b"[192.0.2.1]", b"a/../b.test", b"\xff.test", b"x" * 300 + b".test"):
            self.assertIsNone(self.mode(name))
        self.assertEqual(self.fetched, [])

    def test_a_new_one(self) -> None:
        """§3.1: another id means another policy."""
        self.mode()
        self.answers = [TEXT.replace(b"enforce", b"testing")]
        self.assertEqual(self.mode(), "enforce")
        self.resolver.texts[b"_mta-sts.example.org"] = [b"v=STSv1; id=2"]
        self.assertEqual(self.mode(), "testing")

    def test_what_is_kept_is_believed(self) -> None:
        """§5.1, §10.2: no record, no DNS, no web server, a wrong text: all of this could be an attack."""
        self.mode()
        name = b"_mta-sts.example.org"
        for records in (None, [], DNSTemporaryError("no"), [b"v=STSv1; id=1", b"v=STSv1; id=2"]):
            self.resolver.texts[name] = records
            self.assertEqual(self.mode(), "enforce")
        self.resolver.texts[name] = [b"v=STSv1; id=2"]
        for answer in (FetchError("the answer is 404"), OSError("refused"), b"<html>"):
            self.answers = [answer]
            self.now += PAUSE
            self.assertEqual(self.mode(), "enforce")
        self.assertEqual(len(self.logged.find("the MTA-STS policy of example.org cannot be had: ")), 3)

    def test_expiry(self) -> None:
        """It is fetched again at half of its time; when that is over, it counts no more."""
        self.mode()
        self.answers = [OSError("refused")]
        self.now += 604800 / 2 - 1
        self.assertEqual(self.mode(), "enforce")
        self.assertEqual(len(self.fetched), 1)
        self.now += 1
        self.assertEqual(self.mode(), "enforce")
        self.assertEqual(len(self.fetched), 2)
        self.now += 604800 / 2
        self.assertIsNone(self.mode())
        self.answers = [TEXT]
        self.now += PAUSE
        self.assertEqual(self.mode(), "enforce")

    def test_a_pause(self) -> None:
        """A domain whose web server fails is not asked again for five minutes."""
        self.answers = [OSError("refused")]
        for _ in range(3):
            self.assertIsNone(self.mode())
        self.assertEqual(len(self.fetched), 1)
        self.now += PAUSE
        self.mode()
        self.assertEqual(len(self.fetched), 2)

    def test_failures_are_bounded(self) -> None:
        """A sender with many domains does not take all memory."""
        self.patch(sts, "MOST_FAILURES", 3)
        self.answers = [OSError("refused")]
        for number in range(10):
            name = b"d%d.test" % number
            self.resolver.texts[b"_mta-sts." + name] = [b"v=STSv1; id=1"]
            self.assertIsNone(self.mode(name))
            self.assertLessEqual(len(self.policies._failed), 3)
        self.mode(name)
        self.assertEqual(len(self.fetched), 10)

    def test_together(self) -> None:
        """Messages that want the same policy at once cause one fetch."""
        answer: Deferred[bytes] = Deferred()
        self.answers = [answer]
        waiting = [Deferred.fromCoroutine(self.policies.policy(b"example.org")) for _ in range(3)]
        for one in waiting:
            self.assertNoResult(one)
        answer.callback(TEXT)
        self.assertEqual([self.successResultOf(one).mode for one in waiting], ["enforce"] * 3)  # type: ignore[union-attr]
        self.assertEqual(len(self.fetched), 1)

    def test_files(self) -> None:
        """What is broken, or another domain's, counts for nothing; there are not more than so many."""
        self.mode()
        [name] = os.listdir(self.directory)
        path = os.path.join(self.directory, name)
        for contents in (b"", b"example.org\n1\nnever\n" + TEXT, b"evil.test\n1\n1700000000\n" + TEXT):
            with open(path, "wb") as file:
                file.write(contents)
            self.policies, before = self.again(), len(self.fetched)
            self.assertEqual(self.mode(), "enforce")
            self.assertEqual(len(self.fetched), before + 1)
        self.patch(sts, "MOST_FILES", 20)
        for number in range(50):
            self.resolver.texts[b"_mta-sts.%d.test" % number] = [b"v=STSv1; id=1"]
            self.assertEqual(self.mode(b"%d.test" % number), "enforce")
        self.assertLessEqual(len(os.listdir(self.directory)), 20)

    def test_no_directory(self) -> None:
        with open(self.directory, "wb"):
            pass
        self.assertEqual(self.mode(), "enforce")
        self.assertEqual(self.mode(), "enforce")
        self.assertEqual(len(self.fetched), 1)
        self.assertEqual(len(self.logged.find("the policy is kept in memory")), 1)


class Fetching(TLSCase):
    """The real way, over HTTPS on loopback."""

    async def fetch(self, answer: bytes, code: int = 200, name: str = "mta-sts.example.org", most: int = 1000) -> bytes:
        class Answering(Resource):
            isLeaf = True

            def render_GET(self, request: Any) -> bytes:
                request.setResponseCode(code)
                if code == 302:
                    request.redirect(b"https://evil.test/")
                asked.append(request.uri)
                return answer

        asked: list[bytes] = []
        site = Site(Answering())
        from twisted.protocols.tls import TLSMemoryBIOFactory

        port = reactor.listenTCP(
            0, TLSMemoryBIOFactory(self.creator(self.authority.certify(name)), False, site), interface="127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        resolver = FakeResolver(addresses={b"mta-sts.example.org": ["127.0.0.1"]})
        fetcher = HTTPSFetcher(reactor, reactor, resolver, most=most, seconds=10, port=port.getHost().port)
        try:
            return await fetcher.get(b"mta-sts.example.org", b"/.well-known/mta-sts.txt")
        finally:
            self.assertIn(asked, ([], [b"/.well-known/mta-sts.txt"]))

    async def refused(self, *args: Any, **how: Any) -> str:
        try:
            await self.fetch(*args, **how)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        raise AssertionError("it was fetched")

    async def test_good(self) -> None:
        self.assertEqual(await self.fetch(TEXT), TEXT)
        self.assertEqual(await self.fetch(b"x" * 1000), b"x" * 1000)
        self.assertIn("more than 1000 octets", await self.refused(b"x" * 1001))

    async def test_not_good(self) -> None:
        """§3.3: no redirects, no other name, no more than 64 KiB."""
        self.assertIn("the answer is 404", await self.refused(b"no", 404))
        self.assertIn("the answer is 302", await self.refused(b"", 302))
        self.assertIn("ResponseNeverReceived", await self.refused(TEXT, name="example.org"))
        self.assertIn("more than 1000 octets", await self.refused(b"x" * 1_000_000))
        resolver = FakeResolver()
        fetcher = HTTPSFetcher(reactor, reactor, resolver, most=10, seconds=10)
        error = await self.assertFailure(fetcher.get(b"no.test", b"/"), FetchError)
        self.assertIn("no.test has no address", str(error))


class Mail(TLSCase):
    """What a policy means for mail."""

    def setUp(self) -> None:
        super().setUp()
        self.texts = TextResolver({b"example.org": [(10, b"mx1.example.org"), (20, b"evil.test")]})
        self.texts._addresses.update({b"mx1.example.org": ["127.0.0.2"], b"evil.test": ["127.0.0.3"]})
        self.resolver = self.texts
        self.texts.texts[b"_mta-sts.example.org"] = [b"v=STSv1; id=1"]
        self.write("control/mtasts", b"1\n")

    async def send(self, text: bytes, pem: bytes, ehlo: bytes = OFFER) -> tuple[bytes, bytes, list[list[bytes]]]:
        """Letter and text of the report, and what the hosts heard."""
        self.again()
        server = self.server(pem, EHLO=ehlo)
        for address in ("127.0.0.2", "127.0.0.3"):
            port = reactor.listenTCP(self.port, server, interface=address)
            self.addCleanup(port.stopListening)
        self.write("control/smtproutes", b"example.org::%d\n" % self.port)
        self.spawner._policies._fetch = lambda host, path: succeed(text)
        report = await self.deliver()
        return report.letter, report.text, self.verbs(server)

    async def test_enforced(self) -> None:
        good = self.authority.certify("mx1.example.org")
        letter, text, _ = await self.send(TEXT, good)
        self.assertEqual(letter, b"K", text)
        self.assertIn(b"127.0.0.2 accepted", text)
        self.assertIn(b"certificate verified", text)
        self.spawner._figures.tell()
        self.assertIn("(sts): 1 sessions good", self.logged.lines[-1])
        self.write("control/tlsmemory", b"0\n")
        for pem, ehlo, why in (
            (good, PLAIN, b"STARTTLS is not offered"),
            (self.other.certify("mx1.example.org"), OFFER, b"the certificate comes from an unknown authority"),
            (self.authority.certify("evil.test"), OFFER, b"the certificate is not for mx1.example.org"),
        ):
            letter, text, heard = await self.send(TEXT, pem, ehlo)
            self.assertEqual(
                (letter, text),
                (
                    b"Z",
                    b"Connected to 127.0.0.2 but TLS failed: %b. It is demanded by the MTA-STS policy of example.org."
                    b" (#4.7.5)\n" % why,
                ),
            )
            self.assertEqual(len(heard), 1)

    async def test_no_exchanger_of_theirs(self) -> None:
        """The DNS tells of strangers only."""
        self.texts._mx[b"example.org"] = [(10, b"evil.test")]
        letter, text, heard = await self.send(TEXT, self.authority.certify("evil.test"))
        self.assertEqual(letter, b"Z")
        self.assertIn(b"names no mail exchanger of example.org that its MTA-STS policy knows", text)
        self.assertEqual(heard, [])

    async def test_testing(self) -> None:
        """``testing`` and ``none`` demand nothing; nor does anything when it is switched off."""
        self.write("control/tlsmemory", b"0\n")
        for mode in (b"testing", b"none"):
            letter, _, _ = await self.send(TEXT.replace(b"enforce", mode), self.authority.certify("x.test"), PLAIN)
            self.assertEqual(letter, b"K")
            os.rename(f"{self.home}/queue/mtasts", self.mktemp())
        self.write("control/mtasts", b"0\n")
        letter, _, _ = await self.send(TEXT, self.authority.certify("x.test"), PLAIN)
        self.assertEqual(letter, b"K")
