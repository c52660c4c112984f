"""A message in the journal, as it lives in memory meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os

import attrs
from twisted.internet.defer import Deferred

from qtwist.queue.journal import Entry


@attrs.define(eq=False)
class Live:
    """A message in the journal. `waiting` is set while it is being settled: whoever comes then has to wait."""

    entry: Entry
    generation: int
    sender: bytes
    memory: int | None = None  # descriptor of the message
    waiting: list[Deferred[None]] | None = None
    spoilt: bool = False  # it could not be settled; there may be files with something of it

    def open(self) -> int:
        """Another descriptor of the message, for reading."""
        if self.memory is None:
            self.memory = _sealed(self.entry.message)
        return os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY | os.O_CLOEXEC)

    def channel(self, name: str) -> bytearray:
        """What the file of a channel would hold. FileNotFoundError when there would be none."""
        channels = self.entry.channels
        if channels is None or name not in channels:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{name} of {self.entry.number}")
        return channels[name]

    def close(self) -> None:
        if self.memory is not None:
            os.close(self.memory)
            self.memory = None


def _sealed(message: bytes) -> int:
    """A file in memory that nobody can change, whoever gets a descriptor of it."""
    fd = os.memfd_create("mess", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", buffering=0, closefd=False) as file:
        file.write(message)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd
