"""How guessing passwords is made slow, without locking anybody out.

Pure: the time is an argument, in seconds of any clock that only goes forward.

Each failure makes the next answer "no" come later, twice as late each time, for the network that it came from and for
the name that was tried, whichever is worse; a network that does not wait for its answer waits before its next try.
So one network gets few guesses, however many connections it opens. A right password is never slowed by failures that
came from other networks, and a name that has logged in from a network before has no part in that network's
failures.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from qtwist.mail.networks import network_of

#: A "no" comes after this many seconds, and later after further failures. All that checking may take goes on within it,
#: so that its length tells nothing.
FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
#: A try that would have to wait for longer is not made at all, so that few of them wait at a time.
LONGEST_WAIT = 60.0
#: One failure is forgiven after this many seconds.
FORGIVENESS = 60.0
#: How many networks, names, and pairs of them are remembered; those that were not seen for longest are forgotten.
MOST_REMEMBERED = 20_000
#: More failures than this would not change anything.
_MOST_FAILURES = 20


class _Record:
    """Failures on one account; `turn` is the earliest time of the next try."""

    __slots__ = ("_at", "_failures", "turn")

    def __init__(self) -> None:
        self._failures = 0.0
        self._at = 0.0
        self.turn = 0.0

    def failures(self, now: float) -> float:
        return max(0.0, self._failures - (now - self._at) / FORGIVENESS)

    def add(self, now: float) -> float:
        self._failures = min(self.failures(now) + 1, _MOST_FAILURES)
        self._at = now
        return self._failures


class Guard:
    """Remembers who failed. A try is announced by :meth:`wait` and ends with :meth:`failed` or :meth:`succeeded`."""

    def __init__(self) -> None:
        self._networks: OrderedDict[str, _Record] = OrderedDict()
        self._names: OrderedDict[bytes, _Record] = OrderedDict()
        self._known: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def wait(self, ip: str, name: bytes, now: float) -> float | None:
        """Seconds that this try has to wait before it is looked at; None when it is not to be made at all."""
        network = network_of(ip)
        record = self._networks.get(network)
        if record is None or (network, name) in self._known or record.turn <= now:
            return 0.0
        wait = record.turn - now
        if wait > LONGEST_WAIT:
            return None
        record.turn += _delay(record.failures(now) + 1)
        return wait

    def failed(self, ip: str, name: bytes, now: float) -> float:
        """Count a failure; seconds until it may be answered, from when the try was looked at."""
        network = network_of(ip)
        self._known.pop((network, name), None)
        record = _remembered(self._networks, network)
        delay = _delay(max(record.add(now), _remembered(self._names, name).add(now)))
        record.turn = max(record.turn, now + delay)
        return delay

    def succeeded(self, ip: str, name: bytes) -> None:
        """Remember that `name` comes from there. The failures of others there stay counted."""
        key = (network_of(ip), name)
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)


def _delay(failures: float) -> float:
    return min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** max(0, math.ceil(failures) - 1))


def _remembered(table: OrderedDict, key) -> _Record:  # type: ignore[type-arg,no-untyped-def]
    record = table.get(key)
    if record is None:
        record = table[key] = _Record()
        if len(table) > MOST_REMEMBERED:
            table.popitem(last=False)
    else:
        table.move_to_end(key)
    return record
