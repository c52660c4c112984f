"""Delivery to an mbox file: lock, append with quoted From lines, sync, or leave it as it was (spec/qmail.md §14.1)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator

from qtwist.files.copying import message_blocks
from qtwist.files.disk import Disk

#: How long to wait for the lock, in seconds.
LOCK_WAIT = 30.0

# The wait between two attempts grows from the first to the second value, in seconds.
_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05

_BUSY_ERRNOS = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})

_FROM = re.compile(rb"^(>*)From ", re.MULTILINE)
_UNDECIDED = re.compile(rb"(>*)(F(?:r(?:o(?:m)?)?)?)?\Z")


class MboxError(Exception):
    """The message was not delivered; always temporary. `text` (no LF) is for the report."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


def quote_from(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """`blocks` (a message, cut anywhere) with ``>`` put before every line that is ``>``s and ``From ``, a last line
    without LF ended, and one empty line after all (mboxrd).

    The new ``>`` goes behind those that are there, which comes to the same, so that a line of any length needs no
    more memory than a block.
    """
    at_start = True  # what comes next continues a line that so far is nothing but ">"s
    carry = b""  # "F", "Fr", "Fro" or "From" from the end of the last block, when at_start
    last = b"\n"
    for block in blocks:
        data = carry + block if carry else block
        carry = b""
        if not data:
            continue
        head = b""
        if not at_start:
            end = data.find(b"\n") + 1
            if not end:
                yield data
                last = data[-1:]
                continue
            head, data = data[:end], data[end:]
        tail = data.rfind(b"\n") + 1
        undecided = _UNDECIDED.match(data, tail)
        at_start = undecided is not None
        if undecided is not None and undecided[2]:
            carry = undecided[2]
            data = data[: -len(carry)]
        if data.startswith((b"From ", b">")) or b"\nFrom " in data or b">From " in data:
            data = _FROM.sub(rb"\1>From ", data)
        if head or data:
            data = head + data if head else data
            last = data[-1:]
            yield data
    end_of_line = b"" if not carry and last == b"\n" else b"\n"
    yield carry + end_of_line + b"\n"


def deliver_to_mbox(
    disk: Disk,
    path: bytes,
    fd: int,
    prefix: bytes,
    *,
    wait: float = LOCK_WAIT,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Append `prefix` (From line included) and the whole message `fd` to the mbox `path`, a new one with mode 0600.

    On return it is on disk. MboxError when it was not appended; what was written then is cut off again, if the lock
    was to be had. Waits `wait` seconds for the lock at most; a file that cannot be locked at all is written unlocked.
    The offset of `fd` stays as it is.
    """
    try:
        mbox = disk.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        raise MboxError(b"Unable to open " + path + b": " + _reason(error) + b". (#4.2.1)") from error
    try:
        try:
            locked = _lock(disk, mbox, path, wait, clock, pause)
            _append(disk, mbox, path, fd, prefix, locked)
        finally:
            disk.close(mbox)
    except OSError as error:
        raise MboxError(b"Unable to deliver to " + path + b": " + _reason(error) + b". (#4.3.0)") from error


def _append(disk: Disk, mbox: int, path: bytes, fd: int, prefix: bytes, locked: bool) -> None:
    size = disk.fstat(mbox).st_size
    try:
        if size == 0:
            # The file may be new, and then its directory entry has to survive, too. Before anything is in it: were we
            # killed in between, the next delivery would not know.
            disk.fsync_directory(os.path.dirname(path))
        pending = _gap(disk, path, size) + prefix
        for block in quote_from(message_blocks(disk, fd)):
            disk.write_all(mbox, pending + block if pending else block)
            pending = b""
        disk.fsync(mbox)
    except OSError:
        if locked:
            disk.truncate(mbox, size)
        raise


def _gap(disk: Disk, path: bytes, size: int) -> bytes:
    """What has to come first so that a From line is seen as one: nothing, unless a crash has left half a message."""
    if size == 0:
        return b""
    try:
        reader = disk.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""  # not everybody who may write may read
    try:
        end = disk.pread(reader, 2, max(0, size - 2))
    finally:
        disk.close(reader)
    if end == b"\n\n":
        return b""
    return b"\n" if end.endswith(b"\n") else b"\n\n"


def _lock(
    disk: Disk, mbox: int, path: bytes, wait: float, clock: Callable[[], float], pause: Callable[[float], None]
) -> bool:
    """Whether the lock could be had. It is asked for again and again: nothing can interrupt a thread that waits."""
    deadline = clock() + wait
    length = _FIRST_PAUSE
    while True:
        try:
            disk.flock(mbox, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _BUSY_ERRNOS:
                return False
        if clock() >= deadline:
            raise MboxError(b"Unable to lock " + path + b": another program has it. (#4.3.0)")
        pause(length)
        length = min(2 * length, _LONGEST_PAUSE)


def _reason(error: OSError) -> bytes:
    return (error.strerror or str(error)).encode("utf-8", "replace")
