"""The queue with a journal in front: what is done within seconds never becomes a file (design §4).

A message that is small is accepted by one record in the journal (:mod:`qtwist.queue.journal`), flushed together with
those of other sessions; it is preprocessed, delivered and ended in memory, with a record for every step. One that is
not done after a few seconds is settled into qmail's files; so are all, when the queue is stopped, and after a crash
when it is started. Large messages go to files at once, and so does everything when the journal is full or broken.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

from qtwist.files.disk import Disk
from qtwist.interfaces import Accepted, IIncomingMessage, MessageInfo, Preprocessed, QueueError, RecipientRecord
from qtwist.mail.envelope import Envelope, Origin
from qtwist.mail.received import queue_received
from qtwist.queue import journal as records
from qtwist.queue.accept import WRITE_ERROR, envelope_error
from qtwist.queue.files import FileQueue
from qtwist.queue.incoming import MEMORY_LIMIT, IncomingFile
from qtwist.queue.journal import Entry, Journal, Record
from qtwist.queue.live import Live
from qtwist.queue.numbers import RESERVE, Numbers
from qtwist.queue.preprocess import Route
from qtwist.queue.records import format_envelope, format_recipients, parse_envelope, parse_recipients
from qtwist.queue.recovery import Unrecoverable, journal_directory, recover
from qtwist.queue.settle import settle
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
#: Seconds until todo/ is looked at again for what came without a word, however much comes through the journal.
LIST_INTERVAL = 60.0
#: Numbers are made when fewer are left.
FEW_NUMBERS = 32

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = Logger()


@implementer(IIncomingMessage)
class _IncomingEntry:
    """A message on its way in, for the journal as long as it is small."""

    def __init__(self, queue: JournaledQueue, origin: Origin) -> None:
        self._queue = queue
        self._origin = origin
        self._blocks: list[bytes] = []
        self._size = 0
        self._file: IncomingFile | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._file is None:
            self._blocks.append(data)
            self._size += len(data)
            if self._size <= MEMORY_LIMIT:
                return None
            return self._spill()
        return self._file.write(data)

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        if self._file is None:
            accepted = self._queue.accept(self._origin, self._blocks, envelope)
            if accepted is not None:
                self._blocks = []
                return accepted
            self._spill()
        assert self._file is not None
        return self._file.commit(envelope)

    def abort(self) -> None:
        self._blocks = []
        if self._file is not None:
            self._file.abort()

    def _spill(self) -> Deferred[None] | None:
        self._file = self._queue.begin_file(self._origin)
        blocks, self._blocks = self._blocks, []
        return self._file.write(b"".join(blocks))


class JournaledQueue(FileQueue):
    """A FileQueue whose messages are in the journal first. Where this process does not hold the lock, or memory has no
    files, it is a FileQueue."""

    def __init__(self, directory: str, disk: Disk, reactor: Any, segment_size: int = records.SEGMENT_SIZE) -> None:
        super().__init__(directory, disk, reactor)
        self._directory = journal_directory(self.layout)
        self._journal = Journal(disk, self._directory, segment_size)
        self._numbers = Numbers(disk, self._directory)
        self._writer: JournalWriter | None = None
        self._live: dict[int, Live] = {}
        self._octets = 0
        self._new: list[int] = []  # accepted, not yet handed to the queue manager
        self._generations: Counter[int] = Counter()
        self._known = 0  # what is accepted from now on is of this generation or a later one
        self._released = 0
        self._files_have_news = True
        self._listed = 0.0  # when todo/ was looked at
        self._reserving = False
        self._resting: list[int] = []  # to be settled as soon as may be
        self._settled: Deferred[None] | None = None  # fires when what is being settled is
        self._timer: IDelayedCall | None = None
        self._stopping = False

    # Start and stop.

    def lock(self) -> None:
        """As IQueue says; then what a crash has left in the journal is settled, which may take a while."""
        super().lock()
        if not hasattr(os, "memfd_create"):
            return
        try:
            found = recover(self._disk, self.layout, self._journal, self._numbers)
            if len(self._numbers) < RESERVE:
                self._numbers.reserve()
        except OSError as error:
            self._journal.close()
            if isinstance(error, Unrecoverable) or error.errno not in _NO_ROOM:
                self._unlock()
                raise
            _log.warn("there is no room for the journal ({error}): messages go to files", error=error)
            return
        for old, new in found:
            _log.info("message {old} was in the journal, and is message {new} in files now", old=old, new=new)
        self._writer = self._make_writer()
        self._writer.start()

    def _make_writer(self) -> JournalWriter:
        return JournalWriter(self._reactor, self._journal)

    def stop(self) -> Deferred[None]:
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writer is None:
            return super().stop()
        return Deferred.fromCoroutine(self._stop_journal())

    async def _stop_journal(self) -> None:
        assert self._writer is not None
        if self._settled is not None:
            await self._settled
        try:
            await self._writer.commit()  # what was to be accepted is, or is not, by now
            await self._settle(list(self._live))
        except OSError as error:
            _log.error("{count} messages stay in the journal: {error}", count=len(self._live), error=error)
        await self._writer.stop()
        self._journal.close()
        for live in self._live.values():
            live.close()
        await super().stop()

    # The way in.

    def begin(self, origin: Origin) -> Any:
        if self._writer is None or self._stopping:
            return super().begin(origin)
        return _IncomingEntry(self, origin)

    def begin_file(self, origin: Origin) -> IncomingFile:
        """A message that becomes a file at once."""
        return super().begin(origin)

    def accept(self, origin: Origin, blocks: list[bytes], envelope: Envelope) -> Deferred[Accepted] | None:
        """Accept a whole message by a record of the journal; None when it has to become a file."""
        writer = self._writer
        refusal = envelope_error(envelope)
        if refusal is not None:
            return fail(refusal)
        if writer is None or writer.broken is not None or self._stopping or self._is_full():
            return None
        if sum(map(len, envelope.recipients)) > MEMORY_LIMIT:
            return None
        number = self._numbers.take()
        if len(self._numbers) < FEW_NUMBERS:
            self._reserve()
        if number is None:
            return None
        now = self._reactor.seconds()
        message = b"".join((queue_received(number, origin.how, now), *blocks))
        entry = Entry(number, now, format_envelope(origin.uid, number, envelope), message)
        self._octets += len(message)
        return Deferred.fromCoroutine(self._accept(writer, entry, envelope.sender))

    async def _accept(self, writer: JournalWriter, entry: Entry, sender: bytes) -> Accepted:
        try:
            generation = await writer.commit(records.accept(entry))
        except OSError as error:
            # The number is not given back: nobody knows whether the record is on the disk.
            self._octets -= len(entry.message)
            raise QueueError(WRITE_ERROR, f"the journal: {error}") from error
        self._known = generation
        self._live[entry.number] = Live(entry, generation, sender)
        self._generations[generation] += 1
        self._new.append(entry.number)
        self._later()
        self._reactor.callLater(0, self._wake_for_journal)
        return Accepted(entry.number, entry.number)

    def _is_full(self) -> bool:
        return len(self._live) >= MOST_MESSAGES or self._octets >= MOST_OCTETS or len(self._generations) > MOST_SEGMENTS

    def _reserve(self) -> None:
        if not self._reserving:
            self._reserving = True

            def done(result: Any) -> None:
                self._reserving = False
                if result is not None:
                    _log.failure("no numbers can be reserved", result)

            self._workers.run(self._numbers.reserve).addBoth(done)

    # The queue manager's side.

    def _wake(self) -> None:
        self._files_have_news = True
        super()._wake()

    def _wake_for_journal(self) -> None:
        if self._new:
            super()._wake()

    def todo(self) -> Deferred[list[int]]:
        return Deferred.fromCoroutine(self._all_todo())

    async def _all_todo(self) -> list[int]:
        new, self._new = self._new, []
        now = self._reactor.seconds()
        if new and not self._files_have_news and now - self._listed < LIST_INTERVAL:
            return new
        self._files_have_news = False
        self._listed = now
        try:
            return new + await super().todo()
        except OSError:
            self._new = new + self._new
            self._files_have_news = True
            raise

    def preprocess(self, numbers: list[int], route: Route) -> Deferred[list[Preprocessed | tuple[int, str]]]:
        return Deferred.fromCoroutine(self._preprocess(numbers, route))

    async def _preprocess(self, numbers: list[int], route: Route) -> list[Preprocessed | tuple[int, str]]:
        found: dict[int, Preprocessed | tuple[int, str]] = {}
        for number in numbers:
            await self._do(number, lambda live: None, lambda: succeed(None))  # it may be on its way to the files
            live = self._live.get(number)
            if live is not None:
                found[number] = self._preprocess_live(live, route)
        others = [number for number in numbers if number not in found]
        if others:
            for result in await super().preprocess(others, route):
                found[result[0] if isinstance(result, tuple) else result.number] = result
        return [found[number] for number in numbers]

    def _preprocess_live(self, live: Live, route: Route) -> Preprocessed | tuple[int, str]:
        entry = live.entry
        recipients: list[bytes] = []
        head = parse_envelope([entry.envelope], "the journal", recipients.extend)
        channels: dict[str, bytearray] = {}
        for recipient in recipients:
            channel, address = route(recipient)
            channels.setdefault(channel, bytearray()).extend(format_recipients([address]))
        self._append(live, records.routed(entry.number, channels))
        return Preprocessed(
            entry.number, len(entry.message), head.sender, head.qp, head.uid, entry.birth, frozenset(channels)
        )

    def info(self, number: int) -> Deferred[MessageInfo]:
        return self._do(
            number, lambda live: MessageInfo(live.sender, live.entry.birth), lambda: FileQueue.info(self, number)
        )

    def recipients(
        self, number: int, channel: str, offset: int, limit: int
    ) -> Deferred[tuple[list[RecipientRecord], int]]:
        def read(live: Live) -> tuple[list[RecipientRecord], int]:
            data = bytes(live.channel(channel)[offset:])
            found = parse_recipients(data, offset, limit, f"{channel} of {number}")
            return found, found[-1].offset + len(found[-1].address) + 2 if found else offset

        return self._do(number, read, lambda: FileQueue.recipients(self, number, channel, offset, limit))

    def open(self, number: int) -> Deferred[int]:
        return self._do(number, Live.open, lambda: FileQueue.open(self, number))

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        return self._do(
            number,
            lambda live: self._append(live, records.mark(number, channel, offset)),
            lambda: FileQueue.mark(self, number, channel, offset),
        )

    def postpone(self, number: int, channel: str, due: float) -> Deferred[None]:
        return self._do(
            number,
            lambda live: self._append(live, records.postpone(number, channel, due)),
            lambda: FileQueue.postpone(self, number, channel, due),
        )

    def finish_channel(self, number: int, channel: str) -> Deferred[None]:
        return self._do(
            number,
            lambda live: self._append(live, records.done(number, channel)),
            lambda: FileQueue.finish_channel(self, number, channel),
        )

    def append_bounce(self, number: int, paragraph: bytes) -> Deferred[None]:
        return self._do(
            number,
            # It is durable before its recipient's mark is, which is what counts: both are in the journal, in order.
            lambda live: self._append(live, Record(records.BOUNCE, number, paragraph)),
            lambda: FileQueue.append_bounce(self, number, paragraph),
        )

    def bounce(self, number: int) -> Deferred[bytes | None]:
        def read(live: Live) -> bytes | None:
            return None if live.entry.bounce is None else bytes(live.entry.bounce)

        return self._do(number, read, lambda: FileQueue.bounce(self, number))

    def discard_bounce(self, number: int) -> Deferred[None]:
        return self._do(
            number,
            lambda live: self._append(live, Record(records.UNBOUNCE, number)),
            lambda: FileQueue.discard_bounce(self, number),
        )

    def finish(self, number: int) -> Deferred[None]:
        return self._do(number, self._finish, lambda: FileQueue.finish(self, number))

    # Within.

    def _do(self, number: int, in_memory: Callable[[Live], T], in_files: Callable[[], Deferred[T]]) -> Deferred[T]:
        """One step of a message, wherever it is now."""
        live = self._live.get(number)
        if live is None:
            return in_files()
        if live.waiting is not None:
            waiting: Deferred[None] = Deferred()
            live.waiting.append(waiting)
            return waiting.addCallback(lambda _: self._do(number, in_memory, in_files))
        try:
            return succeed(in_memory(live))
        except (OSError, ValueError) as error:
            return fail(error)

    def _append(self, live: Live, record: Record) -> None:
        """A step that is in memory at once, and in the journal soon."""
        assert self._writer is not None
        live.entry.apply(record)
        self._writer.append(record)

    def _finish(self, live: Live) -> None:
        assert self._writer is not None
        number = live.entry.number
        self._writer.append(Record(records.END, number))
        self._forget(live)
        self._numbers.give_back(number)

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
        if self._settled is not None or self._stopping:
            self._resting = resting  # when those that are being settled are
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._begin_settling(resting)

    def _later(self) -> None:
        """Look again, as long as there is something to look at."""
        if self._live and self._timer is None and self._settled is None and not self._stopping:
            self._timer = self._reactor.callLater(0 if self._resting else SETTLE_INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        oldest = self._reactor.seconds() - (0 if self._is_full() else SETTLE_AFTER)
        old = [number for number, live in self._live.items() if live.entry.birth <= oldest]
        resting, self._resting = self._resting, []
        self._begin_settling([*old, *resting])

    def _begin_settling(self, numbers: list[int]) -> None:
        if not numbers:
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
        once = list(dict.fromkeys(numbers))
        for start in range(0, len(once), SETTLE_BATCH):
            batch = [self._live[number] for number in once[start : start + SETTLE_BATCH] if number in self._live]
            await self._settle_batch(batch)

    async def _settle_batch(self, batch: list[Live]) -> None:
        assert self._writer is not None
        for live in batch:
            live.waiting = []
        entries = [live.entry for live in batch]
        if self._fresh is not None:
            self._fresh.update(entry.number for entry in entries if entry.channels is not None)
        done: list[Live] = []
        try:
            failed = await self._workers.run(settle, self._disk, self.layout, self._roots, self._directory, entries)
            for number, error in failed.items():
                _log.error("message {number} stays in the journal: {error}", number=number, error=error)
            settled = [live for live in batch if live.entry.number not in failed]
            self._known = await self._writer.commit(*(Record(records.END, live.entry.number) for live in settled))
            done = settled
        except OSError as error:
            _log.error("{count} messages stay in the journal: {error}", count=len(batch), error=error)
        finally:
            waiting = [one for live in batch for one in live.waiting or ()]
            for live in batch:
                live.waiting = None
            for live in done:
                self._forget(live)
            for one in waiting:
                one.callback(None)
        for live in done:
            await self._workers.run(self._numbers.settled, live.entry.number)
        if any(live.entry.channels is None for live in done):
            self._wake()
