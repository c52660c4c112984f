"""Threads that wait for the disk, so that the reactor need not.

Cheaper than a Twisted thread pool where there are many small jobs: the answers of all jobs that ended meanwhile go
back to the reactor thread in one call.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

T = TypeVar("T")

_Job = tuple["Deferred[Any]", Callable[..., Any], tuple[Any, ...]]


class Stopped(Exception):
    """The workers were stopped before this could be done."""


class Workers:
    """`count` threads that take jobs in the order in which they came."""

    def __init__(self, reactor: IReactorFromThreads, count: int, name: str) -> None:
        self._reactor = reactor
        self._count = count
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._answers: deque[tuple[Deferred[Any], Any]] = deque()
        self._lock = threading.Lock()
        self._called = False
        self._alive = 0
        self._accepting = False
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the threads; once."""
        self._accepting = True
        self._alive = self._count
        for index in range(self._count):
            # Daemons, so that a process which ends without stop() ends: whatever they do must survive a crash anyway.
            threading.Thread(target=self._work, name=f"{self._name} {index + 1}", daemon=True).start()

    def run(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Call `function` in a thread; fires in the reactor thread with what it returns or raises."""
        if not self._accepting:
            return fail(Stopped(self._name))
        answer: Deferred[T] = Deferred()
        self._jobs.put((answer, function, arguments))
        return answer

    def stop(self) -> Deferred[None]:
        """Take no more jobs; fires when those that were taken are done and answered. Once, and only after start."""
        self._accepting = False
        for _ in range(self._count):
            self._jobs.put(None)
        return self._ended

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            answer, function, arguments = job
            try:
                result: Any = function(*arguments)
            except BaseException:  # whatever it is, who waits for the answer has to hear of it
                result = Failure()
            self._answer(answer, result)
            # Not kept while this thread waits for the next job.
            del job, answer, function, arguments, result
        with self._lock:
            self._alive -= 1
            last = self._alive == 0
        if last:
            self._answer(self._ended, None)

    def _answer(self, answer: Deferred[Any], result: Any) -> None:
        with self._lock:
            self._answers.append((answer, result))
            if self._called:
                return
            self._called = True
        self._reactor.callFromThread(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            self._called = False
            answers, self._answers = self._answers, deque()
        for answer, result in answers:
            answer.callback(result)
