"""Asks the servers in turn until one answers: time limits, retries, TCP after truncation, CNAME chains.

The schedule is that of ucspi-tcp's DNS client (spec/related.md §4.10): every server in turn with a short time limit,
then all again with longer ones. Sockets and clock are injected.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, DeferredSemaphore, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime

from qtwist.dns import answers, message, names
from qtwist.dns.config import Server
from qtwist.dns.exchange import Ask, ServerFailure
from qtwist.dns.message import Question, Reply
from qtwist.interfaces import Answer, DNSTemporaryError

SCHEDULE = (1.0, 3.0, 11.0, 15.0)
DEADLINE = 45.0
TCP_LIMIT = 10.0

# After a server let us wait in vain, others are asked before it for this long.
SILENCE_REMEMBERED = 60.0

OUTSTANDING = 128
WAITING = 4096


class StubResolver:
    """Looks names up, without memory of the answers.

    `servers` gives the servers of the moment, best first. One lookup takes at most `deadline` seconds in all; each
    number of `schedule` is one round over the servers and the seconds that each gets. At most `outstanding` queries
    run at once, and `waiting` more stand in line; beyond that a lookup fails at once. `number` makes query ids.
    """

    def __init__(
        self,
        servers: Callable[[], Sequence[Server]],
        clock: IReactorTime,
        udp: Ask,
        tcp: Ask,
        *,
        schedule: Sequence[float] = SCHEDULE,
        deadline: float = DEADLINE,
        outstanding: int = OUTSTANDING,
        waiting: int = WAITING,
        number: Callable[[], int] = lambda: secrets.randbits(16),
    ) -> None:
        self._servers = servers
        self._clock = clock
        self._udp = udp
        self._tcp = tcp
        self._schedule = tuple(schedule)
        self._deadline = deadline
        self._slots = DeferredSemaphore(outstanding)
        self._waiting = waiting
        self._number = number
        self._silent: dict[Server, float] = {}

    def lookup(self, name: bytes, type: int) -> Deferred[Answer]:
        """The records of `name`; `records` of the Answer as in :class:`qtwist.dns.message.Record`.

        A name that cannot exist is ``nxdomain`` without asking. Errbacks with DNSTemporaryError. May be cancelled.
        """
        canonical = names.canonical(name)
        if canonical is None:
            return succeed(Answer("nxdomain", ()))
        return Deferred.fromCoroutine(self._lookup(Question(canonical, type)))

    async def _lookup(self, question: Question) -> Answer:
        end = self._clock.seconds() + self._deadline
        ttl: int | None = None
        authenticated = True
        hops = 0
        while True:
            outcome = answers.conclude(await self._ask(question, end), question, hops)
            authenticated = authenticated and outcome.authenticated
            ttl = outcome.ttl if ttl is None else min(ttl, outcome.ttl)
            if isinstance(outcome, Answer):
                return Answer(outcome.status, outcome.records, authenticated, ttl)
            target = names.canonical(outcome.target)
            if target is None:
                return Answer("nxdomain", (), authenticated, ttl)
            question = Question(target, question.type)
            hops = outcome.hops

    async def _ask(self, question: Question, end: float) -> Reply:
        """The NOERROR or NXDOMAIN reply of the first server that gives one, before the clock shows `end`."""
        slot = self._slots.acquire()
        if not slot.called:
            if len(self._slots.waiting) > self._waiting:
                slot.addErrback(lambda _: None)
                slot.cancel()
                raise DNSTemporaryError("too many DNS lookups at once")
            slot.addTimeout(max(0.0, end - self._clock.seconds()), self._clock)
        try:
            await slot
        except TimeoutError:
            raise DNSTemporaryError("too many DNS lookups at once") from None
        try:
            return await self._ask_all(question, end)
        finally:
            self._slots.release()

    async def _ask_all(self, question: Question, end: float) -> Reply:
        servers = self._in_order()
        reason = "DNS lookup timed out"
        for limit in self._schedule:
            for server in tuple(servers):
                left = end - self._clock.seconds()
                if left <= 0:
                    raise DNSTemporaryError(reason)
                try:
                    reply = await self._ask_one(server, question, min(limit, left), end)
                except TimeoutError:
                    self._silent[server] = self._clock.seconds() + SILENCE_REMEMBERED
                    reason = f"DNS lookup timed out (server {server})"
                except ServerFailure as failure:
                    servers.remove(server)
                    reason = f"DNS server {server}: {failure}"
                else:
                    self._silent.pop(server, None)
                    return reply
        raise DNSTemporaryError(reason)

    def _in_order(self) -> list[Server]:
        now = self._clock.seconds()
        servers = list(self._servers())
        self._silent = {server: until for server, until in self._silent.items() if until > now and server in servers}
        return sorted(servers, key=lambda server: server in self._silent)

    async def _ask_one(self, server: Server, question: Question, limit: float, end: float) -> Reply:
        reply = await self._try(self._udp, server, question, limit, edns=True)
        edns = reply.rcode not in (message.FORMERR, message.NOTIMP, message.BADVERS)
        if not edns:
            # A server from before EDNS (RFC 6891 §6.2.2).
            reply = await self._try(self._udp, server, question, limit, edns=False)
        if reply.truncated:
            left = end - self._clock.seconds()
            reply = await self._try(self._tcp, server, question, min(TCP_LIMIT, max(0.0, left)), edns=edns)
            if reply.truncated:
                raise ServerFailure("truncated reply over TCP")
        if reply.rcode not in (message.NOERROR, message.NXDOMAIN):
            raise ServerFailure(reply.rcode_name)
        if not (reply.answers or reply.authoritative or reply.recursive):
            # A referral: to take it for "no records" would bounce mail that another server can route.
            raise ServerFailure("it neither knows the name nor looks it up for us")
        return reply

    def _try(self, ask: Ask, server: Server, question: Question, limit: float, *, edns: bool) -> Deferred[Reply]:
        number = self._number()
        query = message.encode_query(question, number, edns=edns)
        reply = ask(server, query, lambda wire: message.decode_reply(wire, question, number))
        if not reply.called:
            reply.addTimeout(limit, self._clock)
        return reply
