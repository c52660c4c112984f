"""Large messages: the journal has the envelope, the text is in the file that holds the number (design §4).

That file (:mod:`qtwist.queue.numbers`) has a name and an inode that last already, so a message that is written there
costs one sync of the file and one record. Settled, it becomes the mess file by a link; nothing is written again.

Blocking but for :meth:`LargeMessage.submit`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from twisted.internet.defer import Deferred

from qtwist.files.disk import Disk
from qtwist.interfaces import Accepted
from qtwist.mail.envelope import Origin
from qtwist.mail.received import queue_received
from qtwist.queue.accept import WRITE_ERROR, MessFile, Submission, queue_error
from qtwist.queue.layout import Layout
from qtwist.queue.sync import close_quietly, unlink_if_there

_BLOCK_SIZE = 256 * 1024


class LargeMessage:
    """One message on its way in, in the place of an Acceptor and of a GroupCommitter for
    :class:`~qtwist.queue.incoming.IncomingFile`.

    `number` is its own from now on, held by a file in `directory`. `accept` gets what was submitted, with the size of
    the file, which is durable then and closed.
    """

    def __init__(
        self, disk: Disk, directory: str, number: int, accept: Callable[[Submission, int], Deferred[Accepted]]
    ) -> None:
        self._disk = disk
        self._path = f"{directory}/{number}"
        self._number = number
        self._accept = accept
        self._size = 0

    def create(self, origin: Origin, started: float) -> MessFile:
        """As an Acceptor does it."""
        fd = None
        try:
            fd = self._disk.open(self._path, os.O_WRONLY)
            received = queue_received(self._number, origin.how, started)
            self._disk.write_all(fd, received)
            self._size = len(received)
        except OSError as error:
            self.discard(MessFile(self._number, fd))
            raise queue_error(WRITE_ERROR, error) from error
        return MessFile(self._number, fd)

    def append(self, mess: MessFile, data: bytes) -> None:
        """As an Acceptor does it."""
        assert mess.fd is not None
        try:
            self._disk.write_all(mess.fd, data)
        except OSError as error:
            raise queue_error(WRITE_ERROR, error) from error
        self._size += len(data)

    def flush(self, mess: MessFile) -> None:
        """Make it durable; it is complete."""
        assert mess.fd is not None
        try:
            self._disk.fsync(mess.fd)
        except OSError as error:
            raise queue_error(WRITE_ERROR, error) from error
        close_quietly(self._disk, mess.fd)
        mess.fd = None

    def discard(self, mess: MessFile) -> None:
        """Remove it; best effort, for a start removes what the journal knows nothing of."""
        with contextlib.suppress(OSError):
            unlink_if_there(self._disk, self._path)
        if mess.fd is not None:
            close_quietly(self._disk, mess.fd)
            mess.fd = None

    def submit(self, submission: Submission) -> Deferred[Accepted]:
        """Have it accepted, once it was flushed."""
        return self._accept(submission, self._size)


def publish(disk: Disk, layout: Layout, directory: str, number: int) -> int:
    """Make the file of a message that the journal knows nothing of its mess file; a descriptor for a sync.

    OSError, with nothing left behind, when that cannot be.
    """
    path = f"{directory}/{number}"
    made = [path]
    fd = None
    try:
        fd = disk.open(path, os.O_WRONLY)
        disk.link(path, layout.path("mess", number))
        made.append(layout.path("mess", number))
        disk.unlink(path)
    except OSError:
        for name in made:
            with contextlib.suppress(OSError):
                unlink_if_there(disk, name)
        if fd is not None:
            close_quietly(disk, fd)
        raise
    return fd


def is_whole(disk: Disk, directory: str, number: int, size: int) -> bool:
    """Whether a message of `size` octets is in the file of this name, which the journal says was durable."""
    try:
        return disk.stat(f"{directory}/{number}").st_size == size
    except FileNotFoundError:
        return False


def copy(disk: Disk, directory: str, source: int, target: int) -> None:
    """Write the message in one file to another, durably."""
    reading = disk.open_read(f"{directory}/{source}")
    try:
        writing = disk.open(f"{directory}/{target}", os.O_WRONLY)
        try:
            disk.truncate(writing, 0)
            offset = 0
            while block := disk.pread(reading, _BLOCK_SIZE, offset):
                disk.write_all(writing, block)
                offset += len(block)
            disk.fsync(writing)
        finally:
            close_quietly(disk, writing)
    finally:
        close_quietly(disk, reading)
