"""How large messages are on the wire, without reading them: a number in the file's name, and a cache in the maildir.

The file size is not enough: each LF is two octets on the wire, so every line has to be counted once.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from array import array
from collections.abc import Iterable

#: The file in the maildir, beside new/, cur/ and tmp/, where no maildir software looks for messages or folders.
NAME = b"qtwist-sizes"

_HEAD = b"qtwist sizes 1 " + sys.byteorder.encode("ascii") + b"\n"
_FIELDS = 4  # inode number, size, mtime in nanoseconds, wire size; 8 octets each
_LARGEST = 64 << 20
# Writing is worth it from this many pages counted without the cache, or as many as the cache has of its own.
_WORTH = 256
_IN_NAME = re.compile(rb",W=([0-9]{1,18})(?=[,:]|\Z)")


def wire_size_in_name(name: bytes, size: int) -> int | None:
    """The wire size that Dovecot writes into names, ``,W=1234``; None when there is none that can be true.

    It equals the file size where a file is stored with CRLF line ends; then our count is another one.
    """
    found = _IN_NAME.search(name) if b",W=" in name else None
    if found is None:
        return None
    wire = int(found[1])
    return wire if size < wire <= 2 * size + 2 else None


class SizeCache:
    """Wire sizes by inode number, believed only where size and time of the file are still the same.

    Nothing depends on it: without it, or with a broken one, the messages are read again.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int]] = {}
        self._used: array[int] = array("q")
        self._loaded = 0

    @classmethod
    def load(cls, maildir: bytes) -> SizeCache:
        """The cache of a maildir; an empty one when there is none that can be read."""
        cache = cls()
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(maildir, NAME), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode) and status.st_size <= _LARGEST:
                    cache._parse(file.read(_LARGEST))
        return cache

    def _parse(self, text: bytes) -> None:
        fields: array[int] = array("q")
        if not text.startswith(_HEAD) or (len(text) - len(_HEAD)) % (_FIELDS * fields.itemsize):
            return
        fields.frombytes(text[len(_HEAD) :])
        self._loaded = len(text)
        self._known = dict(zip(fields[0::4], zip(fields[1::4], fields[2::4], fields[3::4], strict=True), strict=True))

    def find(self, inode: int, size: int, mtime_ns: int) -> int | None:
        """The wire size of this file, None when it is not known."""
        known = self._known.get(inode)
        if known is None or known[0] != size or known[1] != mtime_ns or not size <= known[2] <= 2 * size + 2:
            return None
        self._used.extend((inode, size, mtime_ns, known[2]))
        return known[2]

    def find_all(self, inodes: Iterable[int], sizes: Iterable[int], mtimes: Iterable[int]) -> array[int]:
        """The same for many files, -1 where it is not known."""
        known = self._known
        found: array[int] = array("q")
        used: list[int] = []
        nothing = (-1, -1, -1)
        for inode, size, mtime_ns in zip(inodes, sizes, mtimes, strict=True):
            kept, time, wire = known.get(inode, nothing)
            if kept == size and time == mtime_ns and size <= wire <= 2 * size + 2:
                found.append(wire)
                used += (inode, size, mtime_ns, wire)
            else:
                found.append(-1)
        self._used.extend(used)
        return found

    def add(self, inode: int, size: int, mtime_ns: int, wire: int) -> None:
        """Remember what was counted."""
        self._used.extend((inode, size, mtime_ns, wire))

    def save_if_worth(self, maildir: bytes, counted: int) -> None:
        """Write the cache anew with the files that were asked for, when counting (in pages of 4 KiB) took more than
        that will. What goes wrong is of no importance."""
        if counted < max(_WORTH, self._loaded // 4096):
            return
        temporary = os.path.join(maildir, b"tmp", b"%s.%d" % (NAME, os.getpid()))
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(_HEAD)
                self._used.tofile(file)
            os.rename(temporary, os.path.join(maildir, NAME))
