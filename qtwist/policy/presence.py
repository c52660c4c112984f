"""Which control files there are, at the cost of one system call while none comes or goes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: A directory that was changed less than so many seconds before it was listed is listed again: a second change within
#: one tick of the file system's clock would not show, and the coarsest clocks tick every two seconds.
_TICK = 2.0


class Presence:
    """The names in a directory. `now` tells the date."""

    def __init__(self, directory: str, now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._now = now
        self._stamp: tuple[int, int] | None = None
        self._names: frozenset[str] = frozenset()

    def get(self) -> frozenset[str]:
        """All names; the same object while nothing has changed. None at all where the directory cannot be read."""
        try:
            status = os.stat(self._directory)
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                now = self._now()
                names = frozenset(os.listdir(self._directory))
                if names != self._names:
                    self._names = names
                self._stamp = stamp if now - status.st_mtime >= _TICK else None
        except OSError:
            self._stamp, self._names = None, frozenset()
        return self._names
