"""How a delivery thread gets at the queue, which lives in the reactor thread, and how it never waits in vain."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

from qtwist.files.copying import BLOCK_SIZE, message_blocks
from qtwist.files.disk import Disk
from qtwist.interfaces import Accepted, IIncomingMessage, IQueue, QueueError
from qtwist.local.deliver import Forwarded
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope, Origin, Report
from qtwist.mail.queue_codes import queue_report

T = TypeVar("T")


class Closed(Exception):
    """The reactor will not answer any more: the daemon is stopping."""


class Hatch:
    """Runs functions in the reactor thread for threads that wait for the result.

    blockingCallFromThread would wait for ever when the reactor stops in between, and the process would hang; here
    :meth:`close` sends everybody who waits on their way with :class:`Closed`.
    """

    def __init__(self, reactor: IReactorFromThreads) -> None:
        self._reactor = reactor
        self._lock = threading.Lock()
        self._waiting: set[Future[object]] = set()
        self._closed = False

    def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run the coroutine function `function` in the reactor thread and wait for what it returns or raises."""
        future: Future[object] = Future()
        with self._lock:
            if self._closed:
                raise Closed
            self._waiting.add(future)
        self._reactor.callFromThread(self._start, function, future)
        try:
            return future.result()  # type: ignore[return-value]
        finally:
            with self._lock:
                self._waiting.discard(future)

    def close(self) -> None:
        """Let nobody wait any more, now or later."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
        for future in waiting:
            self._fail(future, Closed())

    def _start(self, function: Callable[[], Awaitable[T]], future: Future[object]) -> None:
        deferred: Deferred[T] = Deferred.fromCoroutine(function())  # type: ignore[arg-type]
        deferred.addCallbacks(
            lambda result: self._succeed(future, result), lambda failure: self._fail(future, _exception(failure))
        )

    # The result may come when the future was failed by close() already; whoever comes first, wins.

    def _succeed(self, future: Future[object], result: object) -> None:
        with self._lock:
            if not future.done():
                future.set_result(result)

    def _fail(self, future: Future[object], error: BaseException) -> None:
        with self._lock:
            if not future.done():
                future.set_exception(error)


def _exception(failure: Failure) -> BaseException:
    assert failure.value is not None
    return failure.value


def forward(
    hatch: Hatch,
    queue: IQueue,
    disk: Disk,
    origin: Origin,
    fd: int,
    prefix: bytes,
    sender: bytes,
    recipients: Sequence[bytes],
    asked: tuple[bytes, bytes] = (b"", b""),
) -> Forwarded:
    """Queue the message `fd` once more with `prefix` before it, called from a delivery thread. `asked` are the
    parameters of the message and of each recipient (:mod:`qtwist.mail.asked`).

    A message of one block takes one trip to the reactor; of a larger one, never more than a block is in memory beside
    what the queue holds.
    """
    mail, each = asked
    envelope = Envelope(sender, tuple(recipients), Asked(mail, (each,) * len(recipients)) if mail or each else None)
    try:
        if disk.fstat(fd).st_size <= BLOCK_SIZE:
            text = prefix + b"".join(message_blocks(disk, fd))
            accepted = hatch.call(lambda: _queue_at_once(queue, origin, text, envelope))
        else:
            accepted = _queue_in_blocks(hatch, queue, disk, origin, fd, prefix, envelope)
    except QueueError as error:
        return Forwarded(queue_report(error.code))
    except Closed:
        return Forwarded(Report.deferral(b"this daemon is stopping. (#4.3.0)"))
    except OSError as error:
        return Forwarded(Report.deferral(b"unable to read it: %s. (#4.3.0)" % str(error.strerror).encode()))
    return Forwarded(Report.success(), accepted.qp)


async def _queue_at_once(queue: IQueue, origin: Origin, text: bytes, envelope: Envelope) -> Accepted:
    incoming: IIncomingMessage = queue.begin(origin)
    await _write(incoming, text)
    return await incoming.commit(envelope)


def _queue_in_blocks(
    hatch: Hatch, queue: IQueue, disk: Disk, origin: Origin, fd: int, prefix: bytes, envelope: Envelope
) -> Accepted:
    async def begin() -> IIncomingMessage:
        incoming: IIncomingMessage = queue.begin(origin)
        await _write(incoming, prefix)
        return incoming

    async def abort() -> None:
        incoming.abort()

    incoming = hatch.call(begin)
    try:
        for block in message_blocks(disk, fd):
            hatch.call(lambda block=block: _write(incoming, block))  # type: ignore[misc]
    except OSError:
        hatch.call(abort)
        raise

    async def commit() -> Accepted:
        return await incoming.commit(envelope)

    return hatch.call(commit)


async def _write(incoming: IIncomingMessage, data: bytes) -> None:
    ready = incoming.write(data)
    if ready is not None:
        await ready
