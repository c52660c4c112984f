"""A disk in memory that may forget at a crash whatever a real one may forget.

What the model assumes, and why:

*Contents.* What was written since the last successful fsync of the file (or sync of the file system) may be gone, be
there up to any octet, or be there in part: single blocks of 512 or 4096 octets may be lost, and read as zeros where the
file has grown; marks written in place survive or not each for itself. What is overwritten is torn between sectors of
512 octets only, as disks write these whole. sync_data keeps nothing of a new size. The size may have grown before the
data. This is what delayed allocation in ext4 and xfs can leave behind, and more than ext4's data=ordered does.

*Times.* The modification time is any of those that the file had since its last sync.

*Directory entries.* Syncing a file does not sync its name. Two kinds of file system are modelled:

- ``POSIX``: nothing orders operations on different names. Each name that was changed since its directory was synced
  shows any of the values it had since then, whatever other names show. A rename is two changes, so after a crash there
  may be both names, or one, or none. File systems with a log for each file (btrfs, ext4 with fast_commit, f2fs) and
  those without a journal come near to this.
- ``JOURNAL``: all changes to directories survive in the order in which they were made, up to some point at or after
  the last one that a sync asked for; syncing a file or directory asks for all changes before and including the last one
  that concerned it. This is ext4 and xfs as they are usually set up.

In both, an entry may survive when the contents do not (link and rename before data).

*Inodes.* With a journal, a number is used again as soon as nothing refers to it, the lowest one first; a new owner that
survives a crash proves that the names of the former one are gone, as ext4 and xfs commit both in order. On POSIX a
number that was freed is left alone until the next crash: btrfs numbers files anew each time, and ext4 without a journal
avoids what was freed in the last minutes, for the very reason that the old names may still be on the disk.

*Errors.* When fsync fails, what was to be written is not written by a later one either, which succeeds, though it can
be read until the crash: so do Linux's file systems, which take the pages for clean after that. A page of 4096 octets
that is written to again is written as a whole by the next sync, and one that was cut off is nobody's loss; so what
comes after a failure is as durable as ever. What a sync of the file system could not write, a sync by each descriptor
that is open then reports once more.

*Crash.* :meth:`SimulatedDisk.crash` is a power failure; :meth:`SimulatedDisk.kill` is the end of the processes alone,
after which everything can be read, but is no more durable than before.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import random
import stat
from collections.abc import Callable, Iterator

from qtwist.files.disk import Disk, Path

#: Descriptors of the simulation start here; smaller ones are the process's own.
FIRST_DESCRIPTOR = 1 << 20

_BLOCK = 4096
_SECTOR = 512
_FIRST_INODE = 11


class Model(enum.Enum):
    """How changes to directories survive."""

    POSIX = "posix"
    JOURNAL = "journal"


class Crash(BaseException):
    """The machine has stopped."""


class _Inode:
    """A file, directory or FIFO."""

    def __init__(self, number: int, generation: int, mode: int, now: float, path: str) -> None:
        self.number = number
        self.generation = generation
        self.mode = mode
        self.path = path  # the first one, for those who want to know what was synced
        self.links = 0
        self.opened = 0
        self.atime = now
        self.mtimes = [now]  # those since the last sync; the last one counts
        self.last_change = 0  # number of the last change to a directory that concerned this
        self.data = bytearray()
        self.synced = b""
        self.writes: list[tuple[int, bytes | None]] = []  # since the last sync; None truncates
        self.dirty: set[int] = set()  # pages that the next sync writes
        self.lost: set[int] = set()  # pages that a sync could not write, and no later one will unless they change again
        self.locks: dict[int, int] = {}
        # Of a directory:
        self.entries: dict[str, _Inode] = {}
        self.durable: dict[str, _Inode] = {}
        self.changes: dict[str, list[tuple[int, _Inode | None]]] = {}  # since it was last synced

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def change(self, offset: int, data: bytes | None) -> None:
        """Write, or cut off at `offset`."""
        self.writes.append((offset, data))
        before = len(self.data)
        _apply(self.data, offset, data)
        # A size that changes concerns the page at its edge.
        first, last = min(offset, before), max(offset + len(data or b""), offset + 1)
        pages = set(range(first // _BLOCK, (last - 1) // _BLOCK + 1))
        self.dirty |= pages
        self.lost -= pages
        if data is None:
            self.lost = {page for page in self.lost if page * _BLOCK < offset}
        if not self.data:
            self.writes[:] = [(0, None)]

    def fail(self) -> None:
        """A sync could not write what was to be written."""
        self.lost |= self.dirty
        self.dirty.clear()

    def keep(self, size: int) -> None:
        """A sync has written what there was to write of the first `size` octets."""
        synced = self.data[:size]
        for page in self.lost:
            start, end = page * _BLOCK, min(size, (page + 1) * _BLOCK)
            if start < end:
                synced[start:end] = self.synced[start:end].ljust(end - start, b"\0")
        self.synced = bytes(synced).ljust(size, b"\0")
        self.dirty.clear()

    def touch(self, when: float) -> None:
        if self.mtimes[-1] != when:
            self.mtimes.append(when)


class _Opened:
    """An open file description."""

    def __init__(self, inode: _Inode, flags: int) -> None:
        self.inode = inode
        self.flags = flags
        self.position = 0
        self.failed = False  # somebody else's sync has met an error of this file, and this one has not heard of it

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY


class SimulatedDisk(Disk):
    """A file system in memory. `now` gives the times of files.

    `watch` is called with the name of every operation before it is done: it may raise OSError (the disk fails) or
    :class:`Crash` (the machine stops here), or let others have their turn. `ignores` is asked with a sync's operation
    and the path of what is synced; if it says so, the sync does nothing: that is how tests take syncs out of the code.

    `full` is how many octets may still be written before ENOSPC, None for any number.
    """

    def __init__(
        self,
        now: Callable[[], float],
        model: Model = Model.POSIX,
        *,
        shared_sync: bool = True,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.can_sync_filesystem = shared_sync
        self.model = model
        self.watch = watch or (lambda _: None)
        self.ignores: Callable[[str, str], bool] = lambda _operation, _path: False
        self.full: int | None = None
        self.calls = 0
        self.dead = False
        self._now = now
        self._changes = 0
        self._committed = 0
        self._generation = 0
        self._numbers: set[int] = set()
        self._files: dict[int, _Opened] = {}
        self._next_descriptor = FIRST_DESCRIPTOR
        self._root = self._new_inode(stat.S_IFDIR | 0o755, "/")
        self._root.links = 1

    # Files.

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        self._enter("open")
        holder, name = self._holder(path)
        inode = holder.entries.get(name) if name else self._root
        if inode is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            inode = self._new_inode(stat.S_IFREG | mode, os.fsdecode(path))
            self._set(holder, name, inode)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        opened = _Opened(inode, flags)
        if inode.is_directory and (opened.writable or flags & os.O_CREAT):
            raise _error(errno.EISDIR, path)
        if flags & os.O_DIRECTORY and not inode.is_directory:
            raise _error(errno.ENOTDIR, path)
        if flags & os.O_TRUNC and opened.writable and inode.data:
            self._write(inode, 0, None)
        fd = self._next_descriptor
        self._next_descriptor += 1
        self._files[fd] = opened
        inode.opened += 1
        return fd

    def close(self, fd: int) -> None:
        if fd < FIRST_DESCRIPTOR:
            os.close(fd)
            return
        try:
            self._enter("close")
        finally:
            # Gone even when the disk says that it has failed; not when the machine has stopped.
            opened = None if self.dead else self._files.pop(fd, None)
            if opened is not None:
                opened.inode.opened -= 1
                opened.inode.locks.pop(fd, None)
                self._forget(opened.inode)
        if opened is None:
            raise _error(errno.EBADF)

    def read(self, fd: int, size: int) -> bytes:
        opened = self._opened("read", fd)
        data = self._read(opened, size, opened.position)
        opened.position += len(data)
        return data

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd < FIRST_DESCRIPTOR:
            return os.pread(fd, size, offset)
        return self._read(self._opened("pread", fd), size, offset)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        opened = self._opened("write", fd)
        if opened.flags & os.O_APPEND:
            opened.position = len(opened.inode.data)
        written = self._put(opened, data, opened.position)
        opened.position += written
        return written

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        opened = self._opened("pwrite", fd)
        return self._put(opened, data, len(opened.inode.data) if opened.flags & os.O_APPEND else offset)

    def truncate(self, fd: int, size: int) -> None:
        opened = self._opened("truncate", fd)
        if not opened.writable:
            raise _error(errno.EINVAL)
        self._write(opened.inode, size, None)

    def fstat(self, fd: int) -> os.stat_result:
        if fd < FIRST_DESCRIPTOR:
            return os.fstat(fd)
        return _status(self._opened("fstat", fd).inode)

    def stat(self, path: Path) -> os.stat_result:
        self._enter("stat")
        return _status(self._find(path))

    def utime(self, path: Path, mtime: float) -> None:
        self._enter("utime")
        inode = self._find(path)
        inode.touch(mtime)
        inode.atime = mtime

    def flock(self, fd: int, operation: int) -> None:
        inode = self._opened("flock", fd).inode
        kind = operation & (fcntl.LOCK_EX | fcntl.LOCK_SH | fcntl.LOCK_UN)
        if kind == fcntl.LOCK_UN:
            inode.locks.pop(fd, None)
            return
        others = [held for holder, held in inode.locks.items() if holder != fd]
        if others and (kind == fcntl.LOCK_EX or fcntl.LOCK_EX in others):
            assert operation & fcntl.LOCK_NB, "nobody else runs while this one waits"
            raise _error(errno.EWOULDBLOCK)
        inode.locks[fd] = kind

    # Names.

    def link(self, source: Path, target: Path) -> None:
        self._enter("link")
        inode = self._find(source)
        holder, name = self._holder(target)
        if name in holder.entries:
            raise _error(errno.EEXIST, target)
        if inode.is_directory:
            raise _error(errno.EPERM, source)
        self._set(holder, name, inode)

    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        holder, name = self._holder(path)
        inode = self._find(path)
        if inode.is_directory:
            raise _error(errno.EISDIR, path)
        self._set(holder, name, None)

    def rename(self, source: Path, target: Path) -> None:
        self._enter("rename")
        holder, name = self._holder(source)
        there, wanted = self._holder(target)
        inode = self._find(source)
        taken = there.entries.get(wanted)
        if inode is taken:
            return
        assert not inode.is_directory, "no directory is renamed"
        if taken is not None and taken.is_directory:
            raise _error(errno.EISDIR, target)
        self._set(there, wanted, inode)
        self._set(holder, name, None)

    def make_directory(self, path: Path, mode: int) -> None:
        self._enter("make_directory")
        self._make(path, stat.S_IFDIR | mode)

    def make_fifo(self, path: Path, mode: int) -> None:
        self._enter("make_fifo")
        self._make(path, stat.S_IFIFO | mode)

    def list_directory(self, path: Path) -> list[str]:
        self._enter("list_directory")
        inode = self._find(path)
        if not inode.is_directory:
            raise _error(errno.ENOTDIR, path)
        return list(inode.entries)

    # Syncs.

    def fsync(self, fd: int) -> None:
        opened = self._files.get(fd)
        try:
            self._enter("fsync")
        except OSError:
            if opened is not None:
                opened.inode.fail()
            raise
        if opened is None:
            raise _error(errno.EBADF)
        if opened.failed:
            opened.failed = False
            raise _error(errno.EIO)
        if not self.ignores("fsync", opened.inode.path):
            self._sync(opened.inode)

    def sync_data(self, fd: int) -> None:
        opened = self._files.get(fd)
        try:
            self._enter("sync_data")
        except OSError:
            if opened is not None:
                opened.inode.fail()
            raise
        if opened is None:
            raise _error(errno.EBADF)
        if opened.failed:
            opened.failed = False
            raise _error(errno.EIO)
        if not self.ignores("sync_data", opened.inode.path):
            self._sync_contents(opened.inode)

    def sync_filesystem(self, fd: int) -> None:
        everything = list(self._walk(self._root)) + [opened.inode for opened in self._files.values()]
        try:
            self._enter("sync_filesystem")
        except OSError:
            for opened in self._files.values():
                opened.failed = opened.failed or bool(opened.inode.dirty)
            for inode in everything:
                inode.fail()
            raise
        if fd not in self._files:
            raise _error(errno.EBADF)
        if not self.ignores("sync_filesystem", "/"):
            for inode in everything:
                self._sync(inode)
            self._committed = self._changes

    # The end, and what is left.

    def kill(self) -> None:
        """The processes are gone: descriptors and locks with them, nothing else."""
        files, self._files = self._files, {}
        for opened in files.values():
            opened.inode.opened = 0
            opened.inode.locks.clear()
        for opened in files.values():
            self._forget(opened.inode)
        self.dead = False

    def crash(self, rng: random.Random) -> None:
        """Lose power, and come up again with something that the model allows."""
        self._files.clear()
        everything = list(self._walk(self._root, remembered=True))
        entries = self._surviving_entries(everything, rng)
        lossy = rng.choice((0.0, 0.5, 1.0))
        seen: set[int] = set()
        self._numbers.clear()
        for inode in everything:
            inode.links = inode.opened = 0
            inode.locks.clear()
        self._root.links = 1
        for inode in _reachable(self._root, entries):
            if inode.generation in seen:
                continue
            seen.add(inode.generation)
            self._numbers.add(inode.number)
            if inode.is_directory:
                inode.entries = entries[inode.generation]
                for one in inode.entries.values():
                    one.links += 1
                inode.durable = dict(inode.entries)
                inode.changes.clear()
            else:
                _crash_file(inode, rng, lossy)
        self._committed = self._changes
        self.full = None
        self.dead = False

    # For tests: neither counted nor watched.

    def contents(self, path: Path) -> bytes:
        """What can be read of a file."""
        return bytes(self._find(path).data)

    def open_memory(self, data: bytes) -> int:
        """A descriptor of something that is on no disk."""
        inode = _Inode(0, 0, stat.S_IFREG, self._now(), "")
        inode.data = bytearray(data)
        fd = self._next_descriptor
        self._next_descriptor += 1
        self._files[fd] = _Opened(inode, os.O_RDONLY)
        inode.opened = 1
        return fd

    def peek(self, fd: int) -> bytes:
        """The whole of an open file."""
        return bytes(self._files[fd].inode.data)

    def names(self, path: Path) -> list[str]:
        """What a directory holds, sorted."""
        return sorted(self._find(path).entries)

    def mtime_of(self, path: Path) -> float:
        return self._find(path).mtimes[-1]

    def inode_of(self, path: Path) -> int:
        return self._find(path).number

    def exists(self, path: Path) -> bool:
        try:
            self._find(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def prepare_directories(self, path: Path) -> None:
        """A directory and those above it, durable: what was there before the story begins."""
        inode = self._root
        done = ""
        for name in _parts(path):
            done += "/" + name
            if name not in inode.entries:
                self._set(inode, name, self._new_inode(stat.S_IFDIR | 0o755, done))
            self._sync(inode)
            inode = inode.entries[name]
        self._committed = self._changes

    # Within.

    def _enter(self, operation: str) -> None:
        if self.dead:
            raise Crash
        self.calls += 1
        self.watch(operation)
        if self.dead:
            raise Crash

    def _opened(self, operation: str, fd: int) -> _Opened:
        self._enter(operation)
        try:
            return self._files[fd]
        except KeyError:
            raise _error(errno.EBADF) from None

    def _holder(self, path: Path) -> tuple[_Inode, str]:
        """The directory that a path lies in, and the name in it (empty for the root)."""
        *above, name = _parts(path) or [""]
        inode = self._root
        for one in above:
            if not inode.is_directory:
                raise _error(errno.ENOTDIR, path)
            if one not in inode.entries:
                raise _error(errno.ENOENT, path)
            inode = inode.entries[one]
        if not inode.is_directory:
            raise _error(errno.ENOTDIR, path)
        return inode, name

    def _find(self, path: Path) -> _Inode:
        holder, name = self._holder(path)
        if not name:
            return self._root
        try:
            return holder.entries[name]
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def _make(self, path: Path, mode: int) -> None:
        holder, name = self._holder(path)
        if not name or name in holder.entries:
            raise _error(errno.EEXIST, path)
        self._set(holder, name, self._new_inode(mode, os.fsdecode(path)))

    def _new_inode(self, mode: int, path: str) -> _Inode:
        number = _FIRST_INODE
        while number in self._numbers:
            number += 1
        self._numbers.add(number)
        self._generation += 1
        return _Inode(number, self._generation, mode, self._now(), path)

    def _set(self, holder: _Inode, name: str, inode: _Inode | None) -> None:
        """Change one entry of a directory."""
        self._changes += 1
        former = holder.entries.pop(name, None)
        if inode is not None:
            holder.entries[name] = inode
            inode.links += 1
            inode.last_change = self._changes
        holder.changes.setdefault(name, []).append((self._changes, inode))
        holder.last_change = self._changes
        if former is not None:
            former.links -= 1
            former.last_change = self._changes
            self._forget(former)

    def _forget(self, inode: _Inode) -> None:
        if not inode.links and not inode.opened and self.model is Model.JOURNAL:
            self._numbers.discard(inode.number)

    def _read(self, opened: _Opened, size: int, offset: int) -> bytes:
        if not opened.readable:
            raise _error(errno.EBADF)
        inode = opened.inode
        if inode.is_directory:
            raise _error(errno.EISDIR)
        if inode.atime <= inode.mtimes[-1] or inode.atime < self._now() - 86400:  # relatime
            inode.atime = self._now()
        return bytes(inode.data[offset : offset + size])

    def _put(self, opened: _Opened, data: bytes | memoryview, offset: int) -> int:
        if not opened.writable:
            raise _error(errno.EBADF)
        if self.full is not None:
            grown = offset + len(data) - len(opened.inode.data)
            if grown > self.full:
                if not self.full:
                    raise _error(errno.ENOSPC)
                data = bytes(data)[: self.full - grown]  # as much as there is room for
                grown = self.full
            self.full -= max(0, grown)
        if data:
            self._write(opened.inode, offset, bytes(data))
        return len(data)

    def _write(self, inode: _Inode, offset: int, data: bytes | None) -> None:
        inode.change(offset, data)
        inode.touch(self._now())
        inode.last_change = max(inode.last_change, self._changes)

    def _sync(self, inode: _Inode) -> None:
        if inode.is_directory and self.model is Model.POSIX:
            inode.durable = dict(inode.entries)
            inode.changes.clear()
        self._committed = max(self._committed, inode.last_change)
        before = len(inode.synced)
        inode.keep(len(inode.data))
        # What was lost may be there all the same; a size that only it would account for may not.
        while (end := len(inode.synced)) > before and (end - 1) // _BLOCK in inode.lost:
            inode.synced = inode.synced[: max(before, (end - 1) // _BLOCK * _BLOCK)]
        inode.writes = [(page * _BLOCK, _page(inode.data, page)) for page in sorted(inode.lost)]
        del inode.mtimes[:-1]

    @staticmethod
    def _sync_contents(inode: _Inode) -> None:
        """What is inside the size that was synced before; neither a new size, nor the times, nor a name."""
        size = len(inode.synced)
        inode.keep(size)
        # What lies behind it may still be lost, and is not to come back over what is synced now.
        inode.writes = [(page * _BLOCK, _page(inode.data[:size], page)) for page in sorted(inode.lost)]
        inode.writes = [
            (max(offset, size), None if data is None else data[max(0, size - offset) :])
            for offset, data in inode.writes
            if offset + len(data or b"") > size
        ]

    def _walk(self, inode: _Inode, *, remembered: bool = False) -> Iterator[_Inode]:
        """All files and directories, each once; with `remembered`, also those that a crash may bring back."""
        seen = {inode.generation}
        waiting = [inode]
        while waiting:
            one = waiting.pop()
            yield one
            found = list(one.entries.values())
            if remembered:
                found += one.durable.values()
                found += [value for values in one.changes.values() for _, value in values if value is not None]
            for other in found:
                if other.generation not in seen:
                    seen.add(other.generation)
                    waiting.append(other)

    def _surviving_entries(self, everything: list[_Inode], rng: random.Random) -> dict[int, dict[str, _Inode]]:
        """What each directory holds after the crash, by generation."""
        keep = rng.choice((0.0, 0.5, 1.0))
        cut = rng.choice((self._committed, self._changes, rng.randint(self._committed, self._changes)))
        result = {}
        for inode in everything:
            if not inode.is_directory:
                continue
            kept = dict(inode.durable)
            for name, changes in inode.changes.items():
                if self.model is Model.JOURNAL:
                    values = [value for number, value in changes if number <= cut]
                    chosen = len(values)
                elif rng.random() < keep:
                    chosen = len(changes)
                else:
                    chosen = rng.randint(0, len(changes)) if keep == 0.5 else 0
                if not chosen:
                    continue
                value = changes[chosen - 1][1]
                if value is None:
                    kept.pop(name, None)
                else:
                    kept[name] = value
            result[inode.generation] = kept
        return result


def _reachable(root: _Inode, entries: dict[int, dict[str, _Inode]]) -> Iterator[_Inode]:
    waiting = [root]
    while waiting:
        inode = waiting.pop()
        yield inode
        if inode.is_directory:
            waiting.extend(entries[inode.generation].values())


def _crash_file(inode: _Inode, rng: random.Random, lossy: float) -> None:
    """Choose what is left of a file's contents and times."""
    if inode.writes:
        if lossy < 1 and rng.random() < 0.3:
            inode.data = _torn(inode, rng)
        elif lossy == 1 or rng.random() < lossy:
            inode.data = bytearray(inode.synced)
            if rng.random() < 0.3:
                inode.data = _scattered(inode, rng)
    inode.synced = bytes(inode.data)
    inode.writes.clear()
    inode.dirty.clear()
    inode.lost.clear()
    inode.mtimes = [rng.choice(inode.mtimes) if lossy else inode.mtimes[-1]]


def _torn(inode: _Inode, rng: random.Random) -> bytearray:
    """The writes in their order, up to some octet."""
    data = bytearray(inode.synced)
    whole = rng.randrange(len(inode.writes))
    for offset, written in inode.writes[:whole]:
        _apply(data, offset, written)
    offset, written = inode.writes[whole]
    if written is not None:
        _apply(data, offset, written[: _tear(len(data), offset, rng.randint(0, len(written)), len(written))])
    return data


def _tear(size: int, offset: int, chosen: int, length: int) -> int:
    """How much of a write is there: any part of what has made the file grow, but whole sectors of what was there."""
    if offset + chosen >= size or chosen == length:
        return chosen
    return max(0, (offset + chosen) // _SECTOR * _SECTOR - offset)


def _scattered(inode: _Inode, rng: random.Random) -> bytearray:
    """Each block of each write for itself; a lost one leaves what was there, or zeros."""
    data = bytearray(inode.synced)
    for offset, written in inode.writes:
        if written is None:
            if rng.random() < 0.5:
                _apply(data, offset, None)
            continue
        start = 0
        block = rng.choice((_SECTOR, _BLOCK))
        while start < len(written):
            end = min(len(written), start + block - (offset + start) % block)
            if rng.random() < 0.5:
                _apply(data, offset + start, written[start:end])
            elif rng.random() < 0.5 and offset + end > len(data):
                _apply(data, offset + end, None)
            start = end
    return data


def _page(data: bytearray, page: int) -> bytes:
    return bytes(data[page * _BLOCK : (page + 1) * _BLOCK])


def _apply(data: bytearray, offset: int, written: bytes | None) -> None:
    """Write, or cut off (or grow) at `offset` when there is nothing to write."""
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    if written is None:
        del data[offset:]
    else:
        data[offset : offset + len(written)] = written


def _status(inode: _Inode) -> os.stat_result:
    mtime = inode.mtimes[-1]
    numbers = (
        inode.mode,
        inode.number,
        1,
        inode.links,
        0,
        0,
        len(inode.data),
        int(inode.atime),
        int(mtime),
        int(mtime),
    )
    return os.stat_result(numbers, {"st_atime": inode.atime, "st_mtime": mtime})


def _parts(path: Path) -> list[str]:
    text = os.fsdecode(path)
    assert text.startswith("/"), "paths are absolute"
    return [name for name in text.split("/") if name not in ("", ".")]


def _error(code: int, path: Path | None = None) -> OSError:
    return OSError(code, os.strerror(code), path)
