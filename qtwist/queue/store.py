"""The life of a preprocessed message in the queue's files, and the remains of dead ones (spec/qmail.md §5, §9.6, §9.8).

Blocking, for threads; OSError when the disk fails. A step that a crash may make us do again takes a missing file for
done.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Container, Iterable, Iterator

from qtwist.files.disk import Disk
from qtwist.interfaces import MessageInfo, QueuedMessage, RecipientRecord
from qtwist.queue.layout import PRIVATE_MODE, Layout, message_number
from qtwist.queue.records import RECORD_LIMIT, parse_asked, parse_info, parse_recipients
from qtwist.queue.sync import close_quietly, unlink_if_there

#: Remains that nobody has looked at for so long are garbage (§1.5). Longer than a qmail-queue may live.
OSSIFIED = 129600

CHANNELS = ("local", "remote")

_BLOCK_SIZE = 64 * 1024
_INFO_LIMIT = 512 * 1024 * 1024  # more than RECIPIENT_LIMIT recipients with parameters have


class Store:
    """The files of a queue, apart from the way in."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self._disk = disk
        self._layout = layout

    def numbers(self, room: str, part: int | None = None) -> list[int]:
        """The messages that have a file in a directory; names that are no numbers are ignored."""
        names = self._disk.list_directory(self._layout.room(room, part))
        return [number for number in map(message_number, names) if number is not None]

    def info(self, number: int) -> MessageInfo:
        """Sender, birth, and what was asked for. ValueError when the file is damaged."""
        where = self._layout.name("info", number)
        fd = self._disk.open_read(self._layout.path("info", number))
        try:
            contents = self._disk.pread(fd, RECORD_LIMIT, 0)
            status = self._disk.fstat(fd)
            if len(contents) == RECORD_LIMIT and status.st_size <= _INFO_LIMIT:
                contents += self._disk.pread(fd, status.st_size - RECORD_LIMIT, RECORD_LIMIT)
        finally:
            close_quietly(self._disk, fd)
        sender = parse_info(contents, where)
        return MessageInfo(sender, status.st_mtime, parse_asked(contents[len(sender) + 2 :], where))

    def recipients(self, number: int, channel: str, offset: int, limit: int) -> tuple[list[RecipientRecord], int]:
        """At most `limit` records from `offset`, and where the next one starts. ValueError when the file is damaged."""
        where = self._layout.name(channel, number)
        records: list[RecipientRecord] = []
        fd = self._disk.open_read(self._layout.path(channel, number))
        try:
            while len(records) < limit:
                data = self._disk.pread(fd, _BLOCK_SIZE, offset)
                found = parse_recipients(data, offset, limit - len(records), where)
                if not found:
                    if data:
                        raise ValueError(f"{where}: the record at offset {offset} has no end")
                    break
                records += found
                offset = found[-1].offset + len(found[-1].address) + 2
        finally:
            close_quietly(self._disk, fd)
        return records, offset

    def open_message(self, number: int) -> int:
        """A read-only descriptor of the message."""
        path = self._layout.path("mess", number)
        fd = self._disk.open_read(path)
        try:
            if not stat.S_ISREG(self._disk.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "is not a regular file", path)
        except OSError:
            close_quietly(self._disk, fd)
            raise
        return fd

    def mark(self, number: int, channel: str, offset: int) -> None:
        """Mark a record as done, in place (§5.2)."""
        fd = self._disk.open(self._layout.path(channel, number), os.O_WRONLY)
        try:
            self._disk.pwrite(fd, b"D", offset)
        finally:
            close_quietly(self._disk, fd)

    def due(self, number: int, channel: str) -> float:
        """The due time of a channel file."""
        return self._disk.stat(self._layout.path(channel, number)).st_mtime

    def postpone(self, number: int, channel: str, due: float) -> None:
        """Set the due time of a channel file."""
        self._disk.utime(self._layout.path(channel, number), due)

    def postpone_all(self, channel: str, times: Iterable[tuple[int, float]]) -> list[int]:
        """:meth:`postpone` for many; those that the disk has refused."""
        refused = []
        for number, due in times:
            try:
                self.postpone(number, channel, due)
            except OSError:
                refused.append(number)
        return refused

    def remove(self, room: str, number: int) -> None:
        """Remove one file of a message; none is fine."""
        unlink_if_there(self._disk, self._layout.path(room, number))

    def finish(self, number: int) -> None:
        """info, then what qmail-clean does for ``foop``: intd, mess (§9.6, §10)."""
        for room in ("info", "intd", "mess"):
            self.remove(room, number)

    def append_bounce(self, number: int, paragraph: bytes) -> None:
        """Append to bounce/N, durably; all of it or, while the disk lets us, nothing.

        A paragraph ends with an empty line. What a crash has left of another one is cut off.
        """
        disk = self._disk
        fd = disk.open(self._layout.path("bounce", number), os.O_RDWR | os.O_APPEND | os.O_CREAT, PRIVATE_MODE)
        try:
            size = disk.fstat(fd).st_size
            whole = self._whole_paragraphs(fd, size)
            if whole < size:
                disk.truncate(fd, whole)
            try:
                if whole == 0:
                    # The file is new. Before anything is in it: were we killed in between, the next one to come here
                    # would not know that the entry may not last.
                    disk.fsync_directory(self._layout.room("bounce"))
                disk.write_all(fd, paragraph)
                disk.fsync(fd)
            except OSError:
                disk.truncate(fd, whole)
                raise
        finally:
            close_quietly(disk, fd)

    def _whole_paragraphs(self, fd: int, size: int) -> int:
        """The size of a bounce file without the rest of a paragraph that was not written to its end."""
        if size == 0 or self._disk.pread(fd, 2, max(0, size - 2)) == b"\n\n":
            return size
        return len(_whole_paragraphs(b"".join(self._contents(fd))))

    def bounce(self, number: int) -> bytes | None:
        """The whole paragraphs of bounce/N, perhaps none; None when there is no such file."""
        try:
            fd = self._disk.open_read(self._layout.path("bounce", number))
        except FileNotFoundError:
            return None
        try:
            return _whole_paragraphs(b"".join(self._contents(fd)))
        finally:
            close_quietly(self._disk, fd)

    def lock(self) -> int:
        """A descriptor that holds lock/sendmutex. BlockingIOError when somebody else holds it."""
        fd = self._disk.open(self._layout.lock("sendmutex"), os.O_WRONLY | os.O_CREAT, PRIVATE_MODE)
        try:
            self._disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            close_quietly(self._disk, fd)
            raise
        return fd

    def collect_garbage(self, now: float, busy: Container[int]) -> None:
        """Remove what crashed accepts left behind (§5.4): mess, intd and pid files that are old enough.

        Messages in `busy` are left alone. A file that resists does not keep the others; its error is raised at last.
        """
        oldest = now - OSSIFIED
        trouble = None
        for part in range(self._layout.split):
            for number in self.numbers("mess", part):
                try:
                    self._collect(number, oldest, busy)
                except OSError as error:
                    trouble = error
        pid = self._layout.room("pid")
        for name in self._disk.list_directory(pid):
            try:
                self._collect_temporary(f"{pid}/{name}", oldest)
            except OSError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _collect(self, number: int, oldest: float, busy: Container[int]) -> None:
        path = self._layout.path("mess", number)
        try:
            if number in busy or self._disk.stat(path).st_atime >= oldest:
                return
            # As long as this is open, no new message gets the number, whoever removes the file meanwhile.
            fd = self._disk.open_read(path)
        except FileNotFoundError:
            return
        try:
            # todo before info: a message that is preprocessed just now has one of them at any time.
            if (
                self._disk.fstat(fd).st_atime < oldest
                and not self._exists("todo", number)
                and not self._exists("info", number)
                and number not in busy
            ):
                self.remove("intd", number)
                self.remove("mess", number)
        finally:
            close_quietly(self._disk, fd)

    def _collect_temporary(self, path: str, oldest: float) -> None:
        try:
            if self._disk.stat(path).st_atime < oldest:
                self._disk.unlink(path)
        except FileNotFoundError:
            return

    def _exists(self, room: str, number: int) -> bool:
        try:
            self._disk.stat(self._layout.path(room, number))
        except FileNotFoundError:
            return False
        return True

    def _contents(self, fd: int) -> Iterator[bytes]:
        while block := self._disk.read(fd, _BLOCK_SIZE):
            yield block


def _whole_paragraphs(text: bytes) -> bytes:
    """What comes before a paragraph that a crash has cut off; each ends with an empty line (§9.10)."""
    end = text.rfind(b"\n\n")
    return text[: end + 2] if end != -1 else b""


class Scan:
    """A walk through what was preprocessed in earlier lives of the queue manager (§9.1).

    Call :meth:`step` until `ended`; it may be called in any thread, but not twice at once. When it raises OSError,
    nothing is lost: that directory is looked at again after the others. Messages that have a todo file when the scan
    begins, and those in `known` (which may grow meanwhile), are left out.
    """

    def __init__(self, store: Store, split: int, known: Container[int], batch: int) -> None:
        self.ended = False
        self._store = store
        self._known = known
        self._batch = batch
        self._parts = deque(range(split))
        self._todo: set[int] | None = None
        self._waiting: list[int] = []
        self._channels: dict[str, set[int]] = {}

    def step(self) -> list[QueuedMessage]:
        """The next messages, at most as many as a batch; none at the end."""
        if self._todo is None:
            self._todo = set(self._store.numbers("todo"))
        while not self._waiting:
            if not self._parts:
                self.ended = True
                return []
            part = self._parts.popleft()
            try:
                self._channels = {channel: set(self._store.numbers(channel, part)) for channel in CHANNELS}
                self._waiting = self._store.numbers("info", part)
            except OSError:
                self._parts.append(part)
                raise
        batch = self._waiting[-self._batch :]
        del self._waiting[-self._batch :]
        return [
            QueuedMessage(number, self._due(number))
            for number in batch
            if number not in self._todo and number not in self._known
        ]

    def _due(self, number: int) -> dict[str, float]:
        return {channel: self._due_on(number, channel) for channel, held in self._channels.items() if number in held}

    def _due_on(self, number: int, channel: str) -> float:
        try:
            return self._store.due(number, channel)
        except OSError:
            # One damaged file must not keep the others from being found. Due at once: whoever opens it will complain.
            return 0
