"""Numbers for messages that have no file yet: inode numbers, held by empty files (spec/qmail.md §5.1).

A message's number is the inode number of its mess file, which nobody else can have as long as the file is there. A
message in the journal has no mess file; an empty file in queue/journal/, called by its own inode number, holds the
number for it, and becomes its mess file when it is settled. Most messages never are, and the number serves the next.
That of a large message is not empty, but has its text (:mod:`qtwist.queue.large`), and serves no other.

Blocking; :meth:`Numbers.take` and :meth:`Numbers.give_back` are not, and may be called beside :meth:`Numbers.reserve`.
"""

from __future__ import annotations

from collections import deque

from qtwist.files.disk import Disk
from qtwist.queue.layout import MESS_MODE, Layout, message_number
from qtwist.queue.sync import close_quietly, unlink_if_there

#: How many numbers are reserved at a time.
RESERVE = 64


class Numbers:
    """The numbers that are free for use, of the queue `layout`; `directory` has the files, `batch` are made at once."""

    def __init__(self, disk: Disk, layout: Layout, directory: str, batch: int = RESERVE) -> None:
        self.batch = batch
        self._disk = disk
        self._layout = layout
        self._directory = directory
        self._free: deque[int] = deque()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._free)

    def find(self, held: frozenset[int]) -> None:
        """Take in what was reserved in earlier lives. A file that is a message by now, or of another number (in a copy
        of a queue), loses its name here; those in `held` are left alone."""
        for name in self._disk.list_directory(self._directory):
            number = message_number(name)
            if number is None:
                if name.startswith("new."):
                    unlink_if_there(self._disk, f"{self._directory}/{name}")
                continue
            if number in held:
                continue
            status = self._disk.stat(f"{self._directory}/{name}")
            if status.st_ino == number and status.st_size == 0:
                if not self._is_haunted(number):
                    self._free.append(number)
            else:
                self._disk.unlink(f"{self._directory}/{name}")

    def reserve(self) -> None:
        """Make more, durably."""
        found = []
        for _ in range(self.batch):
            self._sequence += 1
            path = f"{self._directory}/new.{self._sequence}"
            fd = self._disk.create_exclusive(path, MESS_MODE)
            try:
                number = self._disk.fstat(fd).st_ino
            finally:
                close_quietly(self._disk, fd)
            if self._exists(number):
                continue  # in a copy of a queue: it may be a message, which the journal has under that number
            self._disk.rename(path, f"{self._directory}/{number}")
            if not self._is_haunted(number):
                found.append(number)
        self._disk.fsync_directory(self._directory)
        self._free.extend(found)

    def _is_haunted(self, number: int) -> bool:
        """Whether the queue has something of this number: the envelope of a lost message, or what a crash has brought
        back. The file that was made keeps everybody from using it (compare Acceptor)."""
        for room in ("mess", "todo", "info"):
            try:
                self._disk.stat(self._layout.path(room, number))
            except FileNotFoundError:
                continue
            return True
        return False

    def _exists(self, number: int) -> bool:
        try:
            self._disk.stat(f"{self._directory}/{number}")
        except FileNotFoundError:
            return False
        return True

    def holds(self, number: int) -> bool:
        """Whether there is a file for this number. There is none in a copy of a queue."""
        try:
            return self._disk.stat(f"{self._directory}/{number}").st_ino == number
        except FileNotFoundError:
            return False

    def take(self) -> int | None:
        """A number for a new message; None when none is left."""
        return self._free.popleft() if self._free else None

    def give_back(self, number: int) -> None:
        """The message has ended without a file."""
        self._free.append(number)

    def settled(self, number: int) -> None:
        """The message has its mess file: the number is free when that is removed, not before."""
        unlink_if_there(self._disk, f"{self._directory}/{number}")
