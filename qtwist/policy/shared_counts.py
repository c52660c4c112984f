"""How many connections each client has in all processes that serve the same port.

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


class SharedCounts:
    """The counters in the file `path`, which is made if it is not there. OSError when it cannot be used, or all rows
    are taken.

    One process opens a file once: its locks are the process's.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # the others begin before us, or after us
            # All of it now: a disk that is full later would end the process at the first write to a hole.
            os.posix_fallocate(self._fd, 0, _HEADER + ROWS * BUCKETS * 2)
            self._map = mmap.mmap(self._fd, 0)
            if not any(self._map[:_SECRET]):
                self._map[:_SECRET] = os.urandom(_SECRET)
            self._secret = self._map[:_SECRET]
            self._counts = memoryview(self._map)[_HEADER:].cast("H")
            self._base = self._take_row() * BUCKETS
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BaseException:
            os.close(self._fd)
            raise

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

    def close(self) -> None:
        """Give the row back."""
        self._counts.release()
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
                start = _HEADER + row * BUCKETS * 2
                self._map[start : start + BUCKETS * 2] = bytes(BUCKETS * 2)
                if taken >= 0:
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _LOCKS + row)
                else:
                    taken = row
        if taken < 0:
            raise BlockingIOError(f"{ROWS} processes count their connections already")
        return taken
