"""Whether anything has changed in a directory, asked with one system call (Linux's inotify)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from qtwist.files.disk import filesystem_of

#: Where all changes go through this system, so that it hears of them.
_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "tmpfs", "overlay"})

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _IGNORED = 0x400, 0x800, 0x2000, 0x8000
_ONLY_DIRECTORY = 0x0100_0000
_WANTED = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_LOST = _DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED

_EVENT = struct.Struct("iIII")  # watch, mask, cookie, octets of the name
_BUFFER = 65536


class DirectoryWatch:
    """Counts the changes of a directory and of the files in it, as far as they are made through it.

    A file that is a link, or has another name elsewhere, can change unnoticed. OSError where nothing can be watched:
    on other systems, and on file systems that others may write to.
    """

    def __init__(self, path: str) -> None:
        status = os.stat(path)
        if filesystem_of(status.st_dev) not in _FILESYSTEMS:
            raise OSError(errno.EOPNOTSUPP, "changes may come from elsewhere", path)
        self.device, self.inode = status.st_dev, status.st_ino
        self._version: int | None = 0
        library = ctypes.CDLL(None, use_errno=True)
        try:
            self._fd: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError as error:
            raise OSError(errno.ENOSYS, "no inotify", path) from error
        if self._fd < 0:
            raise _failure(path)
        if library.inotify_add_watch(self._fd, os.fsencode(path), _WANTED | _ONLY_DIRECTORY) < 0:
            failure = _failure(path)
            self.close()
            raise failure

    def version(self) -> int | None:
        """A number that is another one whenever there was a change since it was asked for; None when the directory is
        no longer where it was, so that nothing is known any more."""
        try:
            events = os.read(self._fd, _BUFFER)
        except BlockingIOError:
            return self._version
        except OSError:
            self._version = None
            return None
        if self._version is not None:
            self._version = None if _is_lost(events) else self._version + 1
        return self._version

    def close(self) -> None:
        """Watch no longer."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._version = None

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def _is_lost(events: bytes) -> bool:
    """Whether the directory itself went away."""
    offset = 0
    while offset + _EVENT.size <= len(events):
        _, mask, _, length = _EVENT.unpack_from(events, offset)
        if mask & _LOST:
            return True
        offset += _EVENT.size + length
    return False


def _failure(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
