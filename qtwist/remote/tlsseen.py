"""Which domains have shown good certificates: what was secure once is not given up in silence.

A man in the middle can take STARTTLS away, or show a certificate of his own, and an opportunistic client sends the mail
all the same. So it is remembered, in queue/lock/tlsseen, when mail for a domain went to a host with a certificate that
was good for its name. From then on TLS like that is demanded of the domain. When it fails for longer than
control/tlsmemory seconds, the domain has changed its mind: it is forgotten, with a line in the log.

The file has a fixed size and is changed in place, as lock/tcpto is: in a daemon that was started as root, rspawn may
write to it but not make it.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2s

import attrs

from qtwist.mail.domains import ascii_domain

RECORDS = 8192
WAYS = 8
"""Records that share a place: a domain may be in any of them."""

LIFETIME = 90 * 86400
"""Seconds for which a good certificate is remembered."""

_RECORD = struct.Struct("<16sQQ")
SIZE = RECORDS * _RECORD.size
_DAY = 86400


@attrs.frozen
class Record:
    """One domain: when it was last good, and since when it is not (0: it is), both in seconds since the epoch."""

    key: bytes
    good: int
    failing: int


_FREE = Record(bytes(16), 0, 0)


class SeenTLS:
    """The memory of one queue. `path` is its file, `now` in seconds since the epoch.

    Where the file cannot be made or written, memory alone has to do. Of more domains than have room, those that were
    good last are known.
    """

    def __init__(self, path: str, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._records = self._read()

    def demands(self, domain: bytes) -> bool:
        """Whether `domain` has shown a good certificate, and not too long ago."""
        record = self._find(domain)[1]
        return record is not None and self._now() - record.good < LIFETIME

    def good(self, domain: bytes) -> None:
        """`domain` has shown one now. Written once a day for each domain."""
        place, record = self._find(domain)
        now = int(self._now())
        if record is None or record.failing or now - record.good >= _DAY:
            self._write(place, Record(_key(domain), now, 0))

    def failed(self, domain: bytes, patience: int) -> bool:
        """`domain`, of which it was demanded, has not; True when that has been so for `patience` seconds, and it is
        forgotten."""
        place, record = self._find(domain)
        if record is None:
            return False
        now = int(self._now())
        if record.failing and now - record.failing >= patience:
            self._write(place, _FREE)
            return True
        if not record.failing:
            self._write(place, attrs.evolve(record, failing=now))
        return False

    def _find(self, domain: bytes) -> tuple[int, Record | None]:
        """The place of the domain's record, and the record; without one, the place to write it to."""
        key = _key(domain)
        first = int.from_bytes(key[:4], "little") % (RECORDS // WAYS) * WAYS
        places = range(first, first + WAYS)
        for place in places:
            if self._records[place].key == key:
                return place, self._records[place]
        return min(places, key=lambda place: self._records[place].good), None

    def _read(self) -> list[Record]:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return [_FREE] * RECORDS
        try:
            table = os.pread(fd, SIZE, 0)
        except OSError:
            return [_FREE] * RECORDS
        finally:
            os.close(fd)
        records = (Record(*fields) for fields in _RECORD.iter_unpack(table.ljust(SIZE, b"\0")))
        return [record if record.good else _FREE for record in records]

    def _write(self, place: int, record: Record) -> None:
        self._records[place] = record
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.pwrite(fd, _RECORD.pack(record.key, record.good, record.failing), place * _RECORD.size)
        except OSError:
            return  # it is a help, not a promise, as with tcpto
        finally:
            os.close(fd)


def _key(domain: bytes) -> bytes:
    return blake2s(ascii_domain(domain).rstrip(b"."), digest_size=16).digest()
