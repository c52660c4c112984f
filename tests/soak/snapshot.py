"""What a dead queue manager has left on the disk, read without changing anything: its files, and its journal."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from qtwist.files.disk import RealDisk
from qtwist.queue.journal import Entry, Journal, replay
from qtwist.queue.records import parse_envelope, parse_info, parse_recipients
from tests.soak.ledger import Left, tag_of

_ENDLESS = 1 << 30


def look_at(queue: str) -> tuple[Left, ...]:
    """The messages in a queue that nobody works on. What is not preprocessed has all its recipients left."""
    journal = {entry.number: entry for entry in _entries(os.path.join(queue, "journal"))}
    return (*map(_in_journal, journal.values()), *_in_files(queue, frozenset(journal)))


def _entries(directory: str) -> list[Entry]:
    """A copy is read, for reading flushes what it finds."""
    if not os.path.isdir(directory):
        return []
    with tempfile.TemporaryDirectory(prefix="qtwist-soak-") as folder:
        for name in os.listdir(directory):
            if name.endswith(".segment"):
                shutil.copy(os.path.join(directory, name), folder)
        copy = Journal(RealDisk(), folder)
        try:
            return list(replay(copy.read()).values())
        finally:
            copy.close()


def _in_journal(entry: Entry) -> Left:
    recipients: list[bytes] = []
    sender = parse_envelope([entry.envelope], "the journal", recipients.extend).sender
    if entry.channels is not None:
        recipients = _pending(*entry.channels.values())
    return _left(entry.number, sender, recipients, bounce=entry.bounce is not None)


def _in_files(queue: str, but: frozenset[int]) -> Iterator[Left]:
    todo = {int(name) for name in os.listdir(os.path.join(queue, "todo"))} - but
    for number in todo:
        recipients: list[bytes] = []
        contents = _read(os.path.join(queue, "todo", str(number)))
        sender = parse_envelope([contents], "todo", recipients.extend).sender
        yield _left(number, sender, recipients, bounce=False)
    for part in os.listdir(os.path.join(queue, "info")):
        for name in os.listdir(os.path.join(queue, "info", part)):
            number = int(name)
            if number in todo or number in but:
                continue
            sender = parse_info(_read(os.path.join(queue, "info", part, name)), "info")
            channels = [_read(os.path.join(queue, channel, part, name)) for channel in ("local", "remote")]
            bounce = os.path.exists(os.path.join(queue, "bounce", name))
            yield _left(number, sender, _pending(*channels), bounce=bounce)


def _pending(*channels: bytes | bytearray) -> list[bytes]:
    records = [record for data in channels for record in parse_recipients(bytes(data), 0, _ENDLESS, "a channel")]
    return [record.address for record in records if not record.done]


def _left(number: int, sender: bytes, recipients: list[bytes], *, bounce: bool) -> Left:
    return Left(str(number), tag_of(sender.decode()), tuple(one.decode() for one in recipients), bounce)


def _read(path: str) -> bytes:
    """The contents of a file; nothing when there is none."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return b""
