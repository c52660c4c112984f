"""From the journal into qmail's files: what is not done within seconds becomes mess, info, local, remote (design §4).

Blocking, for a thread. Every step may be done again after a crash: as long as the journal holds a message, what the
files hold of it counts for nothing and is made anew. The caller ends the journal's copy, durably, before it lets
anybody work with the files.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from qtwist.files.disk import Disk
from qtwist.queue.journal import Entry
from qtwist.queue.layout import PRIVATE_MODE, TODO_MODE, Layout
from qtwist.queue.records import format_info, parse_envelope
from qtwist.queue.sync import BatchSync, close_quietly, unlink_if_there

_ROOMS = ("intd", "todo", "info", "local", "remote", "bounce")


def settle(
    disk: Disk, layout: Layout, roots: tuple[str, ...], reserved: str, entries: Sequence[Entry]
) -> dict[int, OSError]:
    """Write messages into the queue's files, durably; why some could not be, by number.

    `reserved` is the directory with the file that gives each its number (:class:`~qtwist.queue.numbers.Numbers`): it
    becomes mess/s/N. Messages that were preprocessed become state S4, others S3 (spec/qmail.md §5.3).
    """
    failed: dict[int, OSError] = {}
    # What decides that a message is there (info/N, todo/N) comes when all the rest is durable.
    for write in (_write_contents, _write_head):
        left = [entry for entry in entries if entry.number not in failed]
        sync = BatchSync.begin(disk, roots, len(left))
        for entry in left:
            try:
                write(disk, layout, reserved, entry, sync)
            except OSError as error:
                failed[entry.number] = error
        sync.sync()
        for entry in left:
            failure = sync.failure(entry.number)
            if failure is not None:
                failed.setdefault(entry.number, failure)
    if any(entry.channels is None for entry in entries):
        disk.fsync_directory(layout.room("todo"))
    return failed


def unsettle(disk: Disk, layout: Layout, number: int) -> None:
    """Remove what was made of a message that could not be settled."""
    for room in (*_ROOMS[::-1], "mess"):
        unlink_if_there(disk, layout.path(room, number))


def _write_contents(disk: Disk, layout: Layout, reserved: str, entry: Entry, sync: BatchSync) -> None:
    number = entry.number
    for room in _ROOMS:
        unlink_if_there(disk, layout.path(room, number))
    path = f"{reserved}/{number}"
    fd = disk.open(path, os.O_WRONLY)
    try:
        if entry.in_file is None:
            disk.truncate(fd, 0)
            disk.write_all(fd, entry.message)
        try:
            disk.link(path, layout.path("mess", number))
        except FileExistsError:
            if disk.stat(layout.path("mess", number)).st_ino != number:
                raise  # somebody else's message, in a copy of a queue
    except OSError:
        close_quietly(disk, fd)
        raise
    sync.add(number, fd, layout.holder("mess", number))
    if entry.channels is None:
        _create(disk, layout, "intd", number, TODO_MODE, entry.envelope, entry.birth, sync)
        return
    for channel, records in entry.channels.items():
        _create(disk, layout, channel, number, PRIVATE_MODE, bytes(records), entry.due[channel], sync)
    if entry.bounce is not None:
        _create(disk, layout, "bounce", number, PRIVATE_MODE, bytes(entry.bounce), None, sync)


def _write_head(disk: Disk, layout: Layout, reserved: str, entry: Entry, sync: BatchSync) -> None:
    number = entry.number
    if entry.channels is None:
        disk.link(layout.path("intd", number), layout.path("todo", number))
        return
    sender = parse_envelope([entry.envelope], "the journal", lambda _: None).sender
    _create(disk, layout, "info", number, PRIVATE_MODE, format_info(sender) + entry.asked, entry.birth, sync)


def _create(
    disk: Disk,
    layout: Layout,
    room: str,
    number: int,
    mode: int,
    contents: bytes,
    mtime: float | None,
    sync: BatchSync,
) -> None:
    path = layout.path(room, number)
    fd = disk.create_exclusive(path, mode)
    try:
        disk.write_all(fd, contents)
        if mtime is not None:
            disk.utime(path, mtime)
    except OSError:
        close_quietly(disk, fd)
        raise
    # As in S4 intd/N may be missing (§5.3), its name need not last.
    sync.add(number, fd, layout.holder(room, number) if room != "intd" else None)
