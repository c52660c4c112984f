"""qtwist.dns over real sockets, against tests.dns_server on loopback.

Sources: spec/qmail.md §15.8, §26.6; spec/related.md §4.10, §12.5; RFC 2181, 2308, 6891.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from typing import Any

from twisted.internet import reactor as any_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import TestCase

from qtwist.dns import exchange
from qtwist.dns.config import Server, fixed, parse_server
from qtwist.dns.message import Reply
from qtwist.dns.resolver import Resolver, make_resolver
from qtwist.dns.stub import StubResolver
from qtwist.interfaces import Answer, DNSTemporaryError
from tests.dns_server import DNSServer, Zone

reactor: Any = any_reactor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DESCRIPTORS = "/proc/self/fd"


def descriptors() -> set[str]:
    if not os.path.isdir(DESCRIPTORS):
        return set()
    gc.collect()  # what other tests have left open closes now, and not in the middle of one
    return set(os.listdir(DESCRIPTORS))


ZONE = """
example.test   600 MX 10 mx1.example.test
example.test   600 MX 20 mx2.example.test
example.test   !authenticated
null.test      MX 0 .
mx1.example.test 120 A 192.0.2.1
mx1.example.test AAAA 2001:db8::1
v6.test        AAAA 2001:db8::6
text.test      TXT "v=spf1 " "-all"
text.test      TXT other
1.2.0.192.in-addr.arpa PTR mx1.example.test
_25._tcp.mx1.example.test TLSA 3 1 1 abcdef
alias.test     30 CNAME mx1.example.test
half.test      CNAME v6.test
half.test      !shallow
below.node.test A 192.0.2.3
servfail.test  !servfail
refused.test   !refused
big.test       !truncate
big.test       TXT whole
longer.test    !truncate-always
udp.test       !udp-only
udp.test       !truncate
old.test       !no-edns
old.test       A 192.0.2.4
odd.test       !wrong-id
other.test     !wrong-question
forged.test    !forged
forged.test    A 192.0.2.5
garbage.test   !garbage
short.test     !short
short.test     A 192.0.2.6
lost.test      !drop 1
lost.test      A 192.0.2.7
slow.test      !delay 0.05
slow.test      A 192.0.2.8
case.test      !upper-case
case.test      A 192.0.2.10
nosoa.test     !no-soa
"""


class Loopback(TestCase):
    """The real sockets against a real server."""

    timeout = 20

    async def serve(self, zone: str = ZONE, **options: Any) -> DNSServer:
        server = await DNSServer(reactor, Zone.parse(zone), **options).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    def quick(self, *servers: DNSServer, **options: Any) -> Resolver:
        """A resolver that loses patience soon."""
        source = fixed(tuple(parse_server(str(server)) for server in servers))
        options.setdefault("schedule", (0.1, 0.2))
        stub = StubResolver(source, reactor, exchange.udp(reactor), exchange.tcp(reactor), **options)
        return Resolver(reactor, stub.lookup)

    def written(self, text: str) -> str:
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(text)
        return path

    async def fails(self, d: Deferred[Answer], text: str) -> None:
        error = await self.assertFailure(d, DNSTemporaryError)
        self.assertIn(text, error.args[0])

    async def test_every_question(self) -> None:
        server = await self.serve()
        dns_ = make_resolver(reactor, [str(server)])
        self.assertEqual(
            await dns_.mx(b"EXAMPLE.test"),
            Answer("ok", ((10, b"mx1.example.test"), (20, b"mx2.example.test")), True, 600),
        )
        self.assertEqual((await dns_.mx(b"null.test")).records, ((0, b""),))
        self.assertEqual(
            await dns_.addresses(b"mx1.example.test"), Answer("ok", ("192.0.2.1", "2001:db8::1"), False, 120)
        )
        self.assertEqual((await dns_.addresses(b"v6.test")).records, ("2001:db8::6",))
        self.assertEqual((await dns_.txt(b"text.test")).records, (b"v=spf1 -all", b"other"))
        self.assertEqual((await dns_.ptr("192.0.2.1")).records, (b"mx1.example.test",))
        self.assertEqual((await dns_.tlsa(b"_25._tcp.mx1.example.test")).records, ((3, 1, 1, b"\xab\xcd\xef"),))
        self.assertEqual((await dns_.mx(b"nowhere.test")).status, "nxdomain")
        self.assertEqual(await dns_.mx(b"v6.test"), Answer("nodata", (), False, 60))
        self.assertEqual((await dns_.addresses(b"node.test")).status, "nodata")
        self.assertEqual((await dns_.mx(b"nosoa.test")).ttl, 0)
        self.assertTrue(all(asked.payload == 1232 and asked.authenticated for asked in server.asked))

    async def test_cache_is_in_place(self) -> None:
        server = await self.serve()
        dns_ = make_resolver(reactor, [str(server)])
        await dns_.mx(b"example.test")
        self.assertTrue((await dns_.mx(b"Example.Test")).authenticated)
        self.assertEqual(len(server.asked), 1)

    async def test_aliases(self) -> None:
        server = await self.serve()
        dns_ = self.quick(server)
        answer = await dns_.addresses(b"alias.test")
        self.assertEqual((answer.records, answer.ttl), (("192.0.2.1", "2001:db8::1"), 30))
        self.assertEqual((await dns_.addresses(b"half.test")).records, ("2001:db8::6",))
        self.assertEqual((await dns_.mx(b"alias.test")).status, "nodata")

    async def test_each_query_has_a_port_and_a_number(self) -> None:
        server = await self.serve()
        dns_ = self.quick(server)
        await gatherResults([dns_.mx(b"%d.test" % n) for n in range(30)])
        self.assertTrue(len({asked.source[1] for asked in server.asked}) > 25)
        self.assertTrue(len({asked.number for asked in server.asked}) > 25)

    async def test_temporary(self) -> None:
        """SERVFAIL is temporary (spec/related.md §12.5), and so is every reply that makes no sense."""
        dns_ = self.quick(await self.serve())
        await self.fails(dns_.mx(b"servfail.test"), "SERVFAIL")
        await self.fails(dns_.mx(b"refused.test"), "REFUSED")
        await self.fails(dns_.mx(b"garbage.test"), "malformed")
        await self.fails(dns_.addresses(b"short.test"), "malformed")
        await self.fails(dns_.mx(b"odd.test"), "timed out")
        await self.fails(dns_.mx(b"other.test"), "timed out")

    async def test_tcp(self) -> None:
        server = await self.serve()
        dns_ = self.quick(server)
        self.assertEqual((await dns_.txt(b"big.test")).records, (b"whole",))
        self.assertEqual([asked.transport for asked in server.asked], ["udp", "tcp"])
        await self.fails(dns_.txt(b"longer.test"), "truncated")
        await self.fails(dns_.txt(b"udp.test"), "closed before the reply")

    async def test_large_over_tcp(self) -> None:
        """Answers over 512 octets (spec/qmail.md §26.6), over 1232, and near the limit of TCP."""
        for count, transports in [(4, ["udp"]), (10, ["udp", "tcp"]), (280, ["udp", "tcp"])]:
            server = await self.serve("\n".join(f"large.test TXT {n:03}{'x' * 200}" for n in range(count)))
            answer = await self.quick(server).txt(b"large.test")
            self.assertEqual(answer.records, tuple(b"%03d" % n + b"x" * 200 for n in range(count)))
            self.assertEqual([asked.transport for asked in server.asked], transports)

    async def test_old_server(self) -> None:
        server = await self.serve()
        self.assertEqual((await self.quick(server).addresses(b"old.test")).records, ("192.0.2.4",))
        self.assertIn(None, [asked.payload for asked in server.asked])

    async def test_forged(self) -> None:
        """A reply with the right id from another port is not taken, connected socket or not."""
        dns_ = self.quick(await self.serve())
        self.assertEqual((await dns_.addresses(b"forged.test")).records, ("192.0.2.5",))

        class Unconnected(socket.socket):
            """The state before connect(): everybody's datagrams come in."""

            def connect(self, address: Any) -> None:
                self.bind(("127.0.0.1", 0))
                self.peer = address

            def send(self, data: Any, flags: int = 0) -> int:
                return self.sendto(data, self.peer)

        self.patch(exchange.socket, "socket", Unconnected)
        self.assertEqual((await dns_.addresses(b"forged.test")).records, ("192.0.2.5",))

    async def test_lost_and_slow(self) -> None:
        server = await self.serve()
        self.assertEqual((await self.quick(server).addresses(b"slow.test")).records, ("192.0.2.8",))
        server.asked.clear()
        self.assertEqual((await self.quick(server).addresses(b"lost.test")).records, ("192.0.2.7",))
        self.assertEqual(len(server.asked), 3)

    async def test_case(self) -> None:
        self.assertEqual((await self.quick(await self.serve()).addresses(b"case.test")).records, ("192.0.2.10",))

    async def test_nobody_listens(self) -> None:
        """A refused port is known at once, and the next server is asked."""
        gone = await DNSServer(reactor, Zone()).start()
        await gone.stop()
        await self.fails(self.quick(gone, schedule=(15,)).mx(b"example.test"), "refused")
        answer = await self.quick(gone, await self.serve(), schedule=(15,)).mx(b"example.test")
        self.assertEqual(answer.status, "ok")

    async def test_no_way_to_the_server(self) -> None:
        """An error of the socket calls is a failure of that server, and the socket is closed."""
        before = descriptors()
        stub = StubResolver(
            fixed((Server("255.255.255.255"),)), reactor, exchange.udp(reactor), exchange.tcp(reactor), schedule=(15,)
        )
        await self.fails(stub.lookup(b"example.test", 1), "DNS server 255.255.255.255: Permission denied")
        self.assertEqual(descriptors(), before)

    async def test_ipv6(self) -> None:
        try:
            with socket.socket(socket.AF_INET6) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("no IPv6 loopback here")
        server = await self.serve(interface="::1")
        self.assertEqual((await self.quick(server).txt(b"big.test")).records, (b"whole",))

    async def test_cancel_leaves_nothing(self) -> None:
        """No socket and no timer stays behind, by UDP or in the middle of TCP (trial looks for them)."""
        server = await self.serve("mute.test !drop\nhalf.test !truncate\nhalf.test !delay 0.2")
        dns_ = self.quick(server, schedule=(15,))
        before = descriptors()
        d = dns_.mx(b"mute.test")
        d.cancel()
        await self.assertFailure(d, CancelledError)
        self.assertEqual(descriptors(), before)
        d = dns_.mx(b"half.test")
        while [asked.transport for asked in server.asked if asked.name == b"half.test"] != ["udp", "tcp"]:
            await _turn()
        d.cancel()
        await self.assertFailure(d, CancelledError)
        while reactor.getReaders() and any("Client" in type(reader).__name__ for reader in reactor.getReaders()):
            await _turn()

    async def test_resolv_conf(self) -> None:
        """Without servers in its arguments the resolver has those of the file."""
        path = self.written("nameserver 192.0.2.53\n")
        asked: list[Server] = []

        def ask(server: Server, wire: bytes, accept: Any) -> Deferred[Reply]:
            asked.append(server)
            return Deferred()

        self.patch(exchange, "udp", lambda reactor: ask)
        d = make_resolver(reactor, resolv_conf=path).mx(b"a.test")
        self.assertEqual(asked, [Server("192.0.2.53")])
        d.cancel()
        await self.assertFailure(d, CancelledError)

    async def test_server_as_a_program(self) -> None:
        """``python -m tests.dns_server``, for the end-to-end tests."""
        path = self.written(ZONE)
        program = _Program()
        command = [sys.executable, "-m", "tests.dns_server", path]
        environment = {**os.environ, "PYTHONPATH": ROOT}
        reactor.spawnProcess(program, sys.executable, command, env=environment)
        line = await program.first_line
        address = line.removeprefix(b"listening on ").decode("ascii").strip()
        answer = await make_resolver(reactor, [address]).mx(b"example.test")
        program.transport.signalProcess("KILL")
        await self.assertFailure(program.ended, ProcessTerminated)
        self.assertEqual(answer.records, ((10, b"mx1.example.test"), (20, b"mx2.example.test")))


def _turn() -> Deferred[None]:
    """One turn of the reactor."""
    d: Deferred[None] = Deferred()
    reactor.callLater(0, d.callback, None)
    return d


class _Program(ProcessProtocol):
    def __init__(self) -> None:
        self.first_line: Deferred[bytes] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._output = b""

    def outReceived(self, data: bytes) -> None:
        self._output += data
        if b"\n" in self._output and not self.first_line.called:
            self.first_line.callback(self._output)

    def processEnded(self, reason: Any) -> None:
        if not self.first_line.called:
            self.first_line.errback(reason)
        self.ended.errback(reason)
