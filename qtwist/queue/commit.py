"""Group commit: one thread that commits whatever came in while it was committing (design §4)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from qtwist.interfaces import Accepted, QueueError
from qtwist.queue.accept import INTERNAL_BUG, NO_QUEUE, Submission

_log = Logger()

_Entry = tuple[Submission, "Deferred[Accepted]"]


class GroupCommitter:
    """Commits submissions in batches of up to `limit`.

    `commit` does it for a batch, in the thread; `published` is called in the reactor thread when a batch with at least
    one accepted message has been answered. There is no waiting for company: a lone message goes at once, and under load
    the batches grow by themselves.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        commit: Callable[[Sequence[Submission]], list[Accepted | QueueError]],
        published: Callable[[], None],
        limit: int,
    ) -> None:
        self._reactor = reactor
        self._commit = commit
        self._published = published
        self._limit = limit
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._accepting = False
        self._ended: Deferred[None] = Deferred()

    def start(self) -> None:
        """Start the thread; once."""
        self._accepting = True
        # A daemon, so that a process which ends without stop() ends: a commit survives a crash at any point.
        threading.Thread(target=self._work, name="queue committer", daemon=True).start()

    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """Commit a message; errbacks with QueueError."""
        if not self._accepting:
            return fail(QueueError(NO_QUEUE, "the queue is stopped"))
        answer: Deferred[Accepted] = Deferred()
        self._entries.put((submission, answer))
        return answer

    def stop(self) -> Deferred[None]:
        """Take nothing more; fires when everything that was submitted is committed and answered."""
        self._accepting = False
        self._entries.put(None)
        return self._ended

    def _work(self) -> None:
        stopping = False
        while not stopping:
            batch: list[_Entry] = []
            entry = self._entries.get()
            while entry is not None:
                batch.append(entry)
                if len(batch) == self._limit:
                    break
                try:
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
            stopping = entry is None
            if batch:
                results = self._commit_batch([submission for submission, _ in batch])
                answers = [answer for _, answer in batch]
                self._reactor.callFromThread(self._report, answers, results)
        self._reactor.callFromThread(self._ended.callback, None)

    def _commit_batch(self, batch: Sequence[Submission]) -> list[Accepted | QueueError]:
        try:
            return self._commit(batch)
        except Exception as error:  # a bug must not end this thread, for then all sessions would wait for ever
            _log.failure("a commit failed in an unexpected way")
            return [QueueError(INTERNAL_BUG, repr(error)) for _ in batch]

    def _report(self, answers: list[Deferred[Accepted]], results: list[Accepted | QueueError]) -> None:
        for answer, result in zip(answers, results, strict=True):
            if isinstance(result, QueueError):
                answer.errback(result)
            else:
                answer.callback(result)
        if any(isinstance(result, Accepted) for result in results):
            self._published()
