"""Routes, hosts, own addresses, and the look-up of hosts: spec/qmail.md §15.2, §15.3, §15.6, §2.3; RFC 7505."""

from __future__ import annotations

import random
import socket
import subprocess
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from qtwist.interfaces import Answer, DNSTemporaryError, IResolver
from qtwist.mail.constmap import ConstantMap
from qtwist.remote import own, reports
from qtwist.remote.hosts import Host, order_exchanges, parse_address, shuffle_addresses, without_own
from qtwist.remote.lookup import find_hosts
from qtwist.remote.own import OwnAddresses, own_addresses
from qtwist.remote.routes import Credentials, Relay, Route, RouteError, find_route, parse_relay, split_credentials


def keep(_items: list[object]) -> None:
    """A shuffle that does nothing."""


@implementer(IResolver)
class FakeResolver:
    """Answers from two dictionaries; what is missing does not exist. An exception is raised, a Deferred given."""

    def __init__(self, mx: dict[bytes, Any] | None = None, addresses: dict[bytes, Any] | None = None) -> None:
        self._mx = mx or {}
        self._addresses = addresses or {}
        self.asked: list[tuple[str, bytes]] = []

    def mx(self, name: bytes) -> Deferred[Answer]:
        return self._answer("mx", self._mx, name)

    def addresses(self, name: bytes) -> Deferred[Answer]:
        return self._answer("addresses", self._addresses, name)

    def txt(self, name: bytes) -> Deferred[Answer]:
        raise NotImplementedError

    def ptr(self, address: str) -> Deferred[Answer]:
        raise NotImplementedError

    def tlsa(self, name: bytes) -> Deferred[Answer]:
        raise NotImplementedError

    def local(self) -> bool:
        return True

    def _answer(self, kind: str, known: dict[bytes, Any], name: bytes) -> Deferred[Answer]:
        self.asked.append((kind, name))
        records = known.get(name)
        if isinstance(records, Deferred):
            return records
        if isinstance(records, Exception):
            return fail(records)
        if records is None:
            return succeed(Answer("nxdomain", ()))
        return succeed(Answer("ok" if records else "nodata", tuple(records)))


class RouteTests(SynchronousTestCase):
    def test_relays(self) -> None:
        """``relay``, ``relay:port``, ``[ip]``; IPv6 in brackets is ours (§15.2)."""
        for value, relay in (
            (b"", Relay(b"", 25)),
            (b"mx.example.org", Relay(b"mx.example.org", 25)),
            (b"mx.example.org:2525", Relay(b"mx.example.org", 2525)),
            (b"mx.example.org:", Relay(b"mx.example.org", 25)),
            (b"127.0.0.1:2525", Relay(b"127.0.0.1", 2525)),
            (b"[127.0.0.1]", Relay(b"127.0.0.1", 25)),
            (b"[127.0.0.1]:26", Relay(b"127.0.0.1", 26)),
            (b"[::1]:26", Relay(b"::1", 26)),
            (b"[IPv6:::1]", Relay(b"::1", 25)),
            (b":2525", Relay(b"", 2525)),
        ):
            self.assertEqual(parse_relay(value), relay)

    def test_wrong_relays(self) -> None:
        for value in (b"mx:smtp", b"mx:0", b"mx:65536", b"mx:25x", b"[::1", b"[::1]25", b"::1", b"mx:25:26", b"mx: 25"):
            self.assertRaises(RouteError, parse_relay, value)

    def test_order(self) -> None:
        """The host, its suffixes from the longest on, then everything (§2.3); an empty relay ends the search."""
        routes = ConstantMap.colon(
            [b"a.example.org:one", b".example.org:two", b"own.example.org:", b".org:three", b":rest"]
        )
        for host, relay in (
            (b"A.example.ORG", b"one"),
            (b"b.example.org", b"two"),
            (b"a.b.example.org", b"two"),
            (b"example.org", b"three"),
            (b"own.example.org", b""),
            (b"example.net", b"rest"),
        ):
            self.assertEqual(find_route(routes, {}, host).relay.host, relay, host)
        self.assertEqual(find_route({}, {}, b"example.org").relay, Relay(b""))

    def test_qmtp(self) -> None:
        """spec/related.md §13.1: qmtproutes counts before smtproutes, and its port is 209 unless it tells another."""
        smtp = {b"a.test": b"relay.test:2525", b"": b"other.test"}
        qmtp = {b"a.test": b"relay.test", b"b.test": b"relay.test;6209", b"c.test": b""}
        self.assertEqual(find_route(smtp, qmtp, b"a.test"), Route(Relay(b"relay.test", 2525), 209, file="qmtproutes"))
        self.assertEqual(find_route(smtp, qmtp, b"b.test"), Route(Relay(b"relay.test"), 6209, file="qmtproutes"))
        self.assertEqual(find_route(smtp, qmtp, b"c.test"), Route(Relay(b"other.test")))
        self.assertRaises(RouteError, find_route, smtp, {b"": b"x:y"}, b"d.test")

    def test_logins(self) -> None:
        """spec/related.md §14.3, §14.4: ``|user|password`` behind a relay; a sender's line comes before all others."""
        tim = Credentials(b"tim", b"a|b:c;d")
        self.assertEqual(split_credentials(b"relay.test;587|tim|a|b:c;d"), (b"relay.test;587", tim))
        self.assertNotIn("a|b", repr(tim))
        smtp = {b"a.test": b"relay.test:587|tim|a|b:c;d", b"": b"other.test"}
        self.assertEqual(find_route(smtp, {}, b"a.test"), Route(Relay(b"relay.test", 587), credentials=tim))
        self.assertIsNone(find_route(smtp, {}, b"b.test").credentials)
        senders = {b"ann@x.test": b"one|u|p", b"@x.test": b"two:465|u|p", b"": b"three"}
        for sender, relay in (
            (b"Ann@X.test", Relay(b"one")),
            (b"bob@x.test", Relay(b"two", 465)),
            (b"x@y.test", Relay(b"three")),
            (b"joe", Relay(b"three")),
            (b"", Relay(b"three")),
        ):
            route = find_route(smtp, {b"": b"q"}, b"a.test", senders, sender)
            self.assertEqual((route.relay, route.qmtp_port, route.file), (relay, None, "authsenders"))
        self.assertEqual(find_route(smtp, {}, b"b.test", {b"!@": b"four"}, b"").relay, Relay(b"four"))
        self.assertEqual(find_route(smtp, {}, b"b.test", {b"!@": b"four"}, b"x@y").relay, Relay(b"other.test"))

    def test_wrong_logins(self) -> None:
        for value in (b"relay|", b"relay|user", b"relay|user|", b"relay||password", b"|user|password"):
            self.assertRaises(RouteError, split_credentials, value)
        with self.assertRaises(RouteError) as caught:
            find_route({}, {}, b"a.test", {b"": b"relay:x|secret|secret"}, b"")
        self.assertEqual(caught.exception.args[0], "authsenders")
        self.assertNotIn("secret", str(caught.exception))

    @given(st.binary(max_size=40))
    def test_any_bytes(self, value: bytes) -> None:
        try:
            relay = parse_relay(value)
        except RouteError:
            return
        self.assertTrue(0 < relay.port < 65536)


class HostTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        for text, address in (
            (b"192.0.2.1", "192.0.2.1"),
            (b"[192.0.2.1]", "192.0.2.1"),
            (b"[IPv6:2001:DB8::1]", "2001:db8::1"),
            (b"2001:db8:0:0::1", "2001:db8::1"),
            (b"example.org", None),
            (b"[example.org]", None),
            (b"IPv6:::1", None),
            (b"1.2.3", None),
            (b"1.2.3.256", None),
            (b"[1.2.3.4", None),
            (b"1" * 5000, None),
            (b"\xff", None),
            (b"", None),
        ):
            self.assertEqual(parse_address(text), address, text)

    def test_exchanges(self) -> None:
        """By preference; random among equals (§15.3)."""
        records = [(10, b"b"), (5, b"a"), (10, b"c"), (0, b"")]
        seen = {tuple(order_exchanges(records, random.Random(seed).shuffle)) for seed in range(20)}
        self.assertEqual(seen, {((5, b"a"), (10, b"b"), (10, b"c")), ((5, b"a"), (10, b"c"), (10, b"b"))})

    def test_bounded(self) -> None:
        self.assertEqual(len(order_exchanges([(1, b"x%d" % i) for i in range(1000)], keep)), 20)

    def test_addresses_of_a_name(self) -> None:
        """IPv4 first, random within a family."""
        addresses = ["::1", "10.0.0.1", "10.0.0.2", "::2"]
        seen = {tuple(shuffle_addresses(addresses, random.Random(seed).shuffle)) for seed in range(30)}
        self.assertEqual({frozenset(order[:2]) for order in seen}, {frozenset(("10.0.0.1", "10.0.0.2"))})
        self.assertEqual(len(seen), 4)

    def test_own(self) -> None:
        """Everything that is not better than the best of ourselves is dropped (§15.3)."""
        hosts = [Host("10.0.0.1", 5), Host("10.0.0.2", 10), Host("10.0.0.3", 10), Host("10.0.0.4", 20)]
        self.assertEqual(without_own(hosts, {"10.0.0.9"}), tuple(hosts))
        self.assertEqual(without_own(hosts, {"10.0.0.3", "10.0.0.4"}), (hosts[0],))
        self.assertEqual(without_own(hosts, {"10.0.0.1"}), ())
        self.assertEqual(without_own([Host("::ffff:10.0.0.3"), Host("2001:db8::1")], {"10.0.0.3"}), ())


class OwnTests(SynchronousTestCase):
    def test_system(self) -> None:
        """Loopback is up everywhere; 0.0.0.0 and :: always count (§15.6)."""
        self.assertTrue({"0.0.0.0", "::", "127.0.0.1"} <= own_addresses())

    def test_same_as_ip(self) -> None:
        """iproute2 sees the same addresses."""
        try:
            output = subprocess.run(["ip", "-o", "addr", "show", "up"], capture_output=True, text=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            self.skipTest("needs the program ip (package iproute2)")
        seen = {line.split()[3].partition("/")[0] for line in output.stdout.splitlines()}
        self.assertEqual(seen | {"0.0.0.0", "::"}, own_addresses())

    def test_portable(self) -> None:
        """What other systems than Linux get is a part of it here."""
        self.assertTrue({"127.0.0.1"} <= own._portable() <= own_addresses() | {"::1"})

    def test_memory(self) -> None:
        """The system is asked again when the answer is a minute old."""
        times = iter((100, 159, 160))
        answers = iter((frozenset("a"), frozenset("b")))
        addresses = OwnAddresses(lambda: next(answers), lambda: next(times))
        self.assertEqual([addresses.get() for _ in range(3)], [frozenset("a"), frozenset("a"), frozenset("b")])


class LookupTests(SynchronousTestCase):
    def find(self, resolver: FakeResolver, host: bytes = b"example.org", relay: Relay = Relay(b"")) -> Any:  # noqa: B008
        own = frozenset(("192.0.2.99",))
        return self.successResultOf(Deferred.fromCoroutine(find_hosts(resolver, host, relay, lambda: own, keep)))

    def test_exchangers(self) -> None:
        """All addresses of all exchangers by preference; one without an address is left out (§15.3)."""
        resolver = FakeResolver(
            {b"example.org": [(20, b"two.example.org"), (10, b"one.example.org"), (5, b"none.example.org")]},
            {b"one.example.org": ["192.0.2.1", "2001:db8::1"], b"two.example.org": ["192.0.2.2"]},
        )
        self.assertEqual(self.find(resolver), (Host("192.0.2.1", 10), Host("2001:db8::1", 10), Host("192.0.2.2", 20)))

    def test_asked_together(self) -> None:
        """One slow exchanger does not keep the others from being asked."""
        slow: Deferred[Answer] = Deferred()
        resolver = FakeResolver(
            {b"example.org": [(1, b"slow"), (2, b"quick")]}, {b"slow": slow, b"quick": ["192.0.2.2"]}
        )
        found = Deferred.fromCoroutine(find_hosts(resolver, b"example.org", Relay(b""), frozenset, keep))
        self.assertNoResult(found)
        self.assertEqual(resolver.asked, [("mx", b"example.org"), ("addresses", b"slow"), ("addresses", b"quick")])
        slow.callback(Answer("ok", ("192.0.2.1",)))
        self.assertEqual(self.successResultOf(found), (Host("192.0.2.1", 1), Host("192.0.2.2", 2)))

    def test_no_exchanger(self) -> None:
        """No MX: the addresses of the host; a trailing dot is not part of the name."""
        for mx in ({}, {b"example.org": ()}):
            resolver = FakeResolver(mx, {b"example.org": ["192.0.2.1"]})
            self.assertEqual(self.find(resolver, b"example.org."), (Host("192.0.2.1"),))

    def test_null_mx(self) -> None:
        """RFC 7505 §3; beside other exchangers it means nothing."""
        report = self.find(FakeResolver({b"example.org": [(0, b"")]}, {b"example.org": ["192.0.2.1"]}))
        self.assertEqual(report, reports.no_mail_host(b"example.org"))
        self.assertIn(b"(#5.1.10)", report.text)
        resolver = FakeResolver({b"example.org": [(0, b""), (1, b"mx")]}, {b"mx": ["192.0.2.1"]})
        self.assertEqual(self.find(resolver), (Host("192.0.2.1", 1),))

    def test_failures(self) -> None:
        """#5.1.2, #5.4.4, #4.1.2 (§15.3)."""
        trouble = DNSTemporaryError("timeout")
        mx = {b"example.org": [(1, b"a"), (2, b"b")]}
        for resolver, letter, code in (
            (FakeResolver(), b"D", b"#5.1.2"),
            (FakeResolver({b"example.org": ()}, {b"example.org": ()}), b"D", b"#5.4.4"),
            (FakeResolver({b"example.org": trouble}, {b"example.org": ["192.0.2.1"]}), b"Z", b"#4.1.2"),
            (FakeResolver({}, {b"example.org": trouble}), b"Z", b"#4.1.2"),
            (FakeResolver(mx), b"D", b"#5.4.4"),
            (FakeResolver(mx, {b"a": (), b"b": trouble}), b"Z", b"#4.1.2"),
        ):
            report = self.find(resolver)
            self.assertEqual((report.letter, code in report.text), (letter, True), report)
        found = self.find(FakeResolver(mx, {b"a": trouble, b"b": ["192.0.2.2"]}))
        self.assertEqual(found, (Host("192.0.2.2", 2),))

    def test_programming_error(self) -> None:
        """Anything else that a resolver raises is not taken for an answer."""
        resolver = FakeResolver({b"example.org": [(1, b"a")]}, {b"a": ZeroDivisionError()})
        found = Deferred.fromCoroutine(find_hosts(resolver, b"example.org", Relay(b""), frozenset, keep))
        self.failureResultOf(found, ZeroDivisionError)

    def test_strange_hosts(self) -> None:
        """Nothing is asked for what cannot be a name; unprintable bytes are not shown (§15.3)."""
        for host in (b"", b".", b"[example.org]", b"[1.2.3"):
            resolver = FakeResolver()
            self.assertEqual(self.find(resolver, host), reports.no_such_host(host))
            self.assertEqual(resolver.asked, [])
        self.assertIn(b" a?b?.org. ", self.find(FakeResolver(), b"a\nb\xff.org").text)

    def test_literals(self) -> None:
        """An address is just that, and the DNS is not asked (§15.3)."""
        resolver = FakeResolver()
        for host, address in ((b"192.0.2.1", "192.0.2.1"), (b"[192.0.2.1]", "192.0.2.1"), (b"[IPv6:::2]", "::2")):
            self.assertEqual(self.find(resolver, host), (Host(address),))
        self.assertEqual(resolver.asked, [])

    def test_own(self) -> None:
        """Best exchanger, or address, of the host, but not local: #5.4.6. As a second exchanger: the better ones."""
        resolver = FakeResolver(
            {b"example.org": [(10, b"me")], b"two.example.org": [(5, b"other"), (10, b"me"), (20, b"third")]},
            {b"me": ["192.0.2.99"], b"other": ["192.0.2.1"], b"third": ["192.0.2.2"]},
        )
        self.assertEqual(self.find(resolver), reports.LOOP)
        self.assertEqual(self.find(resolver, b"[192.0.2.99]"), reports.LOOP)
        self.assertEqual(self.find(resolver, b"two.example.org"), (Host("192.0.2.1", 5),))

    def test_relay(self) -> None:
        """A relay is used by its addresses, without a look at its MX, and may be this machine (§15.2)."""
        resolver = FakeResolver({b"relay": [(1, b"x")]}, {b"relay": ["192.0.2.99"]})
        self.assertEqual(self.find(resolver, relay=Relay(b"relay")), (Host("192.0.2.99"),))
        self.assertEqual(resolver.asked, [("addresses", b"relay")])
        self.assertEqual(self.find(resolver, relay=Relay(b"192.0.2.99")), (Host("192.0.2.99"),))
        self.assertEqual(self.find(resolver, relay=Relay(b"gone")), reports.no_such_host(b"gone"))

    def test_address_as_exchanger(self) -> None:
        """A common mistake in zones; qmail delivers there."""
        resolver = FakeResolver({b"example.org": [(1, b"192.0.2.7")]})
        self.assertEqual(self.find(resolver), (Host("192.0.2.7", 1),))

    def test_bounded(self) -> None:
        """At most 20 addresses are tried, whatever the DNS says; own ones count before the cut."""
        many = [f"198.51.100.{n}" for n in range(200)]
        resolver = FakeResolver({b"example.org": [(1, b"a"), (2, b"b")]}, {b"a": many, b"b": ["192.0.2.99"]})
        self.assertEqual(self.find(resolver), tuple(Host(address, 1) for address in many[:20]))
        resolver = FakeResolver({b"example.org": [(1, b"a")]}, {b"a": [*many, "192.0.2.99"]})
        self.assertEqual(self.find(resolver), reports.LOOP)


class SocketTests(SynchronousTestCase):
    def test_inet_form(self) -> None:
        """Own addresses are in the form that parse_address gives, so that they compare."""
        for address in own_addresses():
            self.assertEqual(parse_address(address.encode()), address)
            socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
