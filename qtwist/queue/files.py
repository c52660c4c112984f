"""The queue in qmail's directories, behind IQueue; all waiting for the disk is done in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.files.disk import Disk
from qtwist.interfaces import IQueue, MessageInfo, Preprocessed, QueuedMessage, RecipientRecord
from qtwist.mail.envelope import Origin
from qtwist.queue.accept import Acceptor
from qtwist.queue.commit import GroupCommitter
from qtwist.queue.incoming import Committing, IncomingFile, Writing
from qtwist.queue.layout import open_layout
from qtwist.queue.orphans import remove_orphans
from qtwist.queue.preprocess import preprocess
from qtwist.queue.routing import Route
from qtwist.queue.store import Scan, Store
from qtwist.queue.sync import batch_limit, close_quietly, filesystem_roots
from qtwist.queue.trigger import TriggerReader, pull_trigger
from qtwist.queue.workers import Workers

_log = Logger()

WORKERS = 4

#: How many messages a scan hands over at once.
SCAN_BATCH = 1000


@implementer(IQueue)
class FileQueue:
    """The queue in `directory`. LayoutError when it is not one, or not whole.

    Between :meth:`start` and :meth:`stop` it may be used; a process may accept messages without :meth:`lock`, and then
    wakes the queue manager by its trigger. A queue that holds the lock watches the trigger itself.

    `reactor` provides IReactorTime (its seconds are those since the epoch), IReactorFromThreads and IReactorFDSet.
    """

    def __init__(self, directory: str, disk: Disk, reactor: Any) -> None:
        self.layout = open_layout(directory, disk)
        self._disk = disk
        self._reactor = reactor
        self._store = Store(disk, self.layout)
        self._acceptor = Acceptor(disk, self.layout)
        self._roots = filesystem_roots(disk, self.layout)
        self._workers = Workers(reactor, WORKERS, "queue worker")
        # Marks never wait for anybody's sync: who is killed before a mark delivers twice.
        self._marker = Workers(reactor, 1, "queue marker")
        self._committer = GroupCommitter(reactor, self._acceptor.commit, self._published, batch_limit(disk))
        self._trigger = TriggerReader(reactor, self.layout.lock("trigger"), self._wake)
        self._callbacks: list[Callable[[], None]] = []
        self._lock: int | None = None
        self._bouncing: dict[int, DeferredLock] = {}  # messages whose bounce files are being appended to
        self._incoming: set[IncomingFile] = set()
        self._quiet: Deferred[None] | None = None
        # What was preprocessed while no scan had come to its end; the scan is not to report it once more.
        self._fresh: set[int] | None = set()

    @property
    def split(self) -> int:
        """The number of subdirectories, as warnings about paths need it."""
        return self.layout.split

    def start(self) -> None:
        """Start the threads; once."""
        self._workers.start()
        self._marker.start()
        self._committer.start()

    def stop(self) -> Deferred[None]:
        """Commit what was asked to be committed, drop other incoming messages, end the threads, release the lock.

        Once, and only after start. Messages begun afterwards are refused.
        """
        self._trigger.stop()
        for message in list(self._incoming):
            message.abort()
        self._quiet = Deferred()
        if not self._incoming:
            self._quiet.callback(None)
        ended = self._quiet.addCallback(
            lambda _: DeferredList([self._committer.stop(), self._workers.stop(), self._marker.stop()])
        )
        return ended.addCallback(lambda _: self._unlock())

    def lock(self) -> None:
        self._lock = self._store.lock()
        try:
            for name in remove_orphans(self._disk, self.layout, self._store):
                _log.warn("removed {name}, which belongs to no message", name=name)
            self._trigger.start()
        except OSError:
            self._unlock()
            raise

    # The way in.

    def begin(self, origin: Origin) -> IncomingFile:
        return self._begin(origin, self._acceptor, self._committer)

    def _begin(self, origin: Origin, writing: Writing, committing: Committing) -> IncomingFile:
        message = IncomingFile(origin, self._reactor.seconds(), writing, self._workers, committing, self._message_ended)
        self._incoming.add(message)
        return message

    def on_todo(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    # The queue manager's side.

    def todo(self) -> Deferred[list[int]]:
        return self._workers.run(self._todo)

    def preprocess(self, numbers: list[int], route: Route) -> Deferred[list[Preprocessed | tuple[int, str]]]:
        if self._fresh is not None:
            self._fresh.update(numbers)
        return self._workers.run(preprocess, self._disk, self.layout, self._roots, numbers, route)

    def scan(self) -> Iterator[Deferred[list[QueuedMessage]]]:
        if self._fresh is None:
            self._fresh = set()
        scan = Scan(self._store, self.layout.split, self._fresh, SCAN_BATCH)
        try:
            while not scan.ended:
                yield self._workers.run(scan.step)
        finally:
            self._fresh = None

    def info(self, number: int) -> Deferred[MessageInfo]:
        return self._workers.run(self._store.info, number)

    def recipients(
        self, number: int, channel: str, offset: int, limit: int
    ) -> Deferred[tuple[list[RecipientRecord], int]]:
        return self._workers.run(self._store.recipients, number, channel, offset, limit)

    def open(self, number: int) -> Deferred[int]:
        return self._workers.run(self._store.open_message, number)

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        return self._marker.run(self._store.mark, number, channel, offset)

    def postpone(self, number: int, channel: str, due: float) -> Deferred[None]:
        return self._workers.run(self._store.postpone, number, channel, due)

    def postpone_all(self, channel: str, times: list[tuple[int, float]]) -> Deferred[list[int]]:
        return self._workers.run(self._store.postpone_all, channel, times)

    def finish_channel(self, number: int, channel: str) -> Deferred[None]:
        return self._workers.run(self._store.remove, channel, number)

    def append_bounce(self, number: int, paragraph: bytes) -> Deferred[None]:
        # One after the other: an append that fails cuts off all that came after it, and what others wrote meanwhile.
        lock = self._bouncing.setdefault(number, DeferredLock())
        appended: Deferred[None] = lock.run(self._workers.run, self._store.append_bounce, number, paragraph)
        return appended.addBoth(self._appended, number)

    def bounce(self, number: int) -> Deferred[bytes | None]:
        return self._workers.run(self._store.bounce, number)

    def discard_bounce(self, number: int) -> Deferred[None]:
        return self._workers.run(self._store.remove, "bounce", number)

    def finish(self, number: int) -> Deferred[None]:
        return self._workers.run(self._store.finish, number)

    def settle(self, number: int) -> None:
        """As IQueue says; here every message is where it belongs."""

    def collect_garbage(self) -> Deferred[None]:
        return self._workers.run(self._store.collect_garbage, self._reactor.seconds(), self._acceptor.busy)

    # Within.

    def _appended(self, result: Any, number: int) -> Any:
        lock = self._bouncing.get(number)
        if lock is not None and not lock.locked:
            del self._bouncing[number]
        return result

    def _todo(self) -> list[int]:
        """In a thread. What is being accepted may have its link already, but nobody knows yet whether it lasts."""
        before = set(self._acceptor.busy)
        numbers = self._store.numbers("todo")
        return [number for number in numbers if number not in before and number not in self._acceptor.busy]

    def _published(self) -> None:
        if self._lock is None:
            pull_trigger(self.layout.lock("trigger"))
        self._wake()

    def _wake(self) -> None:
        for callback in self._callbacks:
            callback()

    def _message_ended(self, message: IncomingFile) -> None:
        self._incoming.discard(message)
        if self._quiet is not None and not self._incoming and not self._quiet.called:
            self._quiet.callback(None)

    def _unlock(self) -> None:
        if self._lock is not None:
            close_quietly(self._disk, self._lock)
            self._lock = None
