"""Whether there is room for more mail where the queue lies, found out before a message is taken and not in its middle.

What is on the disk already, and what becomes of it (bounces, settled messages), needs some room, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.logger import Logger

_log = Logger(namespace="qtwist.queue")

#: Seconds for which an answer of the file system counts.
INTERVAL = 1.0
#: Inodes that have to be free, where the file system counts them. A message of the queue needs five, and one on its way
#: into a mailbox two.
LEAST_INODES = 1000
#: Once there was too little, so many times as much has to be free before mail is taken again.
AGAIN = 1.25


class Room:
    """The file system of `directory`, which need not be readable. `least` tells how many octets have to be free there
    (0: none, nothing is looked at), `seconds` the time."""

    def __init__(
        self,
        directory: str,
        least: Callable[[], int],
        seconds: Callable[[], float],
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._directory = directory
        self._least = least
        self._seconds = seconds
        self._statvfs = statvfs
        self._until = float("-inf")  # for so long counts what was found last
        self._free = 0
        self._inodes: int | None = None
        self._lacking = False

    def has(self, octets: int = 0) -> bool:
        """Whether a message of so many octets may come. The log tells when mail is no longer taken, and when it is
        again. Where the file system gives no answer, there is room."""
        least = self._least()
        if least <= 0:
            self._lacking = False
            return True
        now = self._seconds()
        if now >= self._until:
            if not self._look():
                return True
            self._until = now + INTERVAL
            self._judge(least)
        return not self._lacking and self._free - octets >= least

    def _look(self) -> bool:
        try:
            found = self._statvfs(self._directory)
        except OSError:
            return False
        self._free = found.f_bavail * found.f_frsize
        self._inodes = found.f_favail if found.f_files else None
        return True

    def _judge(self, least: int) -> None:
        factor = AGAIN if self._lacking else 1
        full = self._free < least * factor
        crowded = self._inodes is not None and self._inodes < LEAST_INODES * factor
        if self._lacking and not (full or crowded):
            self._lacking = False
            _log.warn("there is room in {directory} again: mail is taken", directory=self._directory)
        elif (full or crowded) and not self._lacking:
            self._lacking = True
            what = f"{self._free} octets" if full else f"{self._inodes} inodes"
            _log.error(
                "only {what} are free in {directory}: no mail is taken until there are more (control/queueminfree)",
                what=what,
                directory=self._directory,
            )
