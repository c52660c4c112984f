"""An IQueue in memory, and spawners that do as they are told: for tests of the rooms above the queue."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface import implementer

from qtwist.interfaces import (
    Accepted,
    Delivery,
    IIncomingMessage,
    IQueue,
    ISpawner,
    MessageInfo,
    Preprocessed,
    QueuedMessage,
    QueueError,
    RecipientRecord,
)
from qtwist.mail.asked import Kept
from qtwist.mail.envelope import Envelope, Origin, Report


@implementer(IIncomingMessage)
class MemoryIncoming:
    def __init__(self, queue: MemoryQueue, origin: Origin) -> None:
        self.queue = queue
        self.origin = origin
        self.data = b""
        self.ended = False

    def write(self, data: bytes) -> Deferred[None] | None:
        self.data += data
        return None

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        self.ended = True
        if self.queue.refuse:
            return fail(QueueError(self.queue.refuse))
        return self.queue._answer("commit", self.queue.put(self.data, envelope, self.origin))

    def abort(self) -> None:
        self.ended = True


@implementer(IQueue)
class MemoryQueue:
    """Messages in dicts. `broken` names methods that fail with OSError, `slow` those whose answers wait for
    :meth:`resume`; `refuse` is a code for every commit."""

    split = 23

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.messages: dict[int, bytes] = {}
        self.envelopes: dict[int, Envelope] = {}  # what is in todo/
        self.infos: dict[int, MessageInfo] = {}
        self.files: dict[tuple[int, str], list[list]] = {}  # (number, channel) -> [done, address] records
        self.due: dict[tuple[int, str], float] = {}
        self.bounces: dict[int, bytes] = {}
        self.origins: dict[int, Origin] = {}
        self.accepted: list[tuple[Envelope, bytes]] = []
        self.broken: set[str] = set()
        self.slow: set[str] = set()
        self._slowed: list[tuple[Deferred, object]] = []
        self.refuse = 0
        self.locked = False
        self.sweeps = 0
        self._callback: Callable[[], None] = lambda: None
        self._next = 100

    def _answer(self, method: str, value: object = None) -> Deferred:
        if method in self.slow:
            answer: Deferred = Deferred()
            self._slowed.append((answer, OSError(5, "Input/output error") if method in self.broken else value))
            return answer
        return fail(OSError(5, "Input/output error")) if method in self.broken else succeed(value)

    @property
    def held_up(self) -> int:
        """How many answers are."""
        return len(self._slowed)

    def resume(self) -> None:
        """Give the answers that were held up."""
        for _ in range(self.held_up):
            self.resume_one(0)

    def resume_one(self, which: int) -> None:
        """Give one of the answers that were held up."""
        answer, value = self._slowed.pop(which)
        (answer.errback if isinstance(value, OSError) else answer.callback)(value)

    def _number(self) -> int:
        """For a new message."""
        self._next += 1
        return self._next

    def put(self, data: bytes, envelope: Envelope, origin: Origin) -> Accepted:
        number = self._number()
        self.messages[number] = data
        self.envelopes[number] = envelope
        self.origins[number] = origin
        self.accepted.append((envelope, data))
        self.clock.callLater(0, self._callback)
        return Accepted(number, number)

    def send(self, sender: bytes, *recipients: bytes, data: bytes = b"Subject: x\n\nhello\n") -> int:
        return self.put(data, Envelope(sender, recipients), Origin.network(1000)).number

    def begin(self, origin: Origin) -> MemoryIncoming:
        return MemoryIncoming(self, origin)

    def on_todo(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def todo(self) -> Deferred:
        return self._answer("todo", sorted(self.envelopes))

    def preprocess(self, numbers: list[int], route: Callable[[bytes], tuple[str, bytes]]) -> Deferred:
        results: list[object] = []
        for number in numbers:
            if "preprocess" in self.broken:
                results.append((number, f"unable to open todo/{number}"))
                continue
            envelope = self.envelopes.pop(number)
            now = self.clock.seconds()
            channels = set()
            kept = {}
            for index, recipient in enumerate(envelope.recipients):
                channel, address = route(recipient)
                records = self.files.setdefault((number, channel), [])
                if envelope.asked is not None and envelope.asked.recipients[index]:
                    kept[channel, len(records)] = envelope.asked.recipients[index]
                records.append([False, address])
                self.due[number, channel] = now
                channels.add(channel)
            asked = None if envelope.asked is None else Kept(envelope.asked.mail, kept)
            self.infos[number] = MessageInfo(envelope.sender, now, asked)
            results.append(
                Preprocessed(
                    number, len(self.messages[number]), envelope.sender, number, 1000, now, frozenset(channels)
                )
            )
        return succeed(results) if "preprocess" in self.broken else self._answer("preprocess", results)

    def scan(self) -> Iterable[Deferred]:
        while "scan" in self.broken:
            yield self._answer("scan")
        for number in list(self.infos):
            due = {channel: when for (n, channel), when in self.due.items() if n == number}
            yield self._answer("scan", [QueuedMessage(number, due)])

    def info(self, number: int) -> Deferred:
        return self._answer("info", self.infos.get(number))

    def recipients(self, number: int, channel: str, offset: int, limit: int) -> Deferred:
        records = [
            RecipientRecord(index, done, address)
            for index, (done, address) in enumerate(self.files[number, channel])
            if index >= offset
        ][:limit]
        return self._answer("recipients", (records, offset + len(records)))

    def open(self, number: int) -> Deferred:
        if "open" in self.broken:
            return self._answer("open")
        fd, path = tempfile.mkstemp()
        os.unlink(path)
        os.write(fd, self.messages[number])
        os.lseek(fd, 0, os.SEEK_SET)
        return self._answer("open", fd)

    def mark(self, number: int, channel: str, offset: int) -> Deferred:
        if "mark" not in self.broken:
            self.files[number, channel][offset][0] = True
        return self._answer("mark")

    def postpone(self, number: int, channel: str, due: float) -> Deferred:
        self.due[number, channel] = due
        return self._answer("postpone")

    def postpone_all(self, channel: str, times: list[tuple[int, float]]) -> Deferred:
        for number, due in times:
            self.due[number, channel] = due
        broken = [number for number, _ in times] if "postpone" in self.broken else []
        return succeed(broken)

    def finish_channel(self, number: int, channel: str) -> Deferred:
        if "finish_channel" not in self.broken:
            del self.files[number, channel]
            del self.due[number, channel]
        return self._answer("finish_channel")

    def append_bounce(self, number: int, paragraph: bytes) -> Deferred:
        if "append_bounce" not in self.broken:
            self.bounces[number] = self.bounces.get(number, b"") + paragraph
        return self._answer("append_bounce")

    def bounce(self, number: int) -> Deferred:
        return self._answer("bounce", self.bounces.get(number))

    def discard_bounce(self, number: int) -> Deferred:
        self.bounces.pop(number, None)
        return self._answer("discard_bounce")

    def finish(self, number: int) -> Deferred:
        if "finish" not in self.broken:
            del self.infos[number]
            del self.messages[number]
        return self._answer("finish")

    def settle(self, number: int) -> None:
        pass

    def collect_garbage(self) -> Deferred:
        self.sweeps += 1
        return self._answer("collect_garbage")

    def lock(self) -> None:
        if self.locked:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.locked = True


@implementer(ISpawner)
class ScriptedSpawner:
    """Answers deliveries from `answers` (recipient -> Report or exception); those it has no answer for stay open."""

    def __init__(self, limit: int = 120) -> None:
        self.limit = limit
        self.answers: dict[bytes, Report | Exception] = {}
        self.open: list[tuple[Delivery, Deferred[Report]]] = []
        self.seen: list[tuple[bytes, bytes]] = []  # (sender, recipient)

    def deliver(self, delivery: Delivery) -> Deferred[Report]:
        os.close(delivery.fd)
        self.seen.append((delivery.sender, delivery.recipient))
        answer = self.answers.get(delivery.recipient)
        if isinstance(answer, Exception):
            return fail(answer)
        if answer is not None:
            return succeed(answer)
        waiting: Deferred[Report] = Deferred()
        self.open.append((delivery, waiting))
        return waiting

    def stop(self) -> Deferred[None]:
        return succeed(None)
