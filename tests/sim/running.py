"""Threads and reactor of the simulation: one thing runs at a time, and a random choice says which.

A task is what the product would give to a thread. It stops before every disk call and lets others have their turn, so
that what may run side by side is tried in many orders, and each of them can be had again from its seed.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from qtwist.queue.commit import GroupCommitter
from qtwist.queue.journal import Journal, Record
from qtwist.queue.workers import Stopped
from qtwist.queue.writer import IDLE, JournalWriter
from tests.sim.disk import Crash

#: How many tasks of a kind run side by side.
LIMITS = {"queue": 4, "mark": 1, "commit": 1, "journal": 1, "local": 10}


class SimulatedReactor(Clock):
    """A clock, and calls that wait for their turn."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.rightNow = seconds
        self.turns: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()

    def callFromThread(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.turns.append((function, arguments))


class Task:
    """A function that runs in steps."""

    def __init__(self, kind: str, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.kind = kind
        self.ended = False
        self._function = function
        self._done = done
        self._thread: threading.Thread | None = None
        self._go = threading.Lock()
        self._back = threading.Lock()
        self._go.acquire()
        self._back.acquire()

    def step(self) -> None:
        """Run up to the next pause, or to the end."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()

    def run(self) -> None:
        """From the beginning to the end, in this thread."""
        try:
            result = self._function()
        except Exception:
            result = Failure()
        finally:
            self.ended = True
        self._done(result)

    def pause(self) -> None:
        if threading.current_thread() is self._thread:
            self._back.release()
            self._go.acquire()

    def _run(self) -> None:
        try:
            self.run()
        except Crash:
            pass
        finally:
            self.ended = True
            self._back.release()


class Tasks:
    """The tasks of one life of the daemon. Without `interleaved`, a task runs to its end once it is chosen."""

    def __init__(self, rng: random.Random, *, interleaved: bool) -> None:
        self._rng = rng
        self._interleaved = interleaved
        self._waiting: dict[str, deque[Task]] = {kind: deque() for kind in LIMITS}
        self._running: list[Task] = []
        self._current: Task | None = None
        self.over = False

    def add(self, kind: str, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        if not self.over:
            self._waiting[kind].append(Task(kind, function, done))

    def runnable(self) -> list[Task]:
        """Those that are under way, the next ones begun as far as there are threads for them."""
        if not any(self._waiting.values()):
            return self._running
        for kind, waiting in self._waiting.items():
            running = sum(task.kind == kind for task in self._running)
            while waiting and running < LIMITS[kind]:
                self._running.append(waiting.popleft())
                running += 1
        return self._running

    def step(self, task: Task) -> None:
        self._current = task
        try:
            if self._interleaved:
                task.step()
            else:
                task.run()
        finally:
            self._current = None
            if task.ended:
                self._running.remove(task)

    def pause(self) -> None:
        """Called before a disk call, by whichever thread makes it."""
        if self._interleaved and self._current is not None and self._rng.random() < 0.5:
            self._current.pause()

    def end(self) -> None:
        """The machine has stopped: nothing goes on. The disk is dead, so every task ends at its next call."""
        self.over = True
        self._waiting.clear()
        for task in self._running if self._interleaved else ():
            while not task.ended:
                task.step()
        self._running = []


class SimulatedWorkers:
    """In the place of :class:`qtwist.queue.workers.Workers`."""

    def __init__(self, reactor: SimulatedReactor, tasks: Tasks, kind: str = "queue") -> None:
        self._reactor = reactor
        self._tasks = tasks
        self._kind = kind
        self._accepting = False
        self._busy = 0
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        self._accepting = True

    def run(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        if not self._accepting:
            return fail(Stopped())
        answer: Deferred[Any] = Deferred()
        self._busy += 1

        def answered(result: Any) -> None:
            answer.callback(result)
            self._busy -= 1
            self._check()

        self._tasks.add(
            self._kind, lambda: function(*arguments), lambda result: self._reactor.callFromThread(answered, result)
        )
        return answer

    def stop(self) -> Deferred[None]:
        self._accepting = False
        self._check()
        return self._ended

    def _check(self) -> None:
        if not self._accepting and not self._busy and not self._ended.called:
            self._ended.callback(None)


class SimulatedCommitter(GroupCommitter):
    """The real group commit, but its thread is a task that is there as long as there is something to commit."""

    def prepare(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._planned = False

    def start(self) -> None:
        self._accepting = True

    def submit(self, submission: Any) -> Deferred[Any]:
        answer = super().submit(submission)
        self._plan()
        return answer

    def stop(self) -> Deferred[None]:
        answer = super().stop()
        self._plan()
        return answer

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._tasks.add("commit", self._turn, lambda _: None)

    def _turn(self) -> None:
        """What a turn of the real thread does, with all that has come in so far."""
        self._planned = False
        batch = []
        while not self._entries.empty() and len(batch) < self._limit:
            entry = self._entries.get_nowait()
            if entry is None:
                self._reactor.callFromThread(self._ended.callback, None)
                continue
            batch.append(entry)
        if batch:
            results = self._commit_batch([submission for submission, _ in batch])
            self._reactor.callFromThread(self._report, [answer for _, answer in batch], results)
        if not self._entries.empty():
            self._plan()


class SimulatedWriter(JournalWriter):
    """The real writer of the journal, but its thread is a task that is there as long as there is something to write.

    `written` hears of the records that are in the journal, if not on the disk.
    """

    def __init__(
        self,
        reactor: SimulatedReactor,
        journal: Journal,
        tasks: Tasks,
        written: Callable[[Sequence[Record]], None],
        answered: Callable[[], None],
    ) -> None:
        super().__init__(reactor, journal, answered)
        self._clock = reactor
        self._tasks = tasks
        self._written = written
        self._planned = False
        self._idle: IDelayedCall | None = None

    def start(self) -> None:
        """There is no thread."""

    def _hand_over(self) -> None:
        super()._hand_over()
        self._plan()

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._tasks.add("journal", self._one_turn, lambda _: None)

    def _one_turn(self) -> None:
        """What a turn of the real thread does, with all that has come in so far."""
        self._planned = False
        batch, stopping = self._gather(self._jobs.get_nowait())
        self._turn(batch, stopping)
        if not self._jobs.empty():
            self._clock.callFromThread(self._plan)
        elif not stopping:
            self._clock.callFromThread(self._plan_flush)

    def _plan_flush(self) -> None:
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        self._idle = self._clock.callLater(IDLE, self._tasks.add, "journal", self._flush, lambda _: None)

    def _write(self, records: Sequence[Record], sync: bool) -> OSError | None:
        error = super()._write(records, sync)
        if error is None:
            self._written(records)
        return error
