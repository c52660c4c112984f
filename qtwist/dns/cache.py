"""Remembers answers for as long as they hold, and lets all who ask the same at once share one query.

Positive answers live for their TTL, at most a day; "no such name" and "no such record" for their negative TTL
(RFC 2308), at most five minutes, so that a mended domain gets its mail soon. Failures are not remembered. Bounded in
entries and in what one entry may hold; the entry not used for longest goes first. Clock and lookup are injected.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from qtwist.dns import names
from qtwist.interfaces import Answer

ENTRIES = 10_000
LONGEST = 86_400
LONGEST_NEGATIVE = 300

# Octets of record data. No answer that mail is routed by comes near it, and 10,000 of them stay within some 40 MB.
LARGEST = 4096

Lookup = Callable[[bytes, int], "Deferred[Answer]"]


@attrs.define(eq=False)
class _Shared:
    """A query under way and those who wait for its answer."""

    query: Deferred[None] | None = None
    waiters: list[Deferred[Answer]] = attrs.Factory(list)


class Cache:
    """A lookup with a memory: `lookup` has the signature and the promises of the one it is given."""

    def __init__(self, clock: IReactorTime, lookup: Lookup, *, entries: int = ENTRIES) -> None:
        self._clock = clock
        self._ask = lookup
        self._entries = entries
        self._known: OrderedDict[tuple[bytes, int], tuple[float, Answer]] = OrderedDict()
        self._shared: dict[tuple[bytes, int], _Shared] = {}

    def __len__(self) -> int:
        return len(self._known)

    def lookup(self, name: bytes, type: int) -> Deferred[Answer]:
        """The answer, from memory or asked; its `ttl` is what is left of it.

        Cancelling gives up one's own interest; the query itself ends when nobody waits for it any more.
        """
        key = (names.canonical(name) or name, type)
        answer = self._recall(key)
        if answer is not None:
            return succeed(answer)
        shared = self._shared.get(key)
        first = shared is None
        if shared is None:
            shared = self._shared[key] = _Shared()
        mine: Deferred[Answer] = Deferred(lambda waiter: self._leave(key, shared, waiter))
        shared.waiters.append(mine)
        if first:
            shared.query = self._ask(name, type).addBoth(self._settle, key, shared)
        return mine

    def _recall(self, key: tuple[bytes, int]) -> Answer | None:
        known = self._known.get(key)
        if known is None:
            return None
        expires, answer = known
        left = expires - self._clock.seconds()
        if left <= 0:
            del self._known[key]
            return None
        self._known.move_to_end(key)
        return attrs.evolve(answer, ttl=int(left))

    def _settle(self, result: Answer | Failure, key: tuple[bytes, int], shared: _Shared) -> None:
        if self._shared.get(key) is shared:
            del self._shared[key]
        if isinstance(result, Answer):
            result = attrs.evolve(result, ttl=min(result.ttl, LONGEST if result.records else LONGEST_NEGATIVE))
            self._remember(key, result)
        waiters, shared.waiters = shared.waiters, []
        for waiter in waiters:
            waiter.callback(result)  # a Failure makes it an errback

    def _remember(self, key: tuple[bytes, int], answer: Answer) -> None:
        if answer.ttl <= 0 or _size(answer) > LARGEST:
            return
        self._known[key] = (self._clock.seconds() + answer.ttl, answer)
        self._known.move_to_end(key)
        while len(self._known) > self._entries:
            self._known.popitem(last=False)

    def _leave(self, key: tuple[bytes, int], shared: _Shared, waiter: Deferred[Answer]) -> None:
        shared.waiters.remove(waiter)
        if not shared.waiters and shared.query is not None:
            if self._shared.get(key) is shared:
                del self._shared[key]
            shared.query.cancel()


def _size(answer: Answer) -> int:
    total = 0
    for record in answer.records:
        for part in record if isinstance(record, tuple) else (record,):
            total += 16 + (len(part) if isinstance(part, (bytes, str)) else 0)
    return total
