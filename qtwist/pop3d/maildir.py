"""A maildir as a POP3 session sees it: a list of messages made once, compact and fixed in its order (spec §14.3).

Blocking, without Twisted; not for two threads at once. A maildir needs no lock: every message is a file of its own, and
one that was renamed by another program is found again by the part of its name before the colon.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from array import array
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import overload

from qtwist.files.maildir_reading import clean
from qtwist.pop3d.sizes import SizeCache, wire_size_in_name

_FOLDERS = (b"new", b"cur")
_NEW, _CUR = 0, 1
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 262144
_UID = re.compile(rb"[!-~]{1,70}")  # RFC 1939 §7
_LONGEST_UID = 70
_IN_UID = bytes(range(33, 127)).replace(b":", b"")  # what is behind a colon belongs to no id
#: The most messages that :meth:`MaildirSession.small` reads.
MOST_SMALL = 64
# Set in a folder byte: another message has the same unique name, and comes before this one.
_TWIN, _SECOND = 2, 4
_FOLDER = 1


class Names(Sequence[bytes]):
    """Many short names in one piece of memory: 100,000 bytes objects of their own cost 3 MB in headers and as much in
    pointers."""

    __slots__ = ("_ends", "_longest", "_shortest", "_text")

    def __init__(self, names: Collection[bytes]) -> None:
        self._text = b"".join(names)
        self._ends = array("q", accumulate(map(len, names), initial=0))
        self._shortest = min(map(len, names), default=0)
        self._longest = max(map(len, names), default=0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            numbers = range(*index.indices(len(self)))
            if numbers.step != 1:
                return [self[number] for number in numbers]
            text = self._text
            ends = self._ends[numbers.start : numbers.stop + 1] if numbers else ()
            return [text[start:end] for start, end in pairwise(ends)]
        return self._text[self._ends[index] : self._ends[index + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self[:])

    def have(self, octets: bytes) -> bool:
        """Whether `octets` are in a name; wrong, but never with False, where they stand across the ends of two."""
        return octets in self._text

    def are_uids(self) -> bool:
        """Whether each name is an id as it is."""
        return 0 < self._shortest <= self._longest <= _LONGEST_UID and not self._text.translate(None, _IN_UID)


class Uids(Sequence[bytes]):
    """The unique ids of the messages, made when they are asked for."""

    def __init__(self, names: Names, folders: bytes) -> None:
        self._names = names
        self._folders = folders
        # As it is with new mail of most servers; twins have an id of their own.
        self._plain = names.are_uids() and not folders.translate(None, bytes((_NEW, _CUR)))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self[:])

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            if self._plain:
                return self._names[index]
            return [self[number] for number in range(*index.indices(len(self)))]
        name = self._names[index]
        unique = unique_part(name)
        folder = self._folders[index]
        if folder & _SECOND:
            unique = _FOLDERS[folder & _FOLDER] + b"/" + name
        elif _UID.fullmatch(unique):
            return unique
        return hashlib.blake2s(unique, digest_size=16).hexdigest().encode("ascii")


def unique_part(name: bytes) -> bytes:
    """What a message is called whatever its flags are (spec §14.3)."""
    return name.partition(b":")[0]


class MaildirSession:
    """The messages that are in the maildir `path` now, the oldest first.

    OSError when it cannot be read. Files of the current second are left for the next session, files with a dot in
    front, links and whatever is no file for ever. The old remains in tmp/ are removed.
    """

    def __init__(self, path: bytes, now: float) -> None:
        self.path = path
        clean(path, now)
        found = _scan(path, int(now))
        found.sort()
        self._mtimes = array("q", [entry[0] for entry in found])
        self._sizes = array("q", [entry[3] for entry in found])
        self._inodes = array("q", [entry[4] for entry in found])
        self._folders = bytearray([entry[2] for entry in found])
        names = [entry[1] for entry in found]
        self._mark_twins(names)
        self._names = Names(names)
        #: The ids keep the names of the beginning; those below follow renames.
        self.uids = Uids(self._names, bytes(self._folders))
        self._looked: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self._names)

    def size(self, index: int) -> int:
        """The octets of the message's file, as it was at the beginning."""
        return self._sizes[index]

    def sizes(self) -> array[int]:
        """The octets of each message on the wire: by its name, by the size cache, or by counting its lines.

        A message that has gone meanwhile counts as it is on the disk.
        """
        cache = SizeCache.load(self.path)
        named = self._names.have(b",W=")
        sizes = cache.find_all(self._inodes, self._sizes, self._mtimes)
        counted = 0
        for index in range(len(sizes)) if named else [index for index, known in enumerate(sizes) if known < 0]:
            size = self._sizes[index]
            known = wire_size_in_name(self._names[index], size) if named else None
            if known is None:
                known = sizes[index]
            if known < 0:
                try:
                    known = self._count(index, size)
                except OSError:
                    known = size
                else:
                    cache.add(self._inodes[index], size, self._mtimes[index], known)
                    counted += 1 + size // 4096
            sizes[index] = known
        cache.save_if_worth(self.path, counted)
        return sizes

    def open(self, index: int) -> int:
        """A descriptor of the message. FileNotFoundError when it has gone, OSError."""
        return self._open(index)[0]

    def _open(self, index: int) -> tuple[int, int]:
        """That, and the octets of the file."""
        try:
            fd = os.open(self._path(index), _FLAGS)
        except FileNotFoundError:
            if not self._look_again():
                raise
            fd = os.open(self._path(index), _FLAGS)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FileNotFoundError("no longer a file")
        return fd, status.st_size

    def small(self, index: int, octets: int) -> list[bytes]:
        """The messages from `index` on, each whole, as many as have at most so many `octets` together; MOST_SMALL at
        most, and none behind one that cannot be read."""
        texts: list[bytes] = []
        for following in range(index, min(index + MOST_SMALL, len(self))):
            if self._sizes[following] > octets:
                break
            try:
                fd, size = self._open(following)
            except OSError:
                break
            try:
                text = os.read(fd, size + 1) if size <= octets else None
            except OSError:
                break
            finally:
                os.close(fd)
            if text is None or len(text) != size:
                break
            octets -= size
            texts.append(text)
        return texts

    def finish(self, deleted: Collection[int], retrieved: Collection[int]) -> list[OSError]:
        """Remove `deleted`; move what is left in new/ to cur/ (spec §18.2), those in `retrieved` with the flag S.

        Returns why messages could not be removed. One that was gone already is no failure, and one that cannot be
        moved stays where it is.
        """
        failures = []
        for index in deleted:
            try:
                self._remove(index)
            except OSError as error:
                failures.append(error)
        if deleted:
            # What is said to be removed must not come back after a crash.
            for name in _FOLDERS:
                try:
                    _sync(os.path.join(self.path, name))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    failures.append(error)
        gone, seen = frozenset(deleted), frozenset(retrieved)
        for index, folder in enumerate(self._folders):
            if folder == _NEW and index not in gone:  # no twin, which could overwrite the other one
                name = self._names[index]
                if b":" not in name:
                    name += b":2,S" if index in seen else b":2,"
                with contextlib.suppress(OSError):
                    os.rename(self._path(index), os.path.join(self.path, b"cur", name))
        return failures

    def close(self) -> None:
        """Nothing is held open."""

    def _remove(self, index: int) -> None:
        try:
            os.unlink(self._path(index))
        except FileNotFoundError:
            if self._look_again():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path(index))

    def _path(self, index: int) -> bytes:
        return b"%b/%b/%b" % (self.path, _FOLDERS[self._folders[index] & _FOLDER], self._names[index])

    def _count(self, index: int, size: int) -> int:
        """The wire size of a message by reading it, `size` octets at most: it is said to the client as it was."""
        fd = self.open(index)
        try:
            lines, left, last = 0, size, b"\n"
            while left > 0:
                block = os.read(fd, min(left, _BLOCK))
                if not block:
                    break
                lines += block.count(b"\n")
                left -= len(block)
                last = block[-1:]
        finally:
            os.close(fd)
        return size + lines + (0 if last == b"\n" else 2)

    def _mark_twins(self, names: Sequence[bytes]) -> None:
        uniques = [name.partition(b":")[0] for name in names]
        if len(set(uniques)) == len(uniques):
            return
        first: dict[bytes, int] = {}
        for index, unique in enumerate(uniques):
            other = first.setdefault(unique, index)
            if other != index:
                self._folders[other] |= _TWIN
                self._folders[index] |= _TWIN | _SECOND

    def _look_again(self) -> bool:
        """Find out what the messages are called now, if the folders have changed since that was done last."""
        state = tuple(_changed(os.path.join(self.path, folder)) for folder in _FOLDERS)
        if state == self._looked:
            return False
        self._looked = state
        present: dict[bytes, tuple[int, bytes]] = {}
        for number, folder in enumerate(_FOLDERS):
            with contextlib.suppress(FileNotFoundError):
                for name in os.listdir(os.path.join(self.path, folder)):
                    present[unique_part(name)] = (number, name)
        names = []
        for index, name in enumerate(self._names):
            if not self._folders[index] & _TWIN:
                place = present.get(unique_part(name))
                if place is not None:
                    self._folders[index] = place[0]
                    names.append(place[1])
                    continue
            names.append(name)
        self._names = Names(names)
        return True


def _sync(folder: bytes) -> None:
    """Make the entries of a folder survive a crash."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _changed(folder: bytes) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0


_Found = tuple[int, bytes, int, int, int]


def _scan(path: bytes, second: int) -> list[_Found]:
    """For each message: mtime in nanoseconds, name, folder, size and inode number. OSError.

    One folder of the two may be missing.
    """
    found: list[_Found] = []
    missing: list[OSError] = []
    for number, folder in enumerate(_FOLDERS):
        try:
            found += _scan_folder(os.path.join(path, folder), number, second * 1_000_000_000)
        except FileNotFoundError as error:
            missing.append(error)
    if len(missing) == len(_FOLDERS):
        raise missing[0]
    # While we read the second folder, a message may have come there from the first.
    if not missing and found:
        return _without_repeats(found)
    return found


def _scan_folder(folder: bytes, number: int, before: int) -> Iterator[_Found]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mtime_ns < before:
                yield status.st_mtime_ns, name, number, status.st_size, status.st_ino


def _without_repeats(found: list[_Found]) -> list[_Found]:
    inodes = {entry[4] for entry in found}
    if len(inodes) == len(found):
        return found
    # The same file by the same unique name is one message; where it was seen last counts.
    kept = {(entry[4], unique_part(entry[1])): entry for entry in found}
    return list(kept.values())
