"""Making a batch of new files durable, directory entries included, with as few flushes as may be."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from qtwist.files.disk import Disk
from qtwist.queue.layout import Layout

#: Up to so many messages, it is quicker to sync each file and directory than the file system (measured: ext4).
SMALL_BATCH = 1

#: How many messages may be synced together: with one flush for all, or with descriptors held open for each.
SHARED_LIMIT = 500
SEPARATE_LIMIT = 50


def batch_limit(disk: Disk) -> int:
    """The most messages that one :class:`BatchSync` takes."""
    return SHARED_LIMIT if disk.can_sync_filesystem else SEPARATE_LIMIT


def filesystem_roots(disk: Disk, layout: Layout) -> tuple[str, ...]:
    """One directory on each file system that the queue lies on; in general there is but one."""
    rooms = [layout.room(room) for room in ("mess", "todo", "info", "local", "remote")]
    return tuple({disk.stat(path).st_dev: path for path in reversed(rooms)}.values())


@attrs.define
class BatchSync:
    """The files of a batch on their way to the platter.

    Make it before anything is written; :meth:`add` every complete file; then :meth:`sync`. Afterwards :meth:`failure`
    tells whether a file and its entry are durable. What fails in a file or directory of its own fails those messages
    alone; what fails in a flush that all share fails all.
    """

    _disk: Disk
    _flushes: list[int]  # one open directory per file system, when the batch shares a flush
    _shared: bool
    _files: list[tuple[object, int, str | None]] = attrs.field(factory=list)
    _failures: dict[object, OSError] = attrs.field(factory=dict)
    _failure_of_all: OSError | None = None

    @classmethod
    def begin(cls, disk: Disk, roots: Iterable[str], messages: int) -> BatchSync:
        """For so many messages. OSError when the disk cannot even be opened."""
        shared = disk.can_sync_filesystem and messages > SMALL_BATCH
        flushes: list[int] = []
        try:
            # Opened first: an error that strikes a file which is written from now on is reported to these.
            for root in roots if shared else ():
                flushes.append(disk.open_directory(root))
        except OSError:
            for fd in flushes:
                close_quietly(disk, fd)
            raise
        return cls(disk, flushes, shared)

    def add(self, message: object, fd: int, directory: str | None) -> None:
        """`fd` is complete, and its entry in `directory` is made; it belongs to this object from now on.

        None for an entry that need not survive.
        """
        if self._shared:
            close_quietly(self._disk, fd)
            return
        self._files.append((message, fd, directory))

    def sync(self) -> None:
        """Flush. Never raises; see :meth:`failure`."""
        try:
            for fd in self._flushes:
                self._disk.sync_filesystem(fd)
        except OSError as error:
            # A file system that failed once cannot be asked again: what it lost, it has forgotten.
            self._failure_of_all = error
        directories: dict[str, OSError | None] = {}
        for message, fd, directory in self._files:
            try:
                self._disk.fsync(fd)
            except OSError as error:
                self._failures.setdefault(message, error)
            if directory is None:
                continue
            if directory not in directories:
                directories[directory] = self._sync_directory(directory)
            failed = directories[directory]
            if failed is not None:
                self._failures.setdefault(message, failed)
        self.close()

    def failure(self, message: object) -> OSError | None:
        """Why `message` cannot be trusted; None when it is durable."""
        return self._failure_of_all or self._failures.get(message)

    def close(self) -> None:
        """Close what is open still; what was added but not synced is not durable."""
        for fd in self._flushes:
            close_quietly(self._disk, fd)
        for _, fd, _ in self._files:
            close_quietly(self._disk, fd)
        self._flushes = []
        self._files = []

    def _sync_directory(self, directory: str) -> OSError | None:
        try:
            self._disk.fsync_directory(directory)
        except OSError as error:
            return error
        return None


def close_quietly(disk: Disk, fd: int) -> None:
    """Close a descriptor of which nothing more is wanted: what its file must hold is proved by a sync, not by this."""
    try:
        disk.close(fd)
    except OSError:
        return


def unlink_if_there(disk: Disk, path: str) -> None:
    """Remove a name; none is fine, too, as a step is done again after a crash."""
    try:
        disk.unlink(path)
    except FileNotFoundError:
        return
