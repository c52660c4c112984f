"""Figures of TLS with other domains, as TLSRPT counts them (RFC 8460 §4): a line in the log for each domain and day."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone

from twisted.logger import Logger

MOST_DOMAINS = 10_000
"""Domains of a day that are counted each; the others are counted together, as ``*``."""

TLSA, STS, NO_POLICY = "tlsa", "sts", "no-policy-found"

_log = Logger(namespace="qtwist.tlsrpt")

# Phrases of ours, by what they begin with, and RFC 8460 §4.3.
_RESULTS = (
    ("STARTTLS is not offered", "starttls-not-supported"),
    ("STARTTLS was refused", "starttls-not-supported"),
    ("the certificate has expired", "certificate-expired"),
    ("the certificate is not for", "certificate-host-mismatch"),
    ("the certificate", "certificate-not-trusted"),
)


def result_type(why: str) -> str:
    """The result type of RFC 8460 §4.3 for what was wrong with TLS."""
    return next((result for begin, result in _RESULTS if why.startswith(begin)), "validation-failure")


class TLSFigures:
    """Counts sessions. What was counted on a day (UTC) is told when the next one has begun, or by :meth:`tell`.

    `now` is in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._day = ""
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def count(self, domain: bytes, policy: str, why: str | None) -> None:
        """A session for mail to `domain`: encrypted as `policy` wants it, or not, and why."""
        day = f"{datetime.fromtimestamp(self._now(), timezone.utc):%Y-%m-%d}"
        if day != self._day:
            self.tell()
            self._day = day
        name = domain.decode("ascii", "backslashreplace").lower()
        if (name, policy) not in self._counts and len(self._counts) >= MOST_DOMAINS:
            name = "*"
        self._counts.setdefault((name, policy), Counter())["ok" if why is None else result_type(why)] += 1

    def tell(self) -> None:
        """Log what was counted, and begin anew."""
        counts, self._counts = self._counts, {}
        for (domain, policy), results in sorted(counts.items()):
            failures = {result: number for result, number in sorted(results.items()) if result != "ok"}
            _log.info(
                "TLS figures of {day} for {domain} ({policy}): {successes} sessions good, {failed} failed{details}",
                day=self._day,
                domain=domain,
                policy=policy,
                successes=results["ok"],
                failed=sum(failures.values()),
                failures=failures,
                details="".join(f", {result} {number}" for result, number in failures.items()),
            )
