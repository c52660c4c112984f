"""What a crash has left in the journal becomes files, before anybody works with the queue. Blocking."""

from __future__ import annotations

import contextlib

from qtwist.files.disk import Disk
from qtwist.queue.journal import KEPT, Entry, Journal, Lost, replay
from qtwist.queue.large import copy, is_whole
from qtwist.queue.layout import Layout
from qtwist.queue.numbers import Numbers
from qtwist.queue.settle import settle
from qtwist.queue.sync import filesystem_roots

#: How many messages are settled together.
BATCH = 200


class Unrecoverable(OSError):
    """Messages are in the journal that cannot become files: the queue must not be used before they can."""


def journal_directory(layout: Layout) -> str:
    """Where the journal of a queue is."""
    return f"{layout.directory}/journal"


def recover(disk: Disk, layout: Layout, journal: Journal, numbers: Numbers) -> list[tuple[int, int]]:
    """Settle what is in the journal, and begin it anew, empty; under the queue's lock.

    What a disk has lost of it is told by ``journal.damage``; what stands behind that is recovered, too.

    Returns (number in the journal, number now) for each message that there was: in a copy of a queue, the files that
    hold the numbers are not what they were. Unrecoverable, or another OSError where the journal was empty and cannot be
    begun.
    """
    directory = journal_directory(layout)
    with contextlib.suppress(FileExistsError):
        disk.make_directory(directory, 0o700)
    # Though it was there: whoever made it may have been killed before this.
    disk.fsync_directory(layout.directory)
    try:
        found = journal.read()
        left = list(replay(found, with_gaps=bool(journal.damage)).values())
        left = _without_lost(disk, directory, journal, left)
    except (OSError, ValueError) as error:
        raise Unrecoverable(0, f"the journal cannot be read: {error}", directory) from error
    if not left:
        numbers.find(frozenset())
        journal.open()
        return []
    try:
        return _settle_all(disk, layout, journal, numbers, left)
    except OSError as error:
        text = f"{len(left)} messages of the journal cannot become files: {error}"
        raise Unrecoverable(error.errno or 0, text, directory) from error


def _without_lost(disk: Disk, directory: str, journal: Journal, left: list[Entry]) -> list[Entry]:
    """The messages without those whose file is gone or cut off, which a crash cannot do."""
    whole = []
    for entry in left:
        if entry.in_file is None or is_whole(disk, directory, entry.number, entry.in_file):
            whole.append(entry)
            continue
        path = f"{directory}/{entry.number}"
        journal.damage.append(Lost(path))
        with contextlib.suppress(FileNotFoundError):
            disk.rename(path, path + KEPT)
    return whole


def _settle_all(
    disk: Disk, layout: Layout, journal: Journal, numbers: Numbers, left: list[Entry]
) -> list[tuple[int, int]]:
    roots = filesystem_roots(disk, layout)
    before = [entry.number for entry in left]
    numbers.find(frozenset(before))
    for entry in left:
        if not numbers.holds(entry.number):
            number = numbers.take()
            while number is None:
                numbers.reserve()
                number = numbers.take()
            if entry.in_file is not None:
                copy(disk, journal_directory(layout), entry.number, number)
            entry.number = number
    for start in range(0, len(left), BATCH):
        batch = left[start : start + BATCH]
        for error in settle(disk, layout, roots, journal_directory(layout), batch).values():
            raise error
    journal.open()  # from here on, the files are what counts
    for number in {*before, *(entry.number for entry in left)}:
        numbers.settled(number)
    return [(old, entry.number) for old, entry in zip(before, left, strict=True)]
