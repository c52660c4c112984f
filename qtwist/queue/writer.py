"""The thread that writes the journal: whatever came in during the last flush shares the next one."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qtwist.queue.journal import Journal, Record

_log = Logger()

#: Records that nobody waits for are flushed within so many seconds, or when the next one comes after that.
IDLE = 1.0
#: Records written in one go.
BATCH = 2000


@attrs.frozen
class _Job:
    records: Sequence[Record] = ()
    answer: Deferred[int] | None = None
    oldest: int = 0
    renew: bool = False
    patient: Deferred[None] | None = None


class JournalWriter:
    """Writes records in the order in which they come. Methods run in the reactor thread.

    What comes in one turn of the reactor is handed to the thread together: waking it costs more than most records.
    `reactor` provides IReactorTime and IReactorFromThreads; `answered` is called after commits were answered.
    """

    def __init__(self, reactor: Any, journal: Journal, answered: Callable[[], None] = lambda: None) -> None:
        self._reactor = reactor
        self._journal = journal
        self._answered = answered
        self._jobs: queue.SimpleQueue[list[_Job | None]] = queue.SimpleQueue()
        self._turn_jobs: list[_Job | None] = []  # of this turn of the reactor
        self._ended: Deferred[None] = Deferred()
        self._since: float | None = None  # when the first record was written that no flush has followed
        self._patient: list[Deferred[None]] = []  # wait for the next flush
        self.broken: OSError | None = None

    def start(self) -> None:
        """Start the thread; once."""
        # A daemon, so that a process which ends without stop() ends: the journal survives a crash at any point.
        threading.Thread(target=self._work, name="journal writer", daemon=True).start()

    def append(self, *records: Record) -> None:
        """Write records soon; nobody waits for them."""
        self._put(_Job(records))

    def commit(self, *records: Record) -> Deferred[int]:
        """Write records; fires when they, and all before them, are durable.

        With a generation that is not after theirs; errbacks with OSError when the disk has failed.
        """
        answer: Deferred[int] = Deferred()
        self._put(_Job(records, answer))
        return answer

    def durable(self) -> Deferred[None]:
        """Fires when all that came so far is durable, for which it is not flushed any sooner; perhaps never."""
        answer: Deferred[None] = Deferred()
        self._put(_Job(patient=answer))
        return answer

    def release(self, oldest: int) -> None:
        """Generations before `oldest` do not count any more."""
        self._put(_Job(oldest=oldest))

    def renew(self) -> Deferred[int]:
        """After the disk has failed: begin the journal anew, without what was in it. Answers as :meth:`commit`."""
        answer: Deferred[int] = Deferred()
        self._put(_Job(answer=answer, renew=True))
        return answer

    def stop(self) -> Deferred[None]:
        """Fires when all that came is written and flushed."""
        self._put(None)
        return self._ended

    def _put(self, job: _Job | None) -> None:
        if not self._turn_jobs:
            self._reactor.callLater(0, self._hand_over)
        self._turn_jobs.append(job)

    def _hand_over(self) -> None:
        jobs, self._turn_jobs = self._turn_jobs, []
        self._jobs.put(jobs)

    def _work(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = self._next_batch()
            self._turn(batch, stopping)

    def _next_batch(self) -> tuple[list[_Job], bool]:
        try:
            jobs = self._jobs.get(timeout=IDLE)
        except queue.Empty:
            self._flush()
            jobs = self._jobs.get()
        return self._gather(jobs)

    def _gather(self, jobs: list[_Job | None]) -> tuple[list[_Job], bool]:
        """What has come up to now, `jobs` before all; and whether the end has come."""
        batch: list[_Job] = []
        while True:
            batch += [job for job in jobs if job is not None]
            if jobs[-1] is None:
                return batch, True
            if len(batch) >= BATCH:
                return batch, False
            try:
                jobs = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False

    def _turn(self, batch: list[_Job], stopping: bool) -> None:
        answers = [job.answer for job in batch if job.answer is not None]
        records = [record for job in batch for record in job.records]
        if any(job.renew for job in batch):
            self._renew()
        self._patient += [job.patient for job in batch if job.patient is not None]
        generation = self._journal.generation
        overdue = self._since is not None and time.monotonic() - self._since >= IDLE
        error = self._write(records, sync=bool(answers) or stopping or overdue)
        oldest = max((job.oldest for job in batch), default=0)
        if oldest:
            self._journal.release(oldest)
        if answers:
            self._reactor.callFromThread(self._report, answers, generation if error is None else error)
        if stopping:
            self._reactor.callFromThread(self._ended.callback, None)

    def _flush(self) -> None:
        if self._since is not None:
            self._write((), sync=True)

    def _write(self, records: Sequence[Record], sync: bool) -> OSError | None:
        if self.broken is None:
            try:
                self._journal.write(records, sync)
            except OSError as error:
                # What a flush has lost, it has forgotten: nothing that is written from here on could be trusted.
                self.broken = error
                _log.error("the journal cannot be written: {error}; messages go to files", error=error)
            except Exception as error:  # a bug must not end this thread, for then all sessions would wait for ever
                self.broken = OSError(errno.EIO, repr(error))
                _log.failure("the journal failed in an unexpected way")
        if sync or self.broken is not None:
            self._since = None
            if self.broken is None:
                self._wait_no_longer()
        elif records and self._since is None:
            self._since = time.monotonic()
        return self.broken

    def _renew(self) -> None:
        try:
            self._journal.open()
        except OSError as error:
            self.broken = error
        else:
            self.broken = None
            self._wait_no_longer()  # what was written before does not count any more

    def _wait_no_longer(self) -> None:
        if self._patient:
            patient, self._patient = self._patient, []
            self._reactor.callFromThread(_fire, patient)

    def _report(self, answers: list[Deferred[int]], result: Any) -> None:
        for answer in answers:
            if isinstance(result, OSError):
                answer.errback(result)
            else:
                answer.callback(result)
        self._answered()


def _fire(waiting: list[Deferred[None]]) -> None:
    for one in waiting:
        one.callback(None)
