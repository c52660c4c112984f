"""Hosts whose connections timed out lately are left alone for about an hour (spec/qmail.md §15.7).

The table lies in queue/lock/tcpto, which qmail-tcpto and qmail-tcpok read and clear. A record has room for an IPv4
address only; IPv6 addresses are kept in memory, by the same rule.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence

import attrs

RECORDS = 64
RECORD_SIZE = 16
SIZE = RECORDS * RECORD_SIZE

_MANY = 2  # timeouts after which a host is left alone
_GRACE = 120  # seconds in which further timeouts count as one
_MAX_COUNT = 10
_RECORD = struct.Struct("<4sB3xI4x")


@attrs.frozen
class Record:
    """One host: how many timeouts (0: the record is free), and when the last one was (seconds since the epoch)."""

    host: bytes
    count: int
    when: int


# The rule.


def _find(records: Sequence[Record], host: bytes) -> int | None:
    return next((place for place, record in enumerate(records) if record.host == host), None)


def should_skip(records: Sequence[Record], host: bytes, now: int, jitter: int) -> tuple[bool, bool]:
    """Whether to leave `host` alone at `now`, and whether the table knows it at all. `jitter` is 0 to 31."""
    place = _find(records, host)
    if place is None:
        return False, False
    record = records[place]
    return record.count >= _MANY and now - record.when < (60 + jitter) * 64, True


def after_timeout(records: Sequence[Record], host: bytes, now: int) -> tuple[int, Record] | None:
    """The place of the record to write, and its contents, after a timeout; None when nothing changes."""
    place = _find(records, host)
    if place is not None:
        old = records[place]
        if old.count and now < old.when + _GRACE:
            return None
        return place, Record(host, min(old.count + 1, _MAX_COUNT), now)
    if not records:
        return None
    free = next((place for place, record in enumerate(records) if not record.count), None)
    if free is None:
        free = min(range(len(records)), key=lambda place: records[place].when + records[place].count * 1024)
    return free, Record(host, 1, now)


def after_answer(records: Sequence[Record], host: bytes) -> tuple[int, Record] | None:
    """The same after anything but a timeout: the host is not counted any more."""
    place = _find(records, host)
    if place is None or not records[place].count:
        return None
    return place, Record(host, 0, records[place].when)


# Where it is kept.


class TimeoutTable:
    """The table of one queue. `now` is in seconds since the epoch; `jitter` gives 0 to 31.

    It is a help, not a promise: without the file, or while another process holds its lock, hosts are tried as if
    nothing were known of them, as with qmail, and the reactor never waits.
    """

    def __init__(
        self,
        path: str,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], int] = lambda: random.randrange(32),
    ) -> None:
        self._path = path
        self._now = now
        self._jitter = jitter
        self._memory = [Record(b"", 0, 0)] * RECORDS

    def clear(self) -> None:
        """Forget every host; qmail-rspawn does so when it starts (§11.4)."""
        self._memory = [Record(b"", 0, 0)] * RECORDS
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.pwrite(fd, bytes(SIZE), 0)
        except OSError:
            return
        finally:
            os.close(fd)

    def skip(self, address: str) -> tuple[bool, bool]:
        """(leave this address alone, the table knows it)."""
        host = _packed(address)
        records: Sequence[Record] = self._memory
        if len(host) == 4:
            try:
                fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False, False
            try:
                records = unpack(os.pread(fd, SIZE, 0))
            except OSError:
                return False, False
            finally:
                os.close(fd)
        return should_skip(records, host, int(self._now()), self._jitter())

    def timed_out(self, address: str) -> None:
        """A connection to `address` timed out."""
        now = int(self._now())
        self._change(address, lambda records, host: after_timeout(records, host, now))

    def answered(self, address: str) -> None:
        """A connection to `address`, which the table knows, succeeded or failed at once."""
        self._change(address, after_answer)

    def _change(self, address: str, rule: Callable[[Sequence[Record], bytes], tuple[int, Record] | None]) -> None:
        host = _packed(address)
        if len(host) != 4:
            change = rule(self._memory, host)
            if change is not None:
                self._memory[change[0]] = change[1]
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            change = rule(unpack(os.pread(fd, SIZE, 0)), host)
            if change is not None:
                place, record = change
                packed = _RECORD.pack(record.host, record.count, record.when & 0xFFFFFFFF)
                os.pwrite(fd, packed, place * RECORD_SIZE)
        except OSError:
            return
        finally:
            os.close(fd)


def _packed(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return socket.inet_aton(address)


def unpack(table: bytes) -> list[Record]:
    """The records in the contents of the table's file."""
    whole = len(table) - len(table) % RECORD_SIZE
    return [Record(*fields) for fields in _RECORD.iter_unpack(table[:whole])]
