"""Deliveries of one message to one place that go in one transaction, with a result for each (RFC 5321 §3.3).

The queue manager starts the recipients of a message one by one, and says with each how many may be under way together.
So nobody waits longer than the manager takes to start them: a batch goes when all that were told of are here, when it
is full, or when none has come for a moment. A delivery that nobody else belongs to never comes here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from qtwist.mail.envelope import Report

GATHER_SECONDS = 0.005
"""How long a batch waits for the next recipient."""

Send = Callable[[tuple[bytes, ...]], Awaitable[Sequence[Report | None]]]

_log = Logger(namespace="qtwist.remote")


@attrs.define(eq=False)
class _Batch:
    """Recipients, and who waits for their results. `send` is that of the first one."""

    number: int
    send: Send
    recipients: list[bytes] = attrs.field(factory=list)
    results: list[Deferred[Report | None]] = attrs.field(factory=list)
    timer: IDelayedCall | None = None


class Batches:
    """The batches of the remote channel."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._open: dict[tuple[int, Hashable], _Batch] = {}
        self._here: Counter[int] = Counter()  # deliveries of each message that have no report yet

    def end(self, number: int) -> None:
        """A delivery of message `number` that had to be tried alone is over."""
        self._here[number] -= 1
        if not self._here[number]:
            del self._here[number]

    def join(
        self, number: int, place: Hashable, recipient: bytes, siblings: int, most: int, send: Send
    ) -> Deferred[Report | None]:
        """Have `recipient` in the next transaction of message `number` with `place`.

        `siblings` is how many deliveries of the message may be under way, this one included; `most` bounds the
        recipients of a transaction. `send` carries out a transaction, and gives a report for each recipient, or None
        for one that has to be tried alone; so does the Deferred, which never errbacks. After None, :meth:`end` must be
        called.
        """
        self._here[number] += 1
        batch = self._open.get((number, place))
        if batch is None:
            batch = self._open[number, place] = _Batch(number, send)
            batch.timer = self._clock.callLater(GATHER_SECONDS, self._go, place, batch)
        elif batch.timer is not None:
            batch.timer.reset(GATHER_SECONDS)
        if recipient in batch.recipients:
            return succeed(None)  # who is named twice gets it twice, which a server may see differently
        result: Deferred[Report | None] = Deferred()
        batch.recipients.append(recipient)
        batch.results.append(result)
        if len(batch.recipients) >= most:
            self._go(place, batch)
        elif self._here[number] >= siblings:
            # All are here: so are those for other places.
            for key, one in [(key, one) for key, one in self._open.items() if one.number == number]:
                self._go(key[1], one)
        return result

    def _go(self, place: Hashable, batch: _Batch) -> None:
        del self._open[batch.number, place]
        if batch.timer is not None and batch.timer.active():
            batch.timer.cancel()
        Deferred.fromCoroutine(self._run(batch))

    async def _run(self, batch: _Batch) -> None:
        reports: Sequence[Report | None] = [None] * len(batch.results)
        if len(batch.results) > 1:
            try:
                reports = await batch.send(tuple(batch.recipients))
            except Exception:  # it says nothing against anybody: each alone will meet it again, or not
                _log.failure("a transaction of message {number} failed", number=batch.number)
        # They are all over before the first is told: whoever hears it may come with the next one at once.
        for report in reports:
            if report is not None:
                self.end(batch.number)
        for result, report in zip(batch.results, reports, strict=True):
            result.callback(report)
