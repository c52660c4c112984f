"""cdb, the constant database: a reader and a writer (spec/qmail.md §2.6, spec/related.md §1)."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from struct import Struct, pack

_PAIR = Struct("<II")
_HEADER_SIZE = 2048
_SIZE_LIMIT = 1 << 32
# A small file is simply read: cheaper than a mapping, and safe from somebody who truncates it in place.
_READ_WHOLE = 65536


class CDBError(Exception):
    """The file is no cdb, or a damaged one; or a database would become too large for the format."""


def cdb_hash(key: bytes) -> int:
    """The hash of a key (§2.6)."""
    h = 5381
    for byte in key:
        h = (h * 33 & 0xFFFFFFFF) ^ byte
    return h


def prefix_hashes(key: bytes) -> list[int]:
    """The hashes of all prefixes of a key, from the empty one to the whole, in one walk over it."""
    hashes = [5381]
    for byte in key:
        hashes.append((hashes[-1] * 33 & 0xFFFFFFFF) ^ byte)
    return hashes


class CDB:
    """A database open for reading; close it, or use it as a context manager.

    Writers replace the file by renaming, so an open reader keeps one consistent version. OSError when the file cannot
    be opened, CDBError wherever it turns out to be damaged.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], fd: int | None = None) -> None:
        """Read `path`; or what is open as `fd`, be it a pipe, which `path` then only names. `fd` stays open."""
        self.path = os.fspath(path)
        self._data: bytes | mmap.mmap = b""
        source = self.path if fd is None else fd
        with open(source, "rb", buffering=0, closefd=fd is None, opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if fd is not None and stat.S_ISFIFO(status.st_mode):
                self._data = file.readall()
                self._check_size()
                return
            if not stat.S_ISREG(status.st_mode):
                raise self._damaged("not a regular file")
            size = status.st_size
            self._data = file.readall() if size <= _READ_WHOLE else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._check_size()

    def _check_size(self) -> None:
        if len(self._data) < _HEADER_SIZE:
            self.close()
            raise self._damaged("shorter than its header")

    def __enter__(self) -> CDB:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Harmless when repeated."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def get(self, key: bytes, hashed: int | None = None) -> bytes | None:
        """The data of the first record with this key, or None. `hashed` spares computing :func:`cdb_hash` again."""
        return next(self._find(key, hashed), None)

    def getall(self, key: bytes) -> list[bytes]:
        """The data of all records with this key, in the order in which they were written."""
        return list(self._find(key, None))

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """All records, in the order in which they were written."""
        position = _HEADER_SIZE
        end = self._pair(0)[0]
        if end > len(self._data):
            raise self._damaged("a table lies outside the file")
        while position < end:
            key_size, data_size = self._pair(position)
            start = position + 8 + key_size
            position = start + data_size
            if position > end:
                raise self._damaged("a record reaches into the tables")
            yield self._data[start - key_size : start], self._data[start:position]

    def _find(self, key: bytes, hashed: int | None) -> Iterator[bytes]:
        if hashed is None:
            hashed = cdb_hash(key)
        table, slots = self._pair((hashed & 255) << 3)
        end = table + (slots << 3)
        if end > len(self._data):
            raise self._damaged("a table lies outside the file")
        if not slots:
            return
        place = table + ((hashed >> 8) % slots << 3)
        for _ in range(slots):
            found, position = _PAIR.unpack_from(self._data, place)
            if not position:
                return
            if found == hashed:
                key_size, data_size = self._pair(position)
                start = position + 8 + key_size
                if start + data_size > len(self._data):
                    raise self._damaged("a record lies outside the file")
                if self._data[start - key_size : start] == key:
                    yield self._data[start : start + data_size]
            place += 8
            if place == end:
                place = table

    def _pair(self, position: int) -> tuple[int, int]:
        if position + 8 > len(self._data):
            raise self._damaged("a position lies outside the file")
        first, second = _PAIR.unpack_from(self._data, position)
        return first, second

    def _damaged(self, why: str) -> CDBError:
        return CDBError(f"{os.fsdecode(self.path)} is no proper cdb: {why}")


def _open_without_waiting(path: str, flags: int) -> int:
    # A FIFO of that name would stop the daemon.
    return os.open(path, flags | os.O_NONBLOCK)


def write_cdb(path: str, records: Iterable[tuple[bytes, bytes]], temporary: str | None = None) -> None:
    """Write a database of (key, data) records to `path`, durably and at once: readers see the old one or the new one.

    It is made as `temporary` (default: `path` with ``.tmp`` added), synced, and renamed. When that fails, with OSError
    or CDBError, or when `records` raises, the temporary file is removed and the old database stays.
    """
    temporary = temporary or path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "wb", buffering=1 << 18) as file:
            header = _HEADER_SIZE * b"\0"
            file.write(header)
            position = _HEADER_SIZE
            buckets: list[list[tuple[int, int]]] = [[] for _ in range(256)]
            for key, data in records:
                hashed = cdb_hash(key)
                buckets[hashed & 255].append((hashed, position))
                position = _grown(position, 8 + len(key) + len(data))
                file.write(_PAIR.pack(len(key), len(data)) + key + data)
            header = b""
            for bucket in buckets:
                slots = 2 * len(bucket)
                header += _PAIR.pack(position, slots)
                position = _grown(position, 8 * slots)
                file.write(_table(bucket, slots))
            file.seek(0)
            file.write(header)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_directory(os.path.dirname(path) or ".")


def _table(bucket: list[tuple[int, int]], slots: int) -> bytes:
    table = [0] * (2 * slots)
    for hashed, position in bucket:
        slot = (hashed >> 8) % slots
        while table[2 * slot + 1]:
            slot = (slot + 1) % slots
        table[2 * slot] = hashed
        table[2 * slot + 1] = position
    return pack(f"<{len(table)}I", *table)


def _grown(position: int, size: int) -> int:
    position += size
    if position >= _SIZE_LIMIT:
        raise CDBError("the database would pass 4 GiB, the limit of the format")
    return position


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
