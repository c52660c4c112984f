"""Looking at a queue as it lies on disk, while it may change: for those who ask what is in it (spec/qmail.md §5).

Blocking. A message that ends meanwhile is left out; nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from qtwist.files.disk import Disk
from qtwist.interfaces import RecipientRecord
from qtwist.queue.layout import Layout
from qtwist.queue.records import parse_envelope
from qtwist.queue.store import CHANNELS, Store
from qtwist.queue.sync import close_quietly

NEW = "new"
QUEUED = "queued"
ENDING = "ending"

_RECORDS = 1000
_BLOCK_SIZE = 64 * 1024


@attrs.frozen
class Recipients:
    """One channel file: when it is due next, and its records."""

    due: float
    records: tuple[RecipientRecord, ...]


@attrs.frozen
class Message:
    """A message. `state` is new (not preprocessed: `envelope` has the recipients as they came), queued, or ending (all
    recipients are done). `birth` is in seconds since the epoch, `size` in octets."""

    number: int
    state: str
    sender: bytes
    birth: float
    size: int
    channels: dict[str, Recipients]
    envelope: tuple[bytes, ...] = ()

    def undone(self) -> Iterator[tuple[str, bytes]]:
        """Channel and address of the recipients that are left; channel ``new`` before preprocessing."""
        for address in self.envelope:
            yield NEW, address
        for channel, recipients in self.channels.items():
            for record in recipients.records:
                if not record.done:
                    yield channel, record.address


class Looking:
    """A view of a queue. OSError where it may not be read, ValueError where it is damaged."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk = disk
        self._layout = layout
        self._store = Store(disk, layout)

    def messages(self) -> Iterator[Message]:
        """All messages, by number."""
        numbers = set(self._store.numbers("todo"))
        for part in range(self._layout.split):
            numbers.update(self._store.numbers("info", part))
        for number in sorted(numbers):
            message = self.message(number)
            if message is not None:
                yield message

    def message(self, number: int) -> Message | None:
        """One message; None when there is none."""
        try:
            status = self._disk.stat(self._layout.path("mess", number))
            try:
                return self._new(number, status.st_size)
            except FileNotFoundError:
                info = self._store.info(number)
        except FileNotFoundError:
            return None
        channels = {}
        for channel in CHANNELS:
            try:
                channels[channel] = Recipients(self._store.due(number, channel), tuple(self._records(number, channel)))
            except FileNotFoundError:
                continue
        state = QUEUED if channels else ENDING
        return Message(number, state, info.sender, info.birth, status.st_size, channels)

    def _new(self, number: int, size: int) -> Message:
        path = self._layout.path("todo", number)
        fd = self._disk.open_read(path)
        try:
            recipients: list[bytes] = []
            head = parse_envelope(self._blocks(fd), self._layout.name("todo", number), recipients.extend)
            birth = self._disk.fstat(fd).st_mtime
        finally:
            close_quietly(self._disk, fd)
        return Message(number, NEW, head.sender, birth, size, {}, tuple(recipients))

    def _blocks(self, fd: int) -> Iterator[bytes]:
        while block := self._disk.read(fd, _BLOCK_SIZE):
            yield block

    def _records(self, number: int, channel: str) -> Iterator[RecipientRecord]:
        offset = 0
        while True:
            records, offset = self._store.recipients(number, channel, offset, _RECORDS)
            yield from records
            if len(records) < _RECORDS:
                return
