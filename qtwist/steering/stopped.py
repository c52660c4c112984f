"""The decisions about messages of a queue whose manager does not run: blocking, under the queue's lock (doc/queue.md).

Everything is done over the disk's seam, in an order that a crash in between does not harm.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from qtwist.files.disk import Disk
from qtwist.interfaces import IQueue, MessageInfo, RecipientRecord
from qtwist.mail.rewriting import Rewriter
from qtwist.queue.journal import Journal
from qtwist.queue.layout import Layout
from qtwist.queue.looking import NEW, Looking, Message
from qtwist.queue.numbers import Numbers
from qtwist.queue.preprocess import preprocess
from qtwist.queue.recovery import journal_directory, recover
from qtwist.queue.store import Store
from qtwist.queue.sync import close_quietly, filesystem_roots
from qtwist.send.steering import DROP, FAIL, fail_recipients

T = TypeVar("T")


class Trouble(Exception):
    """What cannot be done, in one line; `code` is the exit code."""

    def __init__(self, text: str, code: int = 111) -> None:
        super().__init__(text)
        self.code = code


class StoppedQueue:
    """A queue that nobody else works on, for the time of each call. `rewriter` gives the rules as they are now.

    All methods raise Trouble when a queue manager runs, OSError when the disk fails or we have no right to it.
    """

    def __init__(self, disk: Disk, layout: Layout, rewriter: Callable[[], Rewriter]) -> None:
        self._disk = disk
        self._layout = layout
        self._rewriter = rewriter
        self._store = Store(disk, layout)

    def retry(self, messages: Sequence[Message]) -> None:
        """Make messages due now."""
        with self._locked():
            now = time.time()
            for message in messages:
                for channel in message.channels:
                    self._store.postpone(message.number, channel, now)

    def settle(self, number: int, verdict: str) -> None:
        """Fail or drop a message. Trouble when there is none of that number."""
        with self._locked():
            _now(self._settle(self._preprocessed(number), verdict))

    def preprocess(self, number: int) -> Message:
        """The message, with its recipients on their channels. Trouble when there is none of that number."""
        with self._locked():
            return self._preprocessed(number)

    async def _settle(self, message: Message, verdict: str) -> None:
        number = message.number
        queue = cast(IQueue, _Still(self._store))
        for channel in message.channels:
            if verdict == FAIL:
                await fail_recipients(queue, number, channel, self._rewriter().original)
            await queue.finish_channel(number, channel)
        if verdict == DROP:
            # What a crash leaves half done is ended by the next daemon, which sends the notices of earlier failures.
            await queue.discard_bounce(number)
            await queue.finish(number)

    def _preprocessed(self, number: int) -> Message:
        """The message, looked at under the lock."""
        looking = Looking(self._disk, self._layout)
        message = looking.message(number)
        if message is not None and message.state == NEW:
            roots = filesystem_roots(self._disk, self._layout)
            [result] = preprocess(self._disk, self._layout, roots, [number], self._rewriter().route)
            if isinstance(result, tuple):
                raise Trouble(result[1])
            message = looking.message(number)
        if message is None:
            raise Trouble(f"message {number}: no such message", 100)
        return message

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The queue, for ourselves, as its owner."""
        before = os.geteuid(), os.getegid()
        if before[0] == 0:
            # Files that are made must belong to the queue's owner.
            status = self._disk.stat(self._layout.directory)
            os.setegid(status.st_gid)
            os.seteuid(status.st_uid)
        try:
            lock = self._store.lock()
            try:
                self._recover()
                yield
            finally:
                close_quietly(self._disk, lock)
        except BlockingIOError as error:
            raise Trouble("a queue manager that cannot be asked is running on this queue") from error
        finally:
            os.seteuid(before[0])
            os.setegid(before[1])

    def _recover(self) -> None:
        """What a daemon that crashed has left in its journal becomes files first."""
        directory = journal_directory(self._layout)
        try:
            self._disk.stat(directory)
        except FileNotFoundError:
            return
        journal = Journal(self._disk, directory)
        try:
            recover(self._disk, self._layout, journal, Numbers(self._disk, self._layout, directory))
            for damage in journal.damage:
                sys.stderr.write(f"qtwist queue: warning: {damage.text}\n")
        finally:
            journal.close()


class _Still:
    """The parts of IQueue that settling needs, done at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def info(self, number: int) -> Deferred[MessageInfo]:
        return execute(self._store.info, number)

    def recipients(
        self, number: int, channel: str, offset: int, limit: int
    ) -> Deferred[tuple[list[RecipientRecord], int]]:
        return execute(self._store.recipients, number, channel, offset, limit)

    def append_bounce(self, number: int, paragraph: bytes) -> Deferred[None]:
        return execute(self._store.append_bounce, number, paragraph)

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        return execute(self._store.mark, number, channel, offset)

    def finish_channel(self, number: int, channel: str) -> Deferred[None]:
        return execute(self._store.remove, channel, number)

    def discard_bounce(self, number: int) -> Deferred[None]:
        return execute(self._store.remove, "bounce", number)

    def finish(self, number: int) -> Deferred[None]:
        return execute(self._store.finish, number)


def _now(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing returns or raises."""
    results: list[Any] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast(T, results[0])
