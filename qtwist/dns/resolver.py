"""The resolver that the rest of qtwist uses: IResolver over any lookup, and the usual one built from its parts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.dns import exchange, message, names
from qtwist.dns.cache import Cache, Lookup
from qtwist.dns.config import RESOLV_CONF, ResolvConf, Server, fixed, parse_servers
from qtwist.dns.stub import StubResolver
from qtwist.interfaces import Answer, DNSTemporaryError, IResolver

# Once one family of addresses is known, the other gets this long, in seconds.
PATIENCE = 3.0


@implementer(IResolver)
class Resolver:
    """Mail's questions to the DNS, asked through `lookup` (:meth:`Cache.lookup <qtwist.dns.cache.Cache.lookup>`);
    `servers` gives those that are asked at the moment."""

    def __init__(
        self, clock: IReactorTime, lookup: Lookup, servers: Callable[[], Sequence[Server]] = lambda: ()
    ) -> None:
        self._clock = clock
        self._lookup = lookup
        self._servers = servers

    def mx(self, name: bytes) -> Deferred[Answer]:
        return self._lookup(name, message.MX)

    def addresses(self, name: bytes) -> Deferred[Answer]:
        """As IResolver says; the slower family is given up three seconds after the other brought addresses."""
        families = [self._lookup(name, message.A), self._lookup(name, message.AAAA)]
        for mine, other in (families, families[::-1]):
            mine.addCallback(self._hurry, other)
        both: Deferred[Any] = DeferredList(families, consumeErrors=True)
        return both.addCallback(_merge)

    def _hurry(self, answer: Answer, other: Deferred[Answer]) -> Answer:
        if answer.records and not other.called:
            other.addTimeout(PATIENCE, self._clock)
        return answer

    def a(self, name: bytes) -> Deferred[Answer]:
        return self._lookup(name, message.A)

    def txt(self, name: bytes) -> Deferred[Answer]:
        return self._lookup(name, message.TXT)

    def ptr(self, address: str) -> Deferred[Answer]:
        """As IResolver says. ValueError at once when `address` is not an IP address."""
        return self._lookup(names.reverse(address), message.PTR)

    def tlsa(self, name: bytes) -> Deferred[Answer]:
        return self._lookup(name, message.TLSA)

    def local(self) -> bool:
        servers = self._servers()
        return bool(servers) and all(ipaddress.ip_address(server.host).is_loopback for server in servers)


def _merge(results: list[tuple[bool, Answer | Failure]]) -> Answer:
    """One answer from those of A and AAAA, in this order; it is authenticated when all that came were."""
    came = [cast(Answer, result) for success, result in results if success]
    failures = [cast(Failure, result) for success, result in results if not success]
    for failure in failures:
        if not failure.check(DNSTemporaryError, TimeoutError, CancelledError):
            failure.raiseException()
    found = [answer for answer in came if answer.records]
    if failures and not found:
        failures[0].raiseException()
    return Answer(
        "ok" if found else "nodata" if any(answer.status == "nodata" for answer in came) else "nxdomain",
        tuple(record for answer in found for record in answer.records),
        all(answer.authenticated for answer in came),
        min(answer.ttl for answer in found or came),
    )


def make_resolver(reactor: Any, servers: Iterable[str] = (), *, resolv_conf: str = RESOLV_CONF) -> Resolver:
    """The resolver of a running system, cache included.

    `servers` are texts as :func:`qtwist.dns.config.parse_server` takes them (ValueError when one makes no sense);
    without any, those of `resolv_conf` are asked, and changes of that file noticed. `reactor` provides
    IReactorFDSet, IReactorTCP and IReactorTime.
    """
    texts = tuple(servers)
    source = fixed(parse_servers(texts)) if texts else ResolvConf(resolv_conf)
    stub = StubResolver(source, reactor, exchange.udp(reactor), exchange.tcp(reactor))
    return Resolver(reactor, Cache(reactor, stub.lookup).lookup, source)
