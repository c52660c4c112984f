"""Whether there is room for more mail where the queue lies, found out before a message is taken and not in its middle.

What is on the disk already, and what becomes of it (bounces, settled messages), needs some room, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import attrs
from twisted.logger import Logger

_log = Logger(namespace="qtwist.queue")

#: Seconds for which an answer counts.
INTERVAL = 1.0
#: Inodes that have to be free, where the file system counts them. A message of the queue needs five, and one on its way
#: into a mailbox two.
LEAST_INODES = 1000
#: Once there was too little, so many times as much has to be free before mail is taken again.
AGAIN = 1.25


@attrs.frozen
class Free:
    """How many octets are free of something, and which: ``in /var/qmail/queue``; of inodes, too, where they are
    counted."""

    octets: int
    where: str
    inodes: int | None = None


class Reserve:
    """Something of which a part has to stay free for mail, or what else `kept` names for the log, to be taken.

    `least` tells how many octets (0: none, nothing is looked at), `look` how many there are, None where nobody knows;
    `seconds` the time. `control` is the control file of `least`, for the log.
    """

    def __init__(
        self,
        control: str,
        least: Callable[[], int],
        look: Callable[[], Free | None],
        seconds: Callable[[], float],
        kept: str = "mail",
    ) -> None:
        self.control = control
        self._kept = kept
        self._least = least
        self._look = look
        self._seconds = seconds
        self._until = float("-inf")  # for so long counts what was found last
        self._free: Free | None = None
        self._lacking = False

    def has(self, octets: int = 0) -> bool:
        """Whether a message of so many octets may come. The log tells when mail is no longer taken, and when it is
        again. Where nobody knows, there is enough."""
        least = self._least()
        if least <= 0:
            self._lacking = False
            return True
        now = self._seconds()
        if now >= self._until or self._until > now + INTERVAL:
            self._free = self._look()
            if self._free is not None:
                self._until = now + INTERVAL
        if self._free is None:
            return True
        self._judge(self._free, least)
        return not self._lacking and self._free.octets - octets >= least

    def _judge(self, free: Free, least: int) -> None:
        factor = AGAIN if self._lacking else 1
        full = free.octets < least * factor
        crowded = free.inodes is not None and free.inodes < LEAST_INODES * factor
        if self._lacking and not (full or crowded):
            self._lacking = False
            _log.warn("there is room {where} again: {kept} is taken", where=free.where, kept=self._kept)
        elif (full or crowded) and not self._lacking:
            self._lacking = True
            _log.error(
                "only {what} are free {where}: no {kept} is taken until there are more (control/{control})",
                kept=self._kept,
                what=f"{free.octets} octets" if full else f"{free.inodes} inodes",
                where=free.where,
                control=self.control,
            )


class Room(Reserve):
    """The file system of `directory`, which need not be readable."""

    def __init__(
        self,
        directory: str,
        least: Callable[[], int],
        seconds: Callable[[], float],
        statvfs: Callable[[str], os.statvfs_result] = os.statvfs,
    ) -> None:
        super().__init__("queueminfree", least, self._ask, seconds)
        self._directory = directory
        self._statvfs = statvfs

    def _ask(self) -> Free | None:
        try:
            found = self._statvfs(self._directory)
        except OSError:
            return None
        inodes = found.f_favail if found.f_files else None
        return Free(found.f_bavail * found.f_frsize, f"in {self._directory}", inodes)
