"""One message on its way into the queue: kept in memory while it is small, spilled to its mess file when it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.interfaces import Accepted, IIncomingMessage, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.accept import INTERNAL_BUG, NO_QUEUE, OUT_OF_MEMORY, MessFile, Submission
from qtwist.queue.workers import Stopped, Workers

_log = Logger()

#: Up to so many octets, a message stays in memory until it is committed.
MEMORY_LIMIT = 64 * 1024

#: When more than this waits for the disk, the writer has to wait, too; until no more than LOW_WATER waits.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


class Writing(Protocol):
    """How a message is written, in threads: as :class:`~qtwist.queue.accept.Acceptor` says."""

    def create(self, origin: Origin, started: float, /) -> MessFile: ...
    def append(self, mess: MessFile, data: bytes, /) -> None: ...
    def flush(self, mess: MessFile, /) -> None: ...
    def discard(self, mess: MessFile, /) -> None: ...


class Committing(Protocol):
    """How it is accepted: as :class:`~qtwist.queue.commit.GroupCommitter` says."""

    def submit(self, submission: Submission, /) -> Deferred[Accepted]: ...


@implementer(IIncomingMessage)
class IncomingFile:
    """A message for :class:`~qtwist.queue.files.FileQueue`. All methods run in the reactor thread.

    At most one job of a message is with the workers at any time, so that its blocks stay in order. `ended` is called
    once, when nothing of this message is going on any more.
    """

    def __init__(
        self,
        origin: Origin,
        started: float,
        acceptor: Writing,
        workers: Workers,
        committer: Committing,
        ended: Callable[[IncomingFile], None],
    ) -> None:
        self._origin = origin
        self._started = started
        self._acceptor = acceptor
        self._workers = workers
        self._committer = committer
        self._ended: Callable[[IncomingFile], None] | None = ended
        self._blocks: list[bytes] = []
        self._waiting = 0  # octets in _blocks and with the workers
        self._writers: list[Deferred[None]] = []
        self._spilling = False
        self._working = False
        self._flushed = False
        self._mess: MessFile | None = None
        self._error: QueueError | None = None
        self._aborted = False
        self._envelope: Envelope | None = None
        self._answer: Deferred[Any] | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._aborted or self._error is not None or self._answer is not None:
            return None
        self._blocks.append(data)
        self._waiting += len(data)
        if not self._spilling and self._waiting <= MEMORY_LIMIT:
            return None
        self._spilling = True
        self._go_on()
        if self._waiting <= HIGH_WATER:
            return None
        writer: Deferred[None] = Deferred()
        self._writers.append(writer)
        return writer

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        if self._aborted or self._answer is not None:
            return fail(QueueError(INTERNAL_BUG, "commit after abort or commit"))
        self._answer = Deferred()
        self._envelope = envelope
        self._go_on()
        return self._answer

    def abort(self) -> None:
        if self._aborted or self._answer is not None:
            return
        self._aborted = True
        self._blocks.clear()
        self._go_on()

    def _go_on(self) -> None:
        """Start whatever is next, unless something is being done still."""
        if self._working:
            return
        if self._aborted or self._error is not None:
            self._give_up()
        elif self._envelope is not None and (self._flushed or not self._spilling):
            self._submit(self._envelope)
        elif self._spilling and (self._blocks or self._envelope is not None):
            self._spill(last=self._envelope is not None)

    def _spill(self, last: bool) -> None:
        blocks, self._blocks = self._blocks, []
        self._working = True
        spilled = self._workers.run(self._spill_blocks, blocks, last)
        spilled.addErrback(self._keep_error)
        spilled.addCallback(self._spilled, sum(map(len, blocks)), last)

    def _spill_blocks(self, blocks: list[bytes], last: bool) -> None:
        """In a thread."""
        if self._mess is None:
            self._mess = self._acceptor.create(self._origin, self._started)
        self._acceptor.append(self._mess, b"".join(blocks))
        if last:
            self._acceptor.flush(self._mess)

    def _spilled(self, _: None, size: int, last: bool) -> None:
        self._working = False
        self._flushed = last
        self._waiting -= size
        self._go_on()
        if self._waiting <= LOW_WATER:
            self._release_writers()

    def _submit(self, envelope: Envelope) -> None:
        self._working = True
        submission = Submission(self._origin, self._started, envelope, self._blocks, self._mess)
        self._blocks = []
        self._committer.submit(submission).addBoth(self._end)

    def _give_up(self) -> None:
        """Remove what was spilled; then end, unless an error is to be kept until the writer commits or aborts."""
        self._blocks.clear()
        self._waiting = 0
        mess, self._mess = self._mess, None
        if mess is not None:
            self._working = True
            removed = self._workers.run(self._acceptor.discard, mess)
            removed.addErrback(lambda failure: _log.failure("cannot remove a refused message", failure))
            removed.addCallback(self._removed)
        elif self._aborted:
            self._end(None)
        elif self._answer is not None:
            self._end(Failure(self._error))
        self._release_writers()

    def _removed(self, _: None) -> None:
        self._working = False
        self._go_on()

    def _keep_error(self, failure: Failure) -> None:
        if isinstance(failure.value, QueueError):
            self._error = failure.value
        elif failure.check(Stopped):
            self._error = QueueError(NO_QUEUE, "the queue is stopped")
        elif failure.check(MemoryError):
            self._error = QueueError(OUT_OF_MEMORY, "out of memory")
        else:
            _log.failure("a message cannot be written", failure)
            self._error = QueueError(INTERNAL_BUG, failure.getErrorMessage())

    def _release_writers(self) -> None:
        writers, self._writers = self._writers, []
        for writer in writers:
            writer.callback(None)

    def _end(self, result: Accepted | Failure | None) -> None:
        """Nothing of this message goes on any more; answer the writer, if it asked."""
        ended, self._ended = self._ended, None
        if ended is None:
            return
        ended(self)
        if self._answer is not None:
            self._answer.callback(result)
