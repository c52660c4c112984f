"""The journal in front of the queue's files: records appended to segments, one flush for many (design §4).

A segment is a file of fixed size under queue/journal/, written once with zeros so that later only contents change: then
a flush needs no commit of the file system's own journal. Segments are used in turn; every use has a generation, counted
up, which each record carries and its checksum covers, with a random number that nobody knows who sends mail: what
stands in a message is never taken for a record. Reading a segment ends at the first record that is not whole, or not of
this use of the segment: what a crash has torn, or what an earlier use has left.

The first record of every segment says which generation is the oldest that still counts; a copy of it stands at the end.

What is written after a flush begins with a record that says so. Where reading has ended before such a record, the disk
has lost what it had taken for good: that is damage, which is told, and what can be read behind it is read.

Blocking; nothing here knows of threads or of a reactor. The disk is asked for no more than that what was flushed stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator

import attrs

from qtwist.files.disk import Disk
from qtwist.queue.sync import close_quietly

#: The size of a segment, and the largest record (octets): a message of 1 MiB with some recipients.
SEGMENT_SIZE = 16 * 1024 * 1024
LARGEST_RECORD = 1024 * 1024 + 64 * 1024

ACCEPT = b"A"
ACCEPT_LARGE = b"L"
ROUTED = b"R"
MARK = b"M"
POSTPONE = b"P"
BOUNCE = b"B"
UNBOUNCE = b"U"
DONE = b"D"
END = b"E"
ASKED = b"Q"
_FIRST = b"F"
_FLUSHED = b"S"

#: Checksum of all that follows, octets of the payload, generation, the use's random number, kind, message number.
_HEAD = struct.Struct("!IIQQcQ")
_CHECKSUM = 4
_USE = struct.Struct("!QQ")  # as in a head
_USE_AT = 8
_GENERATION = struct.Struct("!Q")
_SUFFIX = ".segment"

#: Added to the name of a damaged segment.
KEPT = ".damaged"

_ZEROS = bytes(256 * 1024)


@attrs.frozen
class Record:
    """One thing that happened to message `number`; `payload` depends on `kind`."""

    kind: bytes
    number: int
    payload: bytes = b""


@attrs.frozen
class Use:
    """One use of a segment: the how manieth of all that is, and its random number."""

    generation: int
    secret: int

    @classmethod
    def make(cls, generation: int) -> Use:
        return cls(generation, secrets.randbits(64))


@attrs.define(eq=False)
class _Segment:
    path: str
    fd: int
    generation: int = 0
    usable: bool = True  # of the right size, and the disk has not failed in it
    keep: bool = False  # not to be removed: somebody may want to look


@attrs.frozen
class Damage:
    """What a disk has lost that it had flushed: in the file at `path`, from octet `offset` on, up to `end`."""

    path: str
    offset: int
    end: int

    @property
    def text(self) -> str:
        """For the log."""
        return (
            f"the journal is damaged: the disk has lost or changed octets {self.offset} to {self.end} of {self.path}, "
            f"which it had flushed. What stands behind them is used; mail that was in them is lost, or may be "
            f"delivered again. The file is kept as {self.path}{KEPT}"
        )


@attrs.frozen
class Lost:
    """A large message that is in the journal, and whose file at `path` the disk has lost in whole or in part."""

    path: str

    @property
    def text(self) -> str:
        """For the log."""
        return (
            f"the disk has lost a message which it had flushed, or a part of it: it was in {self.path}. It is not "
            f"delivered; what there is of it is kept as {self.path}{KEPT}"
        )


@attrs.frozen
class Content:
    """What a segment holds: its use (None for one that holds nothing), the oldest generation that counts, the records,
    and the parts (offset, end) that are damaged."""

    use: Use | None = None
    oldest: int = 0
    records: tuple[Record, ...] = ()
    damaged: tuple[tuple[int, int], ...] = ()


def pack(record: Record, use: Use) -> bytes:
    """A record as it stands in a segment."""
    return b"".join(_pieces(record, use))


def _pieces(record: Record, use: Use) -> tuple[bytes, ...]:
    """The same, not copied."""
    length = len(record.payload)
    head = _HEAD.pack(0, length, use.generation, use.secret, record.kind, record.number)[_CHECKSUM:]
    checksum = zlib.crc32(record.payload, zlib.crc32(head))
    return checksum.to_bytes(_CHECKSUM, "big"), head, record.payload


def pack_first(use: Use, oldest: int) -> bytes:
    """The first record of a segment."""
    return pack(Record(_FIRST, 0, _GENERATION.pack(oldest)), use)


#: Octets of a segment's first record, and of its copy at the end.
FIRST_SIZE = _HEAD.size + _GENERATION.size


def _record_at(data: bytes, offset: int) -> tuple[Use, Record] | None:
    """The whole record that begins there, if one does."""
    if offset < 0 or offset + _HEAD.size > len(data):
        return None
    checksum, length, generation, secret, kind, number = _HEAD.unpack_from(data, offset)
    end = offset + _HEAD.size + length
    if not generation or end > len(data) or zlib.crc32(memoryview(data)[offset + _CHECKSUM : end]) != checksum:
        return None
    return Use(generation, secret), Record(kind, number, data[offset + _HEAD.size : end])


def unpack(data: bytes) -> Content:
    """What the octets of a segment say. ValueError for one that does not begin as one does."""
    first = _record_at(data, 0) or _record_at(data, len(data) - FIRST_SIZE)
    if first is None:
        return Content()
    use, record = first
    if record.kind != _FIRST or len(record.payload) != _GENERATION.size:
        raise ValueError(f"segment {use.generation} begins with a record {record.kind!r}")
    [oldest] = _GENERATION.unpack(record.payload)
    found: list[Record] = []
    damaged: list[tuple[int, int]] = []
    flushed = _last_flush(data, use)
    offset = FIRST_SIZE
    while True:
        offset = _read_on(data, offset, use, found)
        if offset >= flushed:
            break
        start, offset = offset, _next_record(data, offset, use)
        damaged.append((start, offset))
    return Content(use, oldest, tuple(found), tuple(damaged))


def _read_on(data: bytes, offset: int, use: Use, found: list[Record]) -> int:
    """Append the records of this use from `offset` on to `found`, as far as they are whole; where that ends."""
    while (one := _record_at(data, offset)) is not None and one[0] == use:
        if one[1].kind not in (_FLUSHED, _FIRST):
            found.append(one[1])
        offset += _HEAD.size + len(one[1].payload)
    return offset


def _last_flush(data: bytes, use: Use) -> int:
    """Up to where the octets were flushed, as the last record says that tells it."""
    wanted = _USE.pack(use.generation, use.secret) + _FLUSHED
    place = len(data)
    while (place := data.rfind(wanted, 0, place)) >= 0:
        if _record_at(data, place - _USE_AT) is not None:
            return place - _USE_AT
    return 0


def _next_record(data: bytes, offset: int, use: Use) -> int:
    """Where the next whole record of this use begins; there is one."""
    wanted = _USE.pack(use.generation, use.secret)
    place = data.find(wanted, offset + _USE_AT)
    while _record_at(data, place - _USE_AT) is None:
        place = data.find(wanted, place + 1)
    return place - _USE_AT


class Journal:
    """The segments of one queue. After :meth:`open`, one thread at a time may :meth:`write`."""

    def __init__(self, disk: Disk, directory: str, segment_size: int = SEGMENT_SIZE) -> None:
        self._disk = disk
        self._directory = directory
        self._size = segment_size
        self._free: list[_Segment] = []
        self._unusable: list[_Segment] = []  # to be removed as soon as they do not count
        self._current: _Segment | None = None
        self._used: list[_Segment] = []  # with records that count still, the current one included, oldest first
        self._generation = 0
        self._use = Use(0, 0)
        self._offset = 0
        self._tell_flush = False  # that all is flushed which stands in the segment so far
        self.damage: list[Damage | Lost] = []  # what :meth:`read` has found

    @property
    def generation(self) -> int:
        """That of the segment in use."""
        return self._generation

    def read(self) -> list[Record]:
        """All records that count, in the order in which they were written, durable now.

        :attr:`damage` tells what of them is lost. OSError when the disk fails, ValueError for what is no segment.
        """
        segments: list[tuple[Use, Content, _Segment]] = []
        for name in sorted(self._disk.list_directory(self._directory)):
            if name.endswith(_SUFFIX):
                segment = _Segment(os.path.join(self._directory, name), -1)
                segment.fd = self._disk.open(segment.path, os.O_RDWR)
                self._free.append(segment)
                size = self._disk.fstat(segment.fd).st_size
                # A crash while it was made leaves a shorter one; one of other settings may be longer.
                segment.usable = size == self._size
                content = unpack(self._disk.pread(segment.fd, size, 0))
                if content.use is not None:
                    # A killed process has not flushed all that can be read; it must not be acted upon and then go.
                    self._disk.sync_data(segment.fd)
                    segments.append((content.use, content, segment))
        if not segments:
            return []
        segments.sort(key=lambda one: one[0].generation)
        self._generation = segments[-1][0].generation
        oldest = segments[-1][1].oldest
        counting = [(content, segment) for use, content, segment in segments if use.generation >= oldest]
        for content, segment in counting:
            if content.damaged:
                segment.usable = False
                segment.keep = True
                self.damage += [Damage(segment.path, *part) for part in content.damaged]
        return [record for content, _ in counting for record in content.records]

    def open(self) -> None:
        """Begin anew: nothing that was written so far counts from here on, durably. After :meth:`read`, or when a write
        has failed."""
        everything = self._free + self._used
        self._free = [segment for segment in everything if segment.usable]
        self._unusable += [segment for segment in everything if not segment.usable]
        self._used = []
        self._rotate()
        while self._unusable:
            segment = self._unusable.pop()
            close_quietly(self._disk, segment.fd)
            with contextlib.suppress(OSError):
                if segment.keep:
                    self._disk.rename(segment.path, segment.path + KEPT)
                else:
                    self._disk.unlink(segment.path)

    def write(self, records: Iterable[Record], sync: bool) -> None:
        """Append records; with `sync`, they and all before them are durable when this returns.

        OSError when the disk fails: then nothing is known of these records, and nothing more can be written.
        """
        parts: list[bytes] = []
        size = 0
        for record in records:
            pieces = _pieces(record, self._use)
            if self._tell_flush:
                self._tell_flush = False
                pieces = (pack(Record(_FLUSHED, 0), self._use), *pieces)
            length = sum(map(len, pieces))
            if self._offset + size + length > self._room:
                self._append(parts)
                parts, size = [], 0
                self._sync()
                self._rotate()
                self._tell_flush = False  # there is but the first record
                pieces = _pieces(record, self._use)
                length = sum(map(len, pieces))
                if self._offset + length > self._room:
                    raise OSError(errno.EFBIG, f"a record of {length} octets does not fit in a segment")
            parts += pieces
            size += length
        self._append(parts)
        if sync:
            self._sync()
            if not parts and self._offset + _HEAD.size <= self._room:
                # Nobody writes at the moment; this need not be flushed.
                self._tell_flush = False
                self._append([pack(Record(_FLUSHED, 0), self._use)])

    @property
    def _room(self) -> int:
        """Octets of a segment before the copy of its first record."""
        return self._size - FIRST_SIZE

    def release(self, oldest: int) -> None:
        """Generations before `oldest` do not count any more; their segments may be used again."""
        while self._used and self._used[0].generation < oldest and self._used[0] is not self._current:
            self._free.append(self._used.pop(0))

    @property
    def segments(self) -> int:
        """How many segments hold records that count."""
        return len(self._used)

    def close(self) -> None:
        """Close all files; nothing is flushed."""
        for segment in (*self._free, *self._used, *self._unusable):
            close_quietly(self._disk, segment.fd)
        self._free, self._used, self._unusable, self._current = [], [], [], None

    def _rotate(self) -> None:
        segment = self._free.pop(0) if self._free else self._create()
        self._generation += 1
        segment.generation = self._generation
        self._current = segment
        self._used.append(segment)
        self._use = Use.make(self._generation)
        self._offset = self._room
        first = pack_first(self._use, self._used[0].generation)
        self._append([first])
        self._offset = 0
        self._append([first])
        # Alone, before anything lies behind it: were only that to survive a crash, the segment would still be read as
        # what it was before, without the ends of its messages.
        self._sync()

    def _create(self) -> _Segment:
        taken = {segment.path for segment in (*self._free, *self._used, *self._unusable)}
        numbers = (os.path.join(self._directory, f"{number}{_SUFFIX}") for number in range(1, 100_000))
        path = next(path for path in numbers if path not in taken)
        fd = self._disk.create_exclusive(path, 0o600)
        try:
            for start in range(0, self._size, len(_ZEROS)):
                self._disk.write_all(fd, _ZEROS[: self._size - start])
            self._disk.fsync(fd)
            self._disk.fsync_directory(self._directory)
        except OSError:
            close_quietly(self._disk, fd)
            self._disk.unlink(path)
            raise
        return _Segment(path, fd)

    def _append(self, parts: list[bytes]) -> None:
        assert self._current is not None
        data = b"".join(parts)
        written = 0
        while written < len(data):
            piece = data[written:] if written else data
            written += self._disk.pwrite(self._current.fd, piece, self._offset + written)
        self._offset += len(data)

    def _sync(self) -> None:
        assert self._current is not None
        try:
            self._disk.sync_data(self._current.fd)
        except OSError:
            self._current.usable = False
            raise
        self._tell_flush = True


# What the payloads hold.

_ACCEPT = struct.Struct("!dI")  # birth, octets of the envelope
_LARGE = struct.Struct("!dQ")  # birth, octets of the message
_MARK = struct.Struct("!cQ")  # channel, offset
_DUE = struct.Struct("!cd")  # channel, due
_LENGTH = struct.Struct("!I")
_LETTERS = {"local": b"l", "remote": b"r"}
_CHANNELS = {letter: channel for channel, letter in _LETTERS.items()}


@attrs.define(eq=False)
class Entry:
    """A message in the journal, as its records tell it.

    A large one lies in the file that holds its number (:class:`~qtwist.queue.numbers.Numbers`); `in_file` is its size
    then, and `message` is empty.

    `channels` holds what local/N and remote/N would, None before it is preprocessed; `due` the channels' due times.
    """

    number: int
    birth: float
    envelope: bytes  # as in todo/N
    message: bytes
    channels: dict[str, bytearray] | None = None
    due: dict[str, float] = attrs.field(factory=dict)
    bounce: bytearray | None = None
    asked: bytes = b""  # what info/N has behind the sender, for the channels as they are
    in_file: int | None = None

    @property
    def size(self) -> int:
        """Octets of the message."""
        return len(self.message) if self.in_file is None else self.in_file

    def apply(self, record: Record) -> None:
        """Take in what one record says of this message. ValueError for a record that cannot be."""
        kind, payload = record.kind, record.payload
        try:
            if kind == ROUTED:
                self.channels = dict(_read_routed(payload))
                self.due = {channel: self.birth for channel in self.channels}
            elif kind == ASKED:
                self.asked = payload
            elif kind == MARK:
                letter, offset = _MARK.unpack(payload)
                assert self.channels is not None
                channel = self.channels[_CHANNELS[letter]]
                assert channel[offset] in b"TD"
                channel[offset] = ord("D")
            elif kind == POSTPONE:
                letter, due = _DUE.unpack(payload)
                self.due[_CHANNELS[letter]] = due
            elif kind == BOUNCE:
                self.bounce = (self.bounce or bytearray()) + payload
            elif kind == UNBOUNCE:
                self.bounce = None
            elif kind == DONE:
                assert self.channels is not None
                self.channels.pop(_CHANNELS[payload], None)
            else:
                raise ValueError(f"a record of the kind {kind!r}")
        except (struct.error, KeyError, IndexError, AssertionError) as error:
            raise ValueError(f"a record {kind!r} of message {self.number} makes no sense") from error


def accept(entry: Entry) -> Record:
    """A message is there; a large one's file has to be durable before this is."""
    if entry.in_file is not None:
        return Record(ACCEPT_LARGE, entry.number, _LARGE.pack(entry.birth, entry.in_file) + entry.envelope)
    payload = _ACCEPT.pack(entry.birth, len(entry.envelope)) + entry.envelope + entry.message
    return Record(ACCEPT, entry.number, payload)


def routed(number: int, channels: dict[str, bytearray]) -> Record:
    """Which channel file would hold what."""
    parts = [_LETTERS[name] + _LENGTH.pack(len(data)) + data for name, data in channels.items()]
    return Record(ROUTED, number, b"".join(parts))


def mark(number: int, channel: str, offset: int) -> Record:
    return Record(MARK, number, _MARK.pack(_LETTERS[channel], offset))


def postpone(number: int, channel: str, due: float) -> Record:
    return Record(POSTPONE, number, _DUE.pack(_LETTERS[channel], due))


def done(number: int, channel: str) -> Record:
    """A channel is finished, whatever its marks say."""
    return Record(DONE, number, _LETTERS[channel])


def _read_routed(payload: bytes) -> Iterator[tuple[str, bytearray]]:
    offset = 0
    while offset < len(payload):
        [length] = _LENGTH.unpack_from(payload, offset + 1)
        start = offset + 1 + _LENGTH.size
        yield _CHANNELS[payload[offset : offset + 1]], bytearray(payload[start : start + length])
        offset = start + length


def _accepted(record: Record) -> Entry:
    head = _ACCEPT if record.kind == ACCEPT else _LARGE
    if len(record.payload) < head.size:
        raise ValueError(f"a record {record.kind!r} of message {record.number} makes no sense")
    birth, length = head.unpack_from(record.payload)
    rest = record.payload[head.size :]
    if record.kind == ACCEPT_LARGE:
        return Entry(record.number, birth, rest, b"", in_file=length)
    return Entry(record.number, birth, rest[:length], rest[length:])


def replay(records: Iterable[Record], *, with_gaps: bool = False) -> dict[int, Entry]:
    """The messages that were accepted and not yet ended, by number.

    ValueError for records that make no sense; `with_gaps`, they are passed over, as are those of other messages.
    """
    entries: dict[int, Entry] = {}
    for record in records:
        if record.kind in (ACCEPT, ACCEPT_LARGE):
            entries[record.number] = _accepted(record)
        elif record.kind == END:
            entries.pop(record.number, None)
        elif record.number in entries:
            try:
                entries[record.number].apply(record)
            except ValueError:
                if not with_gaps:
                    raise
    return entries
