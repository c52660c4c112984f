"""Messages in the journal: their steps, and how they are settled into qmail's files (doc/journal.md)."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Container, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.files.disk import Disk
from qtwist.queue import journal as records
from qtwist.queue.files import FileQueue
from qtwist.queue.journal import Journal, Record
from qtwist.queue.live import Live
from qtwist.queue.numbers import Numbers
from qtwist.queue.recovery import journal_directory
from qtwist.queue.settle import settle, unsettle
from qtwist.queue.workers import Stopped
from qtwist.queue.writer import JournalWriter

T = TypeVar("T")

#: Seconds that a message may stay in the journal; and between two looks.
SETTLE_AFTER = 5.0
SETTLE_INTERVAL = 1.0
#: How many are settled together.
SETTLE_BATCH = 200
#: What the journal holds at most: messages (each has a descriptor), octets of messages, segments.
MOST_MESSAGES = 2000
MOST_OCTETS = 64 * 1024 * 1024
MOST_SEGMENTS = 6
#: Seconds until something that the disk has refused is tried again.
TROUBLE_INTERVAL = 60.0

_log = Logger()


class SettlingQueue(FileQueue):
    """A FileQueue that has messages in a journal, too: `_live` has them, `_writer` takes their records."""

    def __init__(self, directory: str, disk: Disk, reactor: Any, segment_size: int) -> None:
        super().__init__(directory, disk, reactor)
        self._directory = journal_directory(self.layout)
        self._journal = Journal(disk, self._directory, segment_size)
        self._numbers = Numbers(disk, self.layout, self._directory)
        self._writer: JournalWriter | None = None
        self._live: dict[int, Live] = {}
        self._octets = 0
        self._generations: Counter[int] = Counter()
        self._known = 0  # what is accepted from now on is of this generation or a later one
        self._released = 0
        self._trouble = False  # what was to be settled last could not be
        self._resting: list[int] = []  # to be settled as soon as may be
        self._settled: Deferred[None] | None = None  # fires when what is being settled is
        self._timer: IDelayedCall | None = None
        self._stopping = False

    def _is_full(self) -> bool:
        return len(self._live) >= MOST_MESSAGES or self._octets >= MOST_OCTETS or len(self._generations) > MOST_SEGMENTS

    # The steps of a message.

    def _do(
        self, number: int, in_memory: Callable[[Live], T | Deferred[T]], in_files: Callable[[], Deferred[T]]
    ) -> Deferred[T]:
        """One step of a message, wherever it is now."""
        live = self._live.get(number)
        if live is None:
            return in_files()
        if live.waiting is not None:
            waiting: Deferred[None] = Deferred()
            live.waiting.append(waiting)
            return waiting.addCallback(lambda _: self._do(number, in_memory, in_files))
        try:
            result = in_memory(live)
        except (OSError, ValueError) as error:
            return fail(error)
        return result if isinstance(result, Deferred) else succeed(result)

    def _append(self, live: Live, record: Record) -> None:
        """A step that is in memory at once, and in the journal soon."""
        assert self._writer is not None
        live.entry.apply(record)
        self._writer.append(record)

    def _finish(self, live: Live) -> Deferred[None] | None:
        assert self._writer is not None
        if live.spoilt:
            return Deferred.fromCoroutine(self._finish_spoilt(live))
        number = live.entry.number
        self._writer.append(Record(records.END, number))
        self._forget(live)
        if live.entry.in_file is None:
            self._numbers.give_back(number)
        else:
            # The journal must have forgotten it before it goes. Its number is not used again: a program of the
            # recipient's may still be reading from it.
            self._writer.durable().addCallback(lambda _: self._remove_file(number))
        return None

    def _remove_file(self, number: int) -> Deferred[None]:
        """That of a number, which serves no more."""

        def failed(failure: Failure) -> None:
            failure.trap(OSError, Stopped)
            _log.warn("the file of a number cannot be removed: {error}", error=failure.value)

        return self._workers.run(self._numbers.settled, number).addErrback(failed)

    async def _finish_spoilt(self, live: Live) -> None:
        """What settling has left goes first: without the journal's word, it would count."""
        assert self._writer is not None
        number = live.entry.number
        waiting = live.waiting = []
        try:
            await self._workers.run(unsettle, self._disk, self.layout, number)
            self._writer.append(Record(records.END, number))
            self._forget(live)
            self._writer.durable().addCallback(lambda _: self._remove_file(number))
        finally:
            live.waiting = None
            # Not at once: those who wait are to find everything as it is after this step.
            for one in waiting:
                self._reactor.callLater(0, one.callback, None)

    def _forget(self, live: Live) -> None:
        """The journal need not hold this message any more."""
        del self._live[live.entry.number]
        live.close()
        self._octets -= len(live.entry.message)
        self._generations[live.generation] -= 1
        if not self._generations[live.generation]:
            del self._generations[live.generation]
            oldest = min(self._generations, default=self._known)
            if oldest > self._released and self._writer is not None:
                self._released = oldest
                self._writer.release(oldest)

    # Settling.

    def settle(self, number: int) -> None:
        """As IQueue says: into the files with it, together with others of the same moment."""
        if number in self._live and not self._stopping:
            self._resting.append(number)
            if len(self._resting) == 1:
                self._reactor.callLater(0, self._settle_resting)

    def _settle_resting(self) -> None:
        resting, self._resting = self._resting, []
        if self._settled is not None or self._trouble or self._stopping:
            self._resting = resting  # when those that are being settled are
            self._later()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._begin_settling(resting)

    def _later(self) -> None:
        """Look again, as long as there is something to look at."""
        if self._timer is not None or self._settled is not None or self._stopping:
            return
        if self._live or (self._writer is not None and self._writer.broken is not None):
            seconds = TROUBLE_INTERVAL if self._trouble else 0 if self._resting else SETTLE_INTERVAL
            self._timer = self._reactor.callLater(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        oldest = self._reactor.seconds() - (0 if self._is_full() else SETTLE_AFTER)
        old = [number for number, live in self._live.items() if live.entry.birth <= oldest]
        resting, self._resting = self._resting, []
        self._begin_settling([*old, *resting])

    def _begin_settling(self, numbers: list[int]) -> None:
        if not numbers and (self._writer is None or self._writer.broken is None):
            self._later()
            return
        self._settled = Deferred()
        Deferred.fromCoroutine(self._settle(numbers)).addBoth(self._looked)

    def _looked(self, result: Any) -> None:
        if result is not None:
            _log.failure("settling has failed", result)
        settled, self._settled = self._settled, None
        assert settled is not None
        settled.callback(None)
        self._later()

    async def _settle(self, numbers: list[int]) -> None:
        """Write messages into files and end them in the journal. One at a time."""
        assert self._writer is not None
        self._trouble = False
        if self._writer.broken is not None:
            await self._renew()
            return
        once = list(dict.fromkeys(numbers))
        for start in range(0, len(once), SETTLE_BATCH):
            batch = [self._live[number] for number in once[start : start + SETTLE_BATCH] if number in self._live]
            await self._settle_batch(batch, self._end)

    async def _renew(self) -> None:
        """After the disk has failed in the journal: everything becomes files, and the journal begins anew."""
        assert self._writer is not None
        with contextlib.suppress(OSError):
            await self._writer.commit()  # those that were accepted before it broke are here when this is answered
        await self._settle_batch(list(self._live.values()), self._begin_anew)
        if self._writer.broken is None:
            _log.info("the journal is in use again")

    async def _end(self, settled: list[Live], failed: int) -> int:
        assert self._writer is not None
        return await self._writer.commit(*(Record(records.END, live.entry.number) for live in settled))

    async def _begin_anew(self, settled: list[Live], failed: int) -> int:
        assert self._writer is not None
        if failed:
            raise OSError(errno.EIO, "not all messages could be settled")
        return await self._writer.renew()

    async def _settle_batch(
        self, batch: list[Live], end: Callable[[list[Live], int], Coroutine[Any, Any, int]]
    ) -> None:
        """`end` makes the journal forget those that were settled, durably; it is told how many were not."""
        batch = [live for live in batch if live.waiting is None]
        for live in batch:
            live.waiting = []
            live.spoilt = True
        entries = [live.entry for live in batch]
        if self._fresh is not None:
            self._fresh.update(entry.number for entry in entries if entry.channels is not None)
        done: list[Live] = []
        try:
            failed = await self._workers.run(settle, self._disk, self.layout, self._roots, self._directory, entries)
            for number, error in failed.items():
                _log.error("message {number} stays in the journal: {error}", number=number, error=error)
            self._trouble = bool(failed)
            settled = [live for live in batch if live.entry.number not in failed]
            self._known = await end(settled, len(failed))
            done = settled
        except (OSError, Stopped) as error:
            self._trouble = True
            _log.error("{count} messages stay in the journal: {error}", count=len(batch), error=error)
        finally:
            waiting = [one for live in batch for one in live.waiting or ()]
            for live in batch:
                live.waiting = None
            for live in done:
                self._forget(live)
            # Not at once: those who wait are to find everything as it is after this step.
            for one in waiting:
                self._reactor.callLater(0, one.callback, None)
        if any(live.entry.channels is None for live in done):
            self._wake()
        for live in done:
            await self._remove_file(live.entry.number)

    def collect_garbage(self) -> Deferred[None]:
        # A message that is just being settled has a mess file before it has anything else, and its inode may be old.
        busy = _Either(self._acceptor.busy, self._live)
        return self._workers.run(self._store.collect_garbage, self._reactor.seconds(), busy)


@attrs.frozen
class _Either:
    """What is in one of two containers."""

    _one: Container[int]
    _other: Container[int]

    def __contains__(self, number: object) -> bool:
        return number in self._one or number in self._other
