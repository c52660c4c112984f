"""control/relaylimits: how many recipients a login may send to (spec/related.md §14.3). Pure.

A line is ``who:recipients/seconds``, with more such rates behind commas; without seconds, a day is meant. `who` is a
login, ``@domain``, or nothing, for all others; 0 recipients are no limit.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping

import attrs

from qtwist.mail.domains import ascii_address

DAY = 86400
#: How many logins are remembered; those that have not sent for longest are forgotten.
MOST_REMEMBERED = 20_000

_RATE = re.compile(rb"([0-9]{1,9})(?:/([1-9][0-9]{0,8}))?")


@attrs.frozen
class Rate:
    """So many recipients at once, and as many again in each `seconds`."""

    recipients: int
    seconds: int = DAY


Limits = Mapping[bytes, tuple[Rate, ...]]


def parse(line: bytes) -> tuple[bytes, tuple[Rate, ...]]:
    """Who, and the rates, of a line. ValueError when it is none."""
    who, colon, text = line.partition(b":")
    rates = []
    for part in text.split(b","):
        match = _RATE.fullmatch(part.strip())
        if not colon or match is None:
            raise ValueError("who:recipients/seconds")
        rates.append(Rate(int(match[1]), int(match[2] or DAY)))
    return ascii_address(who), tuple(rate for rate in rates if rate.recipients)


def parse_all(lines: Iterable[bytes]) -> Limits:
    """The rates by whom they are for. ValueError."""
    return dict(map(parse, lines))


def rates_of(limits: Limits, login: bytes) -> tuple[Rate, ...]:
    """Those for a login: its own, those of its domain, or those of everybody."""
    login = ascii_address(login)
    domain = b"@" + login.rpartition(b"@")[2] if b"@" in login else b""
    for who in (login, domain, b""):
        if who in limits:
            return limits[who]
    return ()


@attrs.define
class _Bucket:
    """What is left of a rate."""

    left: float
    at: float


class Meter:
    """Counts recipients. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[bytes, dict[Rate, _Bucket]] = OrderedDict()
        self._told: set[bytes] = set()

    def take(self, login: bytes, rates: tuple[Rate, ...], now: float) -> Rate | None:
        """Count one more recipient of `login`; the rate that does not allow it, None when all do."""
        buckets = self._buckets.setdefault(login, {})
        self._buckets.move_to_end(login)
        if len(self._buckets) > MOST_REMEMBERED:
            self._told.discard(self._buckets.popitem(last=False)[0])
        for rate in rates:
            bucket = buckets.setdefault(rate, _Bucket(rate.recipients, now))
            gained = (now - bucket.at) * rate.recipients / rate.seconds
            bucket.left, bucket.at = min(rate.recipients, bucket.left + gained), now
            if bucket.left < 1:
                return rate
        for rate in rates:
            buckets[rate].left -= 1
        self._told.discard(login)
        return None

    def is_news(self, login: bytes) -> bool:
        """Whether a refusal to `login` is the first since it could last send."""
        news = login not in self._told
        self._told.add(login)
        return news
