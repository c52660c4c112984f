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
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
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
from qtwist.queue.journal import Entry, Record
from qtwist.queue.large import LargeMessage, publish
from qtwist.queue.live import Live
from qtwist.queue.records import (
    format_asked,
    format_envelope,
    format_recipients,
    parse_asked,
    parse_envelope,
    parse_recipients,
)
from qtwist.queue.recovery import Unrecoverable, recover
from qtwist.queue.routing import Route, Routing
from qtwist.queue.settling import TROUBLE_INTERVAL, SettlingQueue
from qtwist.queue.workers import Stopped
from qtwist.queue.writer import JournalWriter

#: Up to so many octets, messages of more than MEMORY_LIMIT are among them; those on their way in count, too.
MOST_OCTETS_WITH_LARGE = 16 * 1024 * 1024
#: Seconds until todo/ is looked at again for what came without a word, however much comes through the journal.
LIST_INTERVAL = 60.0

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_log = Logger()


class JournaledQueue(SettlingQueue):
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
        super().__init__(directory, disk, reactor, segment_size)
        self._in_use = in_use
        self._largest = min(records.LARGEST_RECORD, segment_size // 2)
        self._incoming_octets = 0  # of messages on their way in, beyond what each may have
        self._new: list[int] = []  # accepted, not yet handed to the queue manager
        self._files_have_news = True
        self._listed = 0.0  # when todo/ was looked at
        self._reserving = False
        self._reserve_at = 0.0

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
