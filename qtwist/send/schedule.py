"""When to try which recipient: qmail's quadratic retries and a fair choice among messages (spec/qmail.md §9.5).

Pure rules over times that the caller passes in (seconds since the epoch); nothing here reads a clock, a file or a
socket. One :class:`Channel` holds the messages of ``local`` or ``remote``: those that wait for their time, and those
that are being tried now (a :class:`Pass` each).

Three things differ from qmail-send on purpose. qmail reads one recipient file at a time to its end, so a message with
many or slow recipients holds up all others; here several passes are open at once, a free slot goes to the pass with
the fewest running deliveries, and one message never holds all slots. qmail takes what is due longest first, so that new
mail waits behind all that has become due meanwhile (a week's deferred mail after a day without the daemon); here new
mail and later tries take turns, and later tries never hold all slots together. And the next due time is known before
the first delivery of a pass starts, so that it can be recorded before anybody is dialled.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from math import isqrt

import attrs

from qtwist.interfaces import RecipientRecord
from qtwist.mail.asked import Kept
from qtwist.mail.dsn import About

#: Added to the square root of a message's age at each try: local mail is retried sooner (§9.5).
STEP = {"local": 10, "remote": 20}

#: How many recipients of one message are read ahead.
READ_AHEAD = 100


def next_attempt(birth: float, now: float, channel: str) -> float:
    """When a message born at `birth` that is tried at `now` is due next: ages 0, 100, 400, 900… for local mail and
    0, 400, 1600, 3600… for remote mail (§9.5)."""
    age = max(0, int(now - birth))
    return birth + (isqrt(age) + STEP[channel]) ** 2


def is_dying(birth: float, now: float, lifetime: float) -> bool:
    """Whether this try is the last one: a temporary failure now becomes permanent (§9.5)."""
    return now > birth + lifetime


@attrs.define(eq=False)
class Pass:
    """One walk through the recipients of one message on one channel."""

    number: int
    sender: bytes  # as stored in info/N
    retry: float  # when the message is due again if a recipient is left
    dying: bool
    pending: deque[RecipientRecord] = attrs.field(factory=deque)  # read, not yet started
    offset: int = 0  # where in the channel file the next records start
    at_end: bool = False  # the whole file has been read
    reading: bool = True  # records have been asked for, or will be as soon as the pass is recorded: it is not over
    running: int = 0  # deliveries under way, their marks included
    left: bool = False  # some recipient stays for the next try
    birth: float = 0
    first: bool = False  # the message is new
    asked: Kept | None = None  # parameters of DSN
    delayed: list[About] = attrs.field(factory=list)  # who is to be told of, in this pass

    @property
    def wants_reading(self) -> bool:
        return not (self.at_end or self.reading) and len(self.pending) < READ_AHEAD // 2

    @property
    def is_over(self) -> bool:
        return self.at_end and not (self.pending or self.running or self.reading)


class Channel:
    """The messages of one channel and its delivery slots.

    `concurrency` is the number of deliveries that may run at once; 0 puts the channel on hold.
    """

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.running = 0
        self.passes: dict[int, Pass] = {}
        self._opening: dict[int, bool] = {}  # message number -> whether it is new
        self._waiting: dict[int, float] = {}  # message number -> due
        self._new: OrderedDict[int, None] = OrderedDict()  # those of them that were never tried, and are due
        self._heap: list[tuple[float, int]] = []  # of the others, and of some that wait no longer or for another time
        self._later_passes = 0  # of messages that are not new, open or about to be
        self._later_running = 0  # deliveries of these
        self._turn_of_new = True
        self._unrecorded: set[int] = set()  # waiting messages whose due time differs from the one on disk

    @property
    def share(self) -> int:
        """The most slots that one message may hold, so that the others always get some; and all later tries together,
        so that new mail does."""
        return max(1, self.concurrency - self.concurrency // 4)

    # The messages that wait.

    def add(self, number: int, due: float) -> None:
        """Put a message in line; the disk knows `due` already."""
        self._new.pop(number, None)
        self._waiting[number] = due
        heapq.heappush(self._heap, (due, number))

    def add_new(self, number: int, due: float) -> None:
        """Put a message in line that was never tried; `due` is not in the future."""
        self._waiting[number] = due
        self._new[number] = None

    def wake_all(self, now: float) -> None:
        """Make every waiting message due now (ALRM, §9.2)."""
        self.wake(list(self._waiting), now)

    def wake(self, numbers: Iterable[int], now: float) -> None:
        """Make those of these messages that wait due now."""
        for number in numbers:
            if number in self._waiting and number not in self._new:
                self.add(number, min(self._waiting[number], now))
                self._unrecorded.add(number)

    def withdraw(self, number: int) -> float | None:
        """Take a waiting message out of the line; when it would have been due, None when it does not wait."""
        self._unrecorded.discard(number)
        self._new.pop(number, None)
        return self._waiting.pop(number, None)

    def next_due(self) -> float | None:
        """When the earliest waiting message is due (a new one is, whatever else waits), or None when none waits."""
        if self._new:
            return self._waiting[next(iter(self._new))]
        return self._next_later()

    def _next_later(self) -> float | None:
        """When the earliest message that is not new is due."""
        while self._heap and (self._heap[0][1] in self._new or self._waiting.get(self._heap[0][1]) != self._heap[0][0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def waiting(self) -> int:
        return len(self._waiting)

    def waiting_numbers(self) -> list[int]:
        """The messages that wait, those included that are due."""
        return list(self._waiting)

    def is_waiting(self, number: int) -> bool:
        return number in self._waiting

    def unrecorded(self) -> Iterator[tuple[int, float]]:
        """The waiting messages whose due time should be written to disk before the end (§9.2)."""
        for number in self._unrecorded:
            if number in self._waiting:
                yield number, self._waiting[number]

    # The messages that are being tried.

    def take_due(self, now: float) -> int | None:
        """A message to open a pass for, or None: nothing is due, or enough passes are open.

        The caller answers with :meth:`begin` or :meth:`give_back`.
        """
        if len(self.passes) + len(self._opening) >= 2 * self.concurrency:
            return None
        due = self._next_later()
        later = due is not None and due <= now and self._later_passes < 2 * self.share
        if self._new and (self._turn_of_new or not later):
            number = next(iter(self._new))
            new = True
        elif later:
            _, number = heapq.heappop(self._heap)
            new = False
            self._later_passes += 1
        else:
            return None
        self._turn_of_new = not new
        self.withdraw(number)
        self._opening[number] = new
        return number

    def begin(self, number: int, sender: bytes, birth: float, now: float, lifetime: float) -> Pass:
        """Open the pass of a message that :meth:`take_due` gave."""
        first = self._opening.pop(number)
        retry = next_attempt(birth, now, self.name)
        opened = Pass(number, sender, retry, is_dying(birth, now, lifetime), birth=birth, first=first)
        self.passes[number] = opened
        return opened

    def give_back(self, number: int, due: float) -> None:
        """The pass could not be opened; try again at `due`."""
        if not self._opening.pop(number):
            self._later_passes -= 1
        self.add(number, due)

    def choose(self) -> tuple[Pass, RecipientRecord] | None:
        """Take a slot for the next delivery: the pass with the fewest running deliveries gets it.

        None when no slot is free or no pass has a recipient that may start. The caller ends with :meth:`ended`.
        """
        if self.running >= self.concurrency:
            return None
        best: Pass | None = None
        for one in self.passes.values():
            if not one.first and self._later_running >= self.share:
                continue
            if one.pending and one.running < self.share and (best is None or one.running < best.running):
                best = one
                if not best.running:
                    break
        if best is None:
            return None
        best.running += 1
        self.running += 1
        self._later_running += not best.first
        return best, best.pending.popleft()

    def siblings(self, one: Pass) -> int:
        """How many deliveries a new one of a pass may wait for, itself included (:class:`Delivery`).

        Remote ones of a pass are joined; in later tries each goes alone, as with qmail: so no recipient stays
        undelivered because of others. Local ones of all messages can share flushes; two stand for a short wait, as half
        of the slots are taken.
        """
        if self.name == "local":
            many = 2 * self.running <= self.concurrency
            return self.concurrency - self.running + 1 if many else min(2, self.concurrency)
        if not one.first:
            return 1
        return max(1, min(one.running + len(one.pending), self.share))

    def free_slot(self, one: Pass) -> None:
        """A delivery of a pass has reported; its slot may be used again."""
        self.running -= 1
        self._later_running -= not one.first

    def end(self, one: Pass) -> None:
        """Close a pass. The caller puts the message back with :meth:`add`, or has finished it on this channel."""
        del self.passes[one.number]
        self._later_passes -= not one.first

    def is_trying(self, number: int) -> bool:
        """Whether a pass of the message is open, or about to be."""
        return number in self.passes or number in self._opening

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.passes and not self._opening
