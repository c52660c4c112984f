"""DANE: TLSA records of other hosts, where the DNS can be believed (RFC 7672 §2).

A TLSA record is worth as much as the way it came. So records count only where the MX and address answers were
authenticated already, and the AD bit that says so counts only from a resolver that shows that it validates, at
the end of a way on which nobody can change it.
"""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.mail.envelope import Report
from qtwist.remote import reports
from qtwist.remote.hosts import Host
from qtwist.tls.dane import TLSA

OFF, ON_THIS_HOST, ANYWHERE = 0, 1, 2
"""control/dane: never; with resolvers on loopback; with any."""

SIGNED = b"arpa"
"""A zone whose signatures lead to the root's: a resolver that validates says so of what it holds."""

UNSIGNED = b"10.in-addr.arpa"
"""A zone that cannot be signed, as everybody has his own (RFC 6303 §4.1): one that sets AD here sets it always."""

_log = Logger(namespace="qtwist.remote")


class DANE:
    """Looks for TLSA records with `resolver`."""

    def __init__(self, resolver: IResolver) -> None:
        self._resolver = resolver
        self._told = ""

    async def look(self, hosts: tuple[Host, ...], port: int, trust: int) -> tuple[Host, ...] | Report:
        """`hosts` with the TLSA records that they have for `port`. `trust` is the number in control/dane.

        A host whose records cannot be had is left out, as it could be an attack (RFC 7672 §2.1.2); when that leaves
        none, the mail has to wait: a deferral.
        """
        names = list(dict.fromkeys(host.name.removesuffix(b".").lower() for host in hosts if host.secure))
        if not names:
            return hosts
        try:
            if not await self._validates(trust):
                return hosts
        except DNSTemporaryError:
            return reports.no_tlsa(names[0])
        questions: list[Deferred[Any]] = [self._resolver.tlsa(b"_%d._tcp.%b" % (port, name)) for name in names]
        records: dict[bytes, tuple[TLSA, ...]] = {}
        for name, (success, answer) in zip(names, await DeferredList(questions, consumeErrors=True), strict=True):
            if success:
                found = answer.records if answer.authenticated else ()
                records[name] = tuple(TLSA(*record) for record in found)
            elif not answer.check(DNSTemporaryError):
                answer.raiseException()
        known = []
        for host in hosts:
            name = host.name.removesuffix(b".").lower()
            if not host.secure:
                known.append(host)
            elif name in records:
                known.append(attrs.evolve(host, tlsa=records[name]))
        return tuple(known) or reports.no_tlsa(names[0])

    async def vouches(self, hosts: tuple[Host, ...], trust: int) -> bool:
        """Whether it is certain that these are the domain's mail exchangers. `trust` as in :meth:`look`, which has been
        asked before, so that what the resolver is worth is known. DNSTemporaryError when it has forgotten that."""
        return all(host.secure for host in hosts) and await self._validates(trust)

    async def _validates(self, trust: int) -> bool:
        """Whether the AD bits that come are to be believed. DNSTemporaryError when that cannot be found out now."""
        if trust < ANYWHERE and not self._resolver.local():
            return self._say("a resolver in use is not on this host")
        if not (await self._resolver.txt(SIGNED)).authenticated:
            return self._say("the resolver does not say that signed names are authentic")
        if (await self._resolver.txt(UNSIGNED)).authenticated:
            return self._say("the resolver says of unsigned names that they are authentic")
        self._told = ""
        return True

    def _say(self, why: str) -> bool:
        if why != self._told:
            self._told = why
            _log.warn("control/dane is of no use now: {why}; mail goes as if there were no TLSA records", why=why)
        return False
