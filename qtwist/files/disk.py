"""The seam to the disk: every file operation of the queue, of maildirs and of mboxes goes through one object.

The contract that a :class:`Disk` offers is that of a POSIX file system and no more: what was not synced may be gone
after a crash, a file's directory entry is synced apart from the file, and any call may fail with OSError. A disk of
the tests forgets, reorders and fails on purpose; :class:`RealDisk` is the operating system.

Without Twisted: short-lived programs import this module, too.
"""

from __future__ import annotations

import fcntl
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable

Path = str | bytes
"""A path. The queue uses str throughout; maildirs and mboxes, which come from bytes, use bytes."""


class Disk(ABC):
    """What the queue and the mailboxes ask of a disk.

    All methods block, raise OSError, and may be called from any thread. A descriptor is closed in programs that are
    run, and is not inherited. Modes are given in full; the process's umask is expected to be 022 or less.
    """

    #: Whether :meth:`sync_filesystem` can be used and tells of errors. If not, sync every file and directory.
    can_sync_filesystem: bool = False

    @abstractmethod
    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        """A descriptor as os.open gives it, close-on-exec."""

    def open_read(self, path: Path) -> int:
        """A descriptor for reading."""
        return self.open(path, os.O_RDONLY)

    def create_exclusive(self, path: Path, mode: int) -> int:
        """A descriptor for reading and writing of a new, empty file. FileExistsError if there is one (or a link)."""
        return self.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def open_directory(self, path: Path) -> int:
        """A descriptor of a directory, to sync with."""
        return self.open(path, os.O_RDONLY | os.O_DIRECTORY)

    @abstractmethod
    def close(self, fd: int) -> None:
        """Close a descriptor. It is gone even when this raises."""

    @abstractmethod
    def read(self, fd: int, size: int) -> bytes:
        """At most `size` octets from where the descriptor stands; empty at the end."""

    @abstractmethod
    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """At most `size` octets from `offset`; empty at the end."""

    @abstractmethod
    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of `data`, and say how many octets."""

    def write_all(self, fd: int, data: bytes) -> None:
        """Write the whole of `data`, however little the disk takes at a time."""
        written = self.write(fd, data)
        if written < len(data):
            rest = memoryview(data)[written:]
            while rest:
                rest = rest[self.write(fd, rest) :]

    @abstractmethod
    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write some of `data` at `offset`, and say how many octets."""

    @abstractmethod
    def truncate(self, fd: int, size: int) -> None:
        """Cut the file off at `size` octets."""

    @abstractmethod
    def fstat(self, fd: int) -> os.stat_result:
        """Size, times and inode number of an open file."""

    @abstractmethod
    def stat(self, path: Path) -> os.stat_result:
        """Size, times and inode number of a file; symbolic links are followed."""

    @abstractmethod
    def utime(self, path: Path, mtime: float) -> None:
        """Set both times of a file (seconds since the epoch)."""

    @abstractmethod
    def link(self, source: Path, target: Path) -> None:
        """A second name for a file. FileExistsError if `target` is taken."""

    @abstractmethod
    def unlink(self, path: Path) -> None:
        """Remove a name. FileNotFoundError if there is none."""

    @abstractmethod
    def rename(self, source: Path, target: Path) -> None:
        """Move a name, over `target` if there is one."""

    @abstractmethod
    def make_directory(self, path: Path, mode: int) -> None:
        """A new directory with exactly this mode. FileExistsError if the name is taken."""

    @abstractmethod
    def make_fifo(self, path: Path, mode: int) -> None:
        """A new named pipe with exactly this mode. FileExistsError if the name is taken."""

    @abstractmethod
    def list_directory(self, path: Path) -> list[str]:
        """The names in a directory, in no order."""

    @abstractmethod
    def flock(self, fd: int, operation: int) -> None:
        """fcntl.flock. BlockingIOError with LOCK_NB when somebody else has the lock."""

    @abstractmethod
    def fsync(self, fd: int) -> None:
        """Make the contents of a file, or of an open directory, survive a crash.

        After an error nothing may be assumed of what was written before, and a later success proves nothing.
        """

    def sync_data(self, fd: int) -> None:
        """Make the contents of a file whose size has not changed survive a crash; its times need not."""
        self.fsync(fd)

    def fsync_directory(self, path: Path) -> None:
        """Make the entries of a directory survive a crash."""
        fd = self.open_directory(path)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)

    @abstractmethod
    def sync_filesystem(self, fd: int) -> None:
        """Make all files and directories of the file system of `fd` survive a crash.

        Only where `can_sync_filesystem`. An error is reported to every descriptor that was opened before what failed
        was written: open one first, write, then call this with it.
        """

    def can_share_sync(self, fd: int) -> bool:
        """Whether :meth:`sync_filesystem` does for this file what :meth:`fsync` would."""
        return self.can_sync_filesystem


#: Where syncfs is as good as fsync; behind FUSE, say, it does not reach the file system that the files are on.
_LOCAL_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs"})


class RealDisk(Disk):
    """The operating system's file systems."""

    def __init__(self) -> None:
        # Before Linux 5.8 syncfs succeeds even if blocks could not be written.
        self.can_sync_filesystem = sys.platform == "linux" and _linux_release() >= (5, 8)
        self._syncfs: Callable[[int], int] | None = None
        self._shared: dict[int, bool] = {}  # by device: can_share_sync

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def stat(self, path: Path) -> os.stat_result:
        return os.stat(path)

    def utime(self, path: Path, mtime: float) -> None:
        os.utime(path, (mtime, mtime))

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def make_directory(self, path: Path, mode: int) -> None:
        os.mkdir(path, mode)
        os.chmod(path, mode)

    def make_fifo(self, path: Path, mode: int) -> None:
        os.mkfifo(path, mode)
        os.chmod(path, mode)

    def list_directory(self, path: Path) -> list[str]:
        return [os.fsdecode(name) for name in os.listdir(path)]

    def flock(self, fd: int, operation: int) -> None:
        fcntl.flock(fd, operation)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        getattr(os, "fdatasync", os.fsync)(fd)

    def can_share_sync(self, fd: int) -> bool:
        if not self.can_sync_filesystem:
            return False
        device = os.fstat(fd).st_dev
        if device not in self._shared:
            self._shared[device] = filesystem_of(device) in _LOCAL_FILESYSTEMS
        return self._shared[device]

    def sync_filesystem(self, fd: int) -> None:
        # ctypes is slow to import, and only the queue comes here.
        import ctypes

        if self._syncfs is None:
            self._syncfs = ctypes.CDLL(None, use_errno=True).syncfs
        if self._syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def filesystem_of(device: int) -> str | None:
    """The type of a mounted file system, None when the system does not tell."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                mount, _, about = line.partition(b" - ")
                if mount.split(b" ", 3)[2] == wanted:
                    return about.split(b" ", 1)[0].decode("ascii", "replace")
    except (OSError, IndexError):
        return None
    return None


def _linux_release() -> tuple[int, ...]:
    numbers = os.uname().release.split(".")[:2]
    return tuple(int(number) for number in numbers) if all(number.isdigit() for number in numbers) else (0,)
