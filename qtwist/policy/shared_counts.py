"""What each client does in all processes that serve the same port: its connections now, and how often it comes.

A file that the processes have mapped: a row of counters for each process, which it alone writes, and all others read.
So nobody waits for anybody. Keys share counters now and then, by a hash with a secret; a count of the others may be a
little too high for that, never too low. A process holds a lock on its row; what one has left that was killed is cleared
by the next one that begins.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os

ROWS = 64
BUCKETS = 16384
_HEADER = 4096  # the secret; the locks are on its octets from _LOCKS on, one for each row
_SECRET = 16
_LOCKS = 64
_MOST = 0xFFFF
_WIDTH = 2  # octets of a counter
_TABLE = BUCKETS * _WIDTH
_STAMP = 8


class _SharedRows:
    """The file `path` with a row of `size` octets for each process, a multiple of 8; it is made if it is not there.
    OSError when it cannot be used, or all rows are taken.

    One process opens a file once: its locks are the process's.
    """

    def __init__(self, path: str, size: int) -> None:
        self._size = size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # the others begin before us, or after us
            # All of it now: a disk that is full later would end the process at the first write to a hole.
            os.posix_fallocate(self._fd, 0, _HEADER + ROWS * size)
            self._map = mmap.mmap(self._fd, 0)
            if not any(self._map[:_SECRET]):
                self._map[:_SECRET] = os.urandom(_SECRET)
            self._secret = self._map[:_SECRET]
            self._rows = memoryview(self._map)[_HEADER : _HEADER + ROWS * size]
            self._counts = self._rows.cast("H")
            self._row = self._take_row()
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Give the row back."""
        self._counts.release()
        self._rows.release()
        self._map.close()
        os.close(self._fd)

    def _bucket(self, key: str) -> int:
        digest = hashlib.blake2b(key.encode("ascii", "replace"), digest_size=4, key=self._secret).digest()
        return int.from_bytes(digest, "big") % BUCKETS

    def _take_row(self) -> int:
        taken = -1
        for row in range(ROWS):
            with contextlib.suppress(BlockingIOError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKS + row)
                start = row * self._size
                self._rows[start : start + self._size] = bytes(self._size)
                if taken >= 0:
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _LOCKS + row)
                else:
                    taken = row
        if taken < 0:
            raise BlockingIOError(f"{ROWS} processes count their connections already")
        return taken


class SharedCounts(_SharedRows):
    """How many connections each client has: the counters in the file `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(path, _TABLE)
        self._base = self._row * BUCKETS

    def add(self, key: str) -> None:
        """One more of ours."""
        place = self._base + self._bucket(key)
        self._counts[place] = min(self._counts[place] + 1, _MOST)

    def remove(self, key: str) -> None:
        """One less of ours."""
        place = self._base + self._bucket(key)
        self._counts[place] = max(self._counts[place] - 1, 0)

    def others(self, key: str) -> int:
        """How many the other processes have, at least."""
        bucket = self._bucket(key)
        total = sum(self._counts[bucket::BUCKETS])
        return total - self._counts[self._base + bucket]


class SharedRates(_SharedRows):
    """How often each client comes: the counters in the file `path`, of windows that are numbered, the same numbers in
    all processes. There are two of them for each process, the latest that it had to do with."""

    def __init__(self, path: str) -> None:
        super().__init__(path, 2 * (_STAMP + _TABLE))
        self._stamps = self._rows.cast("Q")

    def add(self, key: str, window: int) -> None:
        """One more of ours, in this window."""
        stamp, start = self._places(self._row, window)
        if self._stamps[stamp] != window + 1:
            self._stamps[stamp] = 0  # nobody reads on while it is cleared
            self._rows[start * _WIDTH : start * _WIDTH + _TABLE] = bytes(_TABLE)
            self._stamps[stamp] = window + 1
        place = start + self._bucket(key)
        self._counts[place] = min(self._counts[place] + 1, _MOST)

    def others(self, key: str, window: int) -> int:
        """How many the other processes had in this window, at least."""
        first, start = self._places(0, window)
        place = start + self._bucket(key)
        stamps = self._stamps[first :: self._size // _STAMP].tolist()
        return sum(
            self._counts[place + row * self._size // _WIDTH]
            for row, stamp in enumerate(stamps)
            if stamp == window + 1 and row != self._row
        )

    def close(self) -> None:
        self._stamps.release()
        super().close()

    def _places(self, row: int, window: int) -> tuple[int, int]:
        """Where the window's stamp is (its number and one, so that 0 is none), and where its counters begin."""
        half = row * 2 + window % 2
        start = half * (_STAMP + _TABLE)
        return start // _STAMP, (start + _STAMP) // _WIDTH
