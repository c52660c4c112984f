"""A small scriptable DNS server for tests, on loopback, UDP and TCP on the same port.

In a test::

    server = DNSServer(reactor, Zone.parse("mx.test A 192.0.2.1\\nslow.test !delay 0.5"))
    await server.start()            # then server.port; server.asked lists the questions
    await server.stop()

As a program: ``python -m tests.dns_server [--port N] ZONEFILE`` prints ``listening on 127.0.0.1:PORT`` and serves until
it is killed.

Zone text has one record or behaviour per line; ``#`` starts a comment at the start of a line or after a blank::

    NAME [TTL] TYPE DATA...     A, AAAA, MX (preference host), CNAME, PTR, TXT ("string" ...), TLSA (3 numbers, hex)
    NAME !BEHAVIOUR [ARGUMENT]  see BEHAVIOURS

``.`` is the root (as the exchange of a null MX). A name without records is NXDOMAIN, unless names below it exist.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

import attrs
from twisted.internet import defer, error, protocol
from twisted.names import dns
from twisted.protocols.basic import Int16StringReceiver

TLSA = 52
TYPES = {"A": 1, "CNAME": 5, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "TLSA": TLSA}

BEHAVIOURS = {
    "drop": "no reply at all; with a number, only to the first so many queries for the name",
    "delay": "reply after so many seconds",
    "truncate": "empty reply with TC by UDP, the whole one by TCP",
    "truncate-always": "TC by TCP, too",
    "udp-only": "close TCP connections without a reply",
    "servfail": "SERVFAIL",
    "refused": "REFUSED",
    "no-edns": "FORMERR to queries with an OPT record, as servers from before EDNS do",
    "wrong-id": "reply with another id only",
    "wrong-question": "reply to another question only",
    "forged": "first a reply from another port with the address 203.0.113.66, then the true one",
    "garbage": "the right id and question, and then no records but rubbish",
    "short": "the last four octets of the reply are missing",
    "upper-case": "the question comes back in upper case",
    "referral": "an empty reply without RA and AA, as from a server that does not know the name",
    "no-soa": "negative replies without SOA record",
    "shallow": "a CNAME reply without the records of its target",
    "authenticated": "replies with AD",
}


@attrs.define
class Zone:
    """What the server knows: record payloads by name and type, behaviours by name."""

    records: dict[bytes, dict[int, list[tuple[int, Any]]]] = attrs.Factory(dict)
    behaviours: dict[bytes, dict[str, str]] = attrs.Factory(dict)
    negative_ttl: int = 60

    @classmethod
    def parse(cls, text: str) -> Zone:
        zone = cls()
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                zone.add(*words)
        return zone

    def add(self, name: str, *words: str) -> None:
        key = name.rstrip(".").lower().encode("ascii")
        if words[0].startswith("!"):
            behaviour = words[0][1:]
            if behaviour not in BEHAVIOURS:
                raise ValueError(f"unknown behaviour {behaviour!r}")
            self.behaviours.setdefault(key, {})[behaviour] = words[1] if len(words) > 1 else ""
            return
        ttl = 300
        if words[0].isdigit():
            ttl, words = int(words[0]), words[1:]
        kind = TYPES[words[0].upper()]
        self.records.setdefault(key, {}).setdefault(kind, []).append((ttl, _payload(kind, words[1:])))

    def exists(self, name: bytes) -> bool:
        return any(known == name or known.endswith(b"." + name) for known in self.records)

    def answer(self, name: bytes, kind: int) -> tuple[int, list[Any], list[Any]]:
        """(rcode, answer section, authority section)."""
        answers: list[Any] = []
        for _ in range(20):
            here = self.records.get(name.lower(), {})
            behaviours = self.behaviours.get(name.lower(), {})
            found = here.get(kind) or (here.get(5) if kind != 5 else None)
            if not found:
                break
            actual = kind if here.get(kind) else 5
            answers += [_header(name, actual, ttl, payload) for ttl, payload in found]
            if actual == kind or "shallow" in behaviours:
                return dns.OK, answers, []
            name = found[0][1].name.name
        authority = []
        if "no-soa" not in self.behaviours.get(name.lower(), {}):
            soa = dns.Record_SOA(mname=b"ns.test", rname=b"root.test", minimum=self.negative_ttl)
            authority = [dns.RRHeader(b"test", dns.SOA, ttl=3600, payload=soa)]
        return (dns.OK if self.exists(name.lower()) else dns.ENAME), answers, authority


def _header(name: bytes, kind: int, ttl: int, payload: Any) -> dns.RRHeader:
    return dns.RRHeader(name, kind, ttl=ttl, payload=payload)


def _payload(kind: int, words: tuple[str, ...]) -> Any:
    data = [word.encode("ascii") for word in words]
    if kind == 1:
        return dns.Record_A(words[0])
    if kind == 28:
        return dns.Record_AAAA(words[0])
    if kind == 15:
        return dns.Record_MX(int(words[0]), data[1].rstrip(b"."))
    if kind == 16:
        return dns.Record_TXT(*data)
    if kind == TLSA:
        return dns.UnknownRecord(bytes(int(word) for word in words[:3]) + bytes.fromhex(words[3]))
    return {5: dns.Record_CNAME, 12: dns.Record_PTR}[kind](data[0].rstrip(b"."))


@attrs.frozen
class Asked:
    """A question that arrived: `payload` is the UDP size of its OPT record or None, `source` where it came from."""

    name: bytes
    type: int
    transport: str
    source: tuple[str, int]
    payload: int | None
    authenticated: bool
    number: int


class DNSServer:
    """Answers from `zone` on `interface`, on `port` or one that is free."""

    def __init__(self, reactor: Any, zone: Zone, *, port: int = 0, interface: str = "127.0.0.1") -> None:
        self.reactor = reactor
        self.zone = zone
        self.port = port
        self.interface = interface
        self.asked: list[Asked] = []
        self._wanted = port
        self._udp: Any = None
        self._tcp: Any = None
        self._delayed: set[Any] = set()
        self._connections: set[Any] = set()
        self._dropped: dict[bytes, int] = {}

    def __str__(self) -> str:
        return f"[{self.interface}]:{self.port}" if ":" in self.interface else f"{self.interface}:{self.port}"

    async def start(self) -> DNSServer:
        for attempt in range(20):
            self._udp = self.reactor.listenUDP(self._wanted, _Datagrams(self), interface=self.interface)
            self.port = self._udp.getHost().port
            try:
                self._tcp = self.reactor.listenTCP(self.port, _Connections(self), interface=self.interface)
                return self
            except error.CannotListenError:
                await self._udp.stopListening()
                if self._wanted or attempt == 19:
                    raise
        raise AssertionError("unreachable")

    async def stop(self) -> None:
        for call in self._delayed:
            if call.active():
                call.cancel()
        for connection in tuple(self._connections):
            connection.transport.abortConnection()
            await connection.closed
        for port in (self._udp, self._tcp):
            if port is not None:
                await defer.maybeDeferred(port.stopListening)

    def received(self, wire: bytes, transport: str, source: tuple[str, int], send: Any, close: Any) -> None:
        query = dns.Message()
        query.fromStr(wire)
        name, kind = query.queries[0].name.name, query.queries[0].type
        opt = next((header for header in query.additional if header.type == dns.OPT), None)
        payload = None if opt is None else opt.cls
        self.asked.append(Asked(name, kind, transport, source, payload, bool(query.authenticData), query.id))
        behaviours = self.zone.behaviours.get(name.lower(), {})
        if "drop" in behaviours:
            seen = self._dropped[name] = self._dropped.get(name, 0) + 1
            if not behaviours["drop"] or seen <= int(behaviours["drop"]):
                return
        if "udp-only" in behaviours and transport == "tcp":
            close()
            return
        if "forged" in behaviours and transport == "udp":
            self._forge(query, source)
        limit = 65535 if transport == "tcp" else payload or 512
        reply = self._reply(query, behaviours, transport, limit, opt is not None)
        delay = float(behaviours.get("delay", 0))
        if delay:
            self._delayed.add(self.reactor.callLater(delay, send, reply))
        else:
            send(reply)

    def _reply(self, query: dns.Message, behaviours: dict[str, str], transport: str, limit: int, edns: bool) -> bytes:
        asked = query.queries[0]
        reply = dns.Message(id=query.id, answer=1, recDes=query.recDes, recAv=1, maxSize=limit)
        reply.queries = [asked]
        reply.authenticData = int("authenticated" in behaviours)
        if "garbage" in behaviours:
            return reply.toStr()[:6] + b"\xff" * 2 + reply.toStr()[8:] + b"\xff" * 40
        if "wrong-id" in behaviours:
            reply.id ^= 0x5555
        if "wrong-question" in behaviours:
            reply.queries = [dns.Query(b"other." + asked.name.name, asked.type)]
        if "upper-case" in behaviours:
            reply.queries = [dns.Query(asked.name.name.upper(), asked.type)]
        if "servfail" in behaviours:
            reply.rCode = dns.ESERVER
        elif "refused" in behaviours:
            reply.rCode = dns.EREFUSED
        elif "no-edns" in behaviours and edns:
            reply.rCode = dns.EFORMAT
        elif "referral" in behaviours:
            reply.recAv = 0
        elif "truncate-always" in behaviours or ("truncate" in behaviours and transport == "udp"):
            reply.trunc = 1
        else:
            reply.rCode, reply.answers, reply.authority = self.zone.answer(asked.name.name, asked.type)
        if edns and "no-edns" not in behaviours:
            reply.additional = [dns.RRHeader(type=dns.OPT, cls=4096, payload=dns.UnknownRecord(b""))]
        wire = reply.toStr()
        return wire[:-4] if "short" in behaviours else wire

    def _forge(self, query: dns.Message, source: tuple[str, int]) -> None:
        forged = dns.Message(id=query.id, answer=1, recAv=1)
        forged.queries = query.queries
        forged.answers = [_header(query.queries[0].name.name, 1, 300, dns.Record_A("203.0.113.66"))]
        forger = self.reactor.listenUDP(0, protocol.DatagramProtocol(), interface=self.interface)
        forger.write(forged.toStr(), source)
        forger.stopListening()


class _Datagrams(protocol.DatagramProtocol):
    noisy = False

    def __init__(self, server: DNSServer) -> None:
        self.server = server

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        def send(reply: bytes) -> None:
            if self.transport is not None:
                self.transport.write(reply, addr)

        self.server.received(datagram, "udp", addr, send, lambda: None)


class _Connection(Int16StringReceiver):
    server: DNSServer

    def connectionMade(self) -> None:
        self.closed: defer.Deferred[None] = defer.Deferred()
        self.server._connections.add(self)

    def connectionLost(self, reason: Any = None) -> None:
        self.server._connections.discard(self)
        self.closed.callback(None)

    def stringReceived(self, string: bytes) -> None:
        peer = self.transport.getPeer()
        self.server.received(string, "tcp", (peer.host, peer.port), self.sendString, self.transport.loseConnection)


class _Connections(protocol.ServerFactory):
    noisy = False

    def __init__(self, server: DNSServer) -> None:
        self.server = server

    def buildProtocol(self, addr: Any) -> _Connection:
        connection = _Connection()
        connection.server = self.server
        return connection


def main(arguments: list[str]) -> None:
    from twisted.internet import reactor

    parser = argparse.ArgumentParser(prog="python -m tests.dns_server", description="A DNS server for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interface", default="127.0.0.1")
    parser.add_argument("zonefile")
    options = parser.parse_args(arguments)
    with open(options.zonefile) as file:
        zone = Zone.parse(file.read())
    server = DNSServer(reactor, zone, port=options.port, interface=options.interface)

    async def serve() -> None:
        await server.start()
        print(f"listening on {server}", flush=True)

    def failed(failure: Any) -> None:
        print(failure.getErrorMessage(), file=sys.stderr)
        reactor.stop()

    any_reactor: Any = reactor
    any_reactor.callWhenRunning(lambda: defer.Deferred.fromCoroutine(serve()).addErrback(failed))
    any_reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
