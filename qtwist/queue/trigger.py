"""lock/trigger: the FIFO by which a program that queued a message wakes the manager (spec/qmail.md §5.2, §9.4)."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

#: A FIFO holds no more (Linux: 64 KiB by default); one read empties it.
_READ_SIZE = 65536


def pull_trigger(path: str) -> None:
    """Wake whoever watches the FIFO. If nobody does, or it is full, that is as good."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"\0")
    except OSError:
        return
    finally:
        os.close(fd)


@implementer(IReadDescriptor)
class TriggerReader:
    """Calls `pulled` in the reactor thread whenever the FIFO was written to.

    A FIFO that had a writer and has none left is readable for ever. qmail-send closes and reopens it each time; this
    holds a writing end of its own, so that there always is one. What is pulled between a read and the look at todo/
    that follows makes it readable once more, so nothing is missed.
    """

    def __init__(self, reactor: IReactorFDSet, path: str, pulled: Callable[[], None]) -> None:
        self._reactor = reactor
        self._path = path
        self._pulled = pulled
        self._fd = -1
        self._writer = -1

    def start(self) -> None:
        """Open the FIFO and watch it. OSError when it cannot be opened."""
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            os.close(self._fd)
            self._fd = -1
            raise
        self._reactor.addReader(self)

    def stop(self) -> None:
        """Watch no longer. Harmless when not started."""
        if self._fd == -1:
            return
        self._reactor.removeReader(self)
        os.close(self._fd)
        os.close(self._writer)
        self._fd = self._writer = -1

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "queue trigger"

    def doRead(self) -> None:
        try:
            os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return
        self._pulled()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor drops all its readers when it stops."""
        self.stop()
