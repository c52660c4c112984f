"""The queue with a journal in front: what is done within seconds never becomes a file (design §4).

A message that is small is accepted by one record in the journal (:mod:`qtwist.queue.journal`), flushed together with
those of other sessions; it is preprocessed, delivered and ended in memory, with a record for every step. One that is
not done after a few seconds is settled into qmail's files; so are all, when the queue is stopped, and after a crash
when it is started. Of a large message, only the envelope is in the journal (:mod:`qtwist.queue.large`). Everything goes
to files at once when the journal is full or broken.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Container, Coroutine
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from qtwist.files.disk import Disk
from qtwist.interfaces import Accepted, MessageInfo, Preprocessed, QueueError, RecipientRecord
from qtwist.mail.envelope import Envelope, Origin
from qtwist.mail.received import queue_received
from qtwist.queue import journal as records
from qtwist.queue.accept import MESS_TROUBLE, WRITE_ERROR, MessFile, Submission, envelope_error
from qtwist.queue.files import FileQueue
from qtwist.queue.incoming import IncomingFile
from qtwist.queue.incoming_entry import IncomingEntry
from qtwist.queue.journal import Entry, Journal, Record
from qtwist.queue.large import LargeMessage, publish
from qtwist.queue.live import Live
from qtwist.queue.numbers import Numbers
from qtwist.queue.records import (
    format_asked,
    format_envelope,
    format_recipients,
    parse_asked,
    parse_envelope,
    parse_recipients,
)
from qtwist.queue.recovery import Unrecoverable, journal_directory, recover
from qtwist.queue.routing import Route, Routing
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
#: Up to so many octets, messages of more than MEMORY_LIMIT are among them; those on their way in count, too.
MOST_OCTETS_WITH_LARGE = 16 * 1024 * 1024
#: Seconds until todo/ is looked at again for what came without a word, however much comes through the journal.
LIST_INTERVAL = 60.0
#: Seconds until something that the disk has refused is tried again.
TROUBLE_INTERVAL = 60.0

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = Logger()


class JournaledQueue(FileQueue):
    """A FileQueue whose messages are in the journal first. Where this process does not hold the lock, or memory has no
    files, it is a FileQueue."""

    def __init__(
        self,
        directory: str,
        disk: Disk,
        reactor: Any,
        segment_size: int = records.SEGMENT_SIZE,
        *,
        in_use: bool = True,
    ) -> None:
        """Without `in_use`, everything goes to files; what the journal still holds is settled by :meth:`lock`."""
        super().__init__(directory, disk, reactor)
        self._in_use = in_use
        self._directory = journal_directory(self.layout)
        self._journal = Journal(disk, self._directory, segment_size)
        self._numbers = Numbers(disk, self.layout, self._directory)
        self._largest = min(records.LARGEST_RECORD, segment_size // 2)
        self._writer: JournalWriter | None = None
        self._live: dict[int, Live] = {}
        self._octets = 0
        self._incoming_octets = 0  # of messages on their way in, beyond what each may have
        self._new: list[int] = []  # accepted, not yet handed to the queue manager
        self._generations: Counter[int] = Counter()
        self._known = 0  # what is accepted from now on is of this generation or a later one
        self._released = 0
        self._files_have_news = True
        self._listed = 0.0  # when todo/ was looked at
        self._reserving = False
        self._reserve_at = 0.0
        self._trouble = False  # what was to be settled last could not be
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
        if not self._in_use and not os.path.isdir(self._directory):
            return
        try:
            found = recover(self._disk, self.layout, self._journal, self._numbers)
            if len(self._numbers) < self._numbers.batch:
                self._numbers.reserve()
        except OSError as error:
            self._journal.close()
            if isinstance(error, Unrecoverable) or error.errno not in _NO_ROOM:
                self._unlock()
                raise
            _log.warn("there is no room for the journal ({error}): messages go to files", error=error)
            return
        for damage in self._journal.damage:
            _log.critical("{text}", text=damage.text)
        for old, new in found:
            _log.info("message {old} was in the journal, and is message {new} in files now", old=old, new=new)
        if not self._in_use:
            self._journal.close()
            return
        self._writer = self._make_writer()
        self._writer.start()

    def _make_writer(self) -> JournalWriter:
        return JournalWriter(self._reactor, self._journal, self._hand_on)

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
        with contextlib.suppress(OSError):
            await self._writer.commit()  # what was to be accepted is, or is not, by now
        await self._settle(list(self._live))
        if self._writer.broken is not None:
            await self._settle(list(self._live))
        await self._writer.stop()
        self._journal.close()
        for live in self._live.values():
            live.close()
        await super().stop()

    # The way in.

    def begin(self, origin: Origin) -> Any:
        if self._writer is None or self._stopping:
            return super().begin(origin)
        return IncomingEntry(
            origin, self._accept, super().begin, self._begin_large, self._keep_in_memory, self._keep_less
        )

    def _keep_in_memory(self, size: int, more: int) -> bool:
        """Whether a message on its way in, of `size` octets so far, may have so many more of the memory."""
        if size > self._largest or self._octets + self._incoming_octets + more > MOST_OCTETS_WITH_LARGE:
            return False
        self._incoming_octets += more
        return True

    def _keep_less(self, octets: int) -> None:
        self._incoming_octets -= octets

    def _accept(self, origin: Origin, blocks: list[bytes], envelope: Envelope) -> Deferred[Accepted] | None:
        """Accept a whole message by a record of the journal; None when it has to become a file."""
        refusal = envelope_error(envelope)
        if refusal is not None:
            return fail(refusal)
        writer = self._writer_for_more()
        if writer is None:
            return None
        number = self._take_number()
        if number is None:
            return None
        now = self._reactor.seconds()
        message = b"".join((queue_received(number, origin.how, now), *blocks))
        entry = Entry(number, now, format_envelope(origin.uid, number, envelope), message)
        record = records.accept(entry)
        if len(record.payload) > self._largest:
            self._numbers.give_back(number)
            return None
        self._octets += len(message)
        return Deferred.fromCoroutine(self._commit(writer, entry, record, envelope.sender))

    def _begin_large(self, origin: Origin) -> IncomingFile:
        number = None if self._writer_for_more() is None else self._take_number()
        if number is None:
            return super().begin(origin)
        large = LargeMessage(self._disk, self._directory, number, self._accept_large)
        return self._begin(origin, large, large)

    def _accept_large(self, submission: Submission, size: int) -> Deferred[Accepted]:
        """Accept a message whose file is durable."""
        assert submission.mess is not None
        writer = self._writer_for_more()
        if writer is not None and envelope_error(submission.envelope) is None:
            number = submission.mess.number
            envelope = format_envelope(submission.origin.uid, number, submission.envelope)
            entry = Entry(number, self._reactor.seconds(), envelope, b"", in_file=size)
            record = records.accept(entry)
            if len(record.payload) <= self._largest:
                return Deferred.fromCoroutine(self._commit(writer, entry, record, submission.envelope.sender))
        return Deferred.fromCoroutine(self._publish(submission, submission.mess.number))

    async def _publish(self, submission: Submission, number: int) -> Accepted:
        """Its file becomes its mess file now, and all goes on as without a journal."""
        self._acceptor.busy.add(number)
        try:
            fd = await self._workers.run(publish, self._disk, self.layout, self._directory, number)
        except (OSError, Stopped) as error:
            self._acceptor.busy.discard(number)
            raise QueueError(MESS_TROUBLE, str(error)) from error
        submission.mess = MessFile(number, fd)
        return await self._committer.submit(submission)

    def _writer_for_more(self) -> JournalWriter | None:
        """None when the journal takes no more messages."""
        writer = self._writer
        if writer is None or writer.broken is not None or self._stopping or self._is_full():
            return None
        return writer

    def _take_number(self) -> int | None:
        number = self._numbers.take()
        if len(self._numbers) < self._numbers.batch // 2:
            self._reserve()
        return number

    async def _commit(self, writer: JournalWriter, entry: Entry, record: Record, sender: bytes) -> Accepted:
        try:
            generation = await writer.commit(record)
        except OSError as error:
            # The number is not given back: nobody knows whether the record is on the disk.
            self._octets -= len(entry.message)
            self._later()
            raise QueueError(WRITE_ERROR, f"the journal: {error}") from error
        self._known = generation
        self._live[entry.number] = Live(entry, generation, sender)
        self._generations[generation] += 1
        self._new.append(entry.number)
        self._later()
        return Accepted(entry.number, entry.number)

    def _is_full(self) -> bool:
        return len(self._live) >= MOST_MESSAGES or self._octets >= MOST_OCTETS or len(self._generations) > MOST_SEGMENTS

    def _reserve(self) -> None:
        if self._reserving or self._reactor.seconds() < self._reserve_at:
            return
        self._reserving = True

        def done(result: Any) -> None:
            self._reserving = False
            if result is not None:
                result.trap(OSError, Stopped)
                self._reserve_at = self._reactor.seconds() + TROUBLE_INTERVAL
                _log.warn("no numbers can be reserved ({error}): messages go to files", error=result.value)

        self._workers.run(self._numbers.reserve).addBoth(done)

    # The queue manager's side.

    def _wake(self) -> None:
        self._files_have_news = True
        super()._wake()

    def _hand_on(self) -> None:
        """Tell the queue manager what was accepted. Not at once: whoever waits for the answer has it before that."""
        if self._new:
            self._reactor.callLater(0, super()._wake)

    def todo(self) -> Deferred[list[int]]:
        return Deferred.fromCoroutine(self._all_todo())

    async def _all_todo(self) -> list[int]:
        new, self._new = self._new, []
        now = self._reactor.seconds()
        if new and not self._files_have_news and now - self._listed < LIST_INTERVAL:
            return new
        self._files_have_news = False
        self._listed = now
        # What the files have of a message in the journal counts for nothing; it may be on its way there, though.
        live = set(self._live)
        try:
            found = await super().todo()
            return list(
                dict.fromkeys(new + [number for number in found if not (number in live or number in self._live)])
            )
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
        routing = Routing(route)
        head = parse_envelope([entry.envelope], "the journal", recipients.extend, routing.asked)
        routed = routing.take(recipients)
        channels = {channel: bytearray(format_recipients(addresses)) for channel, addresses in routed.items()}
        kept = routing.kept(head.asked_mail)
        if kept is not None:
            # Before the other: were it alone to survive a crash, it would not count, as all is routed anew then.
            self._append(live, Record(records.ASKED, entry.number, format_asked(kept)))
        self._append(live, records.routed(entry.number, channels))
        return Preprocessed(entry.number, entry.size, head.sender, head.qp, head.uid, entry.birth, frozenset(channels))

    def info(self, number: int) -> Deferred[MessageInfo]:
        def read(live: Live) -> MessageInfo:
            return MessageInfo(live.sender, live.entry.birth, parse_asked(live.entry.asked, "the journal"))

        return self._do(number, read, lambda: FileQueue.info(self, number))

    def recipients(
        self, number: int, channel: str, offset: int, limit: int
    ) -> Deferred[tuple[list[RecipientRecord], int]]:
        def read(live: Live) -> tuple[list[RecipientRecord], int]:
            data = bytes(live.channel(channel)[offset:])
            found = parse_recipients(data, offset, limit, f"{channel} of {number}")
            return found, found[-1].offset + len(found[-1].address) + 2 if found else offset

        return self._do(number, read, lambda: FileQueue.recipients(self, number, channel, offset, limit))

    def open(self, number: int) -> Deferred[int]:
        return self._do(number, self._open, lambda: FileQueue.open(self, number))

    def _open(self, live: Live) -> int | Deferred[int]:
        if live.entry.in_file is None:
            return live.open()
        number = live.entry.number

        def failed(failure: Failure) -> Any:
            failure.trap(FileNotFoundError)
            # It may have become a mess file meanwhile.
            return failure if self._live.get(number) is live else self.open(number)

        return self._workers.run(self._disk.open_read, f"{self._directory}/{number}").addErrback(failed)

    def mark(self, number: int, channel: str, offset: int) -> Deferred[None]:
        live = self._live.get(number)
        if live is not None and live.waiting is not None:
            # It is just being settled, which may take a while; whoever is killed meanwhile reads it from the journal.
            # The files need the mark all the same, when they count: they may have been written without it.
            try:
                self._append(live, records.mark(number, channel, offset))
            except ValueError as error:
                return fail(error)
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

    def postpone_all(self, channel: str, times: list[tuple[int, float]]) -> Deferred[list[int]]:
        return Deferred.fromCoroutine(self._postpone_all(channel, times))

    async def _postpone_all(self, channel: str, times: list[tuple[int, float]]) -> list[int]:
        for number, due in times:
            if number in self._live:
                await self.postpone(number, channel, due)
        return await super().postpone_all(channel, [one for one in times if one[0] not in self._live])

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
