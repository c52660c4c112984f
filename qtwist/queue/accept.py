"""Taking messages into the queue's files: qmail-queue's steps for many messages at once (spec/qmail.md §6.2).

Per message: pid/x -> mess/s/N -> intd/N -> todo/N. The order of what reaches the platter is what counts: contents of
mess and intd and the entry in mess/s first, then the link in todo, then todo/ itself, then the answer. A crash at any
point leaves one of the states S1 to S4 (§5.3); intd/N may be missing in S4, and so its directory is not synced.

Nothing here knows of threads or of a reactor; every method blocks. The steps of one message follow one another, those
of different messages may run in different threads.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence

import attrs

from qtwist.files.disk import Disk
from qtwist.interfaces import Accepted, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.mail.received import queue_received
from qtwist.queue.layout import MESS_MODE, TODO_MODE, Layout
from qtwist.queue.records import AddressTooLong, check_envelope, format_envelope
from qtwist.queue.sync import BatchSync, close_quietly, filesystem_roots, unlink_if_there

# Exit codes of qmail-queue (§6.3).
ADDRESS_TOO_LONG = 11
OUT_OF_MEMORY = 51
WRITE_ERROR = 53
NO_QUEUE = 62
PID_TROUBLE = 63
MESS_TROUBLE = 64
INTD_TROUBLE = 65
TODO_TROUBLE = 66
INTERNAL_BUG = 81
BAD_ENVELOPE = 91

#: How many names in pid/ are tried (§6.2).
_TRIES = 9

#: How many numbers are left unused because something in todo/ or info/ has them.
HAUNTED_LIMIT = 50


@attrs.define
class MessFile:
    """A mess file that is being written. `fd` is None once it was handed to a sync."""

    number: int
    fd: int | None


@attrs.define(eq=False)
class Submission:
    """A message that waits to be committed. `body` is what is not yet in `mess`; None means that nothing is."""

    origin: Origin
    started: float  # seconds since the epoch, for the Received line
    envelope: Envelope
    body: list[bytes]
    mess: MessFile | None = None


@attrs.define
class _Progress:
    """How far a submission has come within a batch."""

    submission: Submission
    error: QueueError | None = None
    made_intd: bool = False
    made_todo: bool = False

    @property
    def number(self) -> int:
        assert self.submission.mess is not None
        return self.submission.mess.number


class Acceptor:
    """Writes messages into a queue.

    `busy` holds the numbers of messages that are on their way in: they are not to be delivered and not to be swept
    out, whatever a look at the directories says.
    """

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.busy: set[int] = set()
        self._disk = disk
        self._layout = layout
        self._roots = filesystem_roots(disk, layout)
        self._sequence = itertools.count(1)
        self._haunted: list[int] = []

    def create(self, origin: Origin, started: float) -> MessFile:
        """A new mess/s/N that holds the Received line. QueueError, with nothing left behind, when there is trouble."""
        while True:
            mess = self._try_create(origin, started)
            if mess is not None:
                return mess

    def _try_create(self, origin: Origin, started: float) -> MessFile | None:
        """None when the number cannot be had, and another one is to be tried."""
        disk, layout = self._disk, self._layout
        fd, temporary = self._create_temporary(started)
        number = None
        linked = False
        code = PID_TROUBLE
        try:
            number = disk.fstat(fd).st_ino
            if self._is_haunted(number, fd):
                disk.unlink(temporary)
                return None
            self.busy.add(number)
            code = MESS_TROUBLE
            disk.link(temporary, layout.path("mess", number))
            linked = True
            code = PID_TROUBLE
            disk.unlink(temporary)
            code = WRITE_ERROR
            disk.write_all(fd, queue_received(number, origin.how, started))
        except OSError as error:
            self._try_unlink(temporary)
            if number is not None:
                self.busy.discard(number)
            if linked and number is not None:
                self._try_unlink(layout.path("mess", number))
            # The inode, and with it the number, is free only when this is closed.
            if fd not in self._haunted:
                close_quietly(disk, fd)
            raise queue_error(code, error) from error
        return MessFile(number, fd)

    def append(self, mess: MessFile, data: bytes) -> None:
        """Write some more of a message. QueueError when the disk is full or broken."""
        assert mess.fd is not None
        try:
            self._disk.write_all(mess.fd, data)
        except OSError as error:
            raise queue_error(WRITE_ERROR, error) from error

    def flush(self, mess: MessFile) -> None:
        """Sync what was appended, so that the commit of a large message does not hold up a batch."""
        assert mess.fd is not None
        try:
            self._disk.fsync(mess.fd)
        except OSError as error:
            raise queue_error(WRITE_ERROR, error) from error

    def discard(self, mess: MessFile) -> None:
        """Remove a message that was not committed; best effort, for garbage is swept out later (§5.4)."""
        self.busy.discard(mess.number)
        self._try_unlink(self._layout.path("mess", mess.number))
        if mess.fd is not None:
            close_quietly(self._disk, mess.fd)
            mess.fd = None

    def commit(self, batch: Sequence[Submission]) -> list[Accepted | QueueError]:
        """Make a batch durable; one answer for each, in order. Never raises for what a disk can do.

        A QueueError means that nothing will be delivered. There is one window: when todo/ cannot be synced, the links
        in it are removed again, but whether they or the removal reach the platter before a crash nobody knows.
        """
        try:
            sync = BatchSync.begin(self._disk, self._roots, len(batch))
        except OSError as error:
            for submission in batch:
                if submission.mess is not None:
                    self.discard(submission.mess)
            return [queue_error(MESS_TROUBLE, error) for _ in batch]
        progress = [_Progress(submission) for submission in batch]
        for one in progress:
            self._write(one, sync)
        sync.sync()
        self._publish(progress, sync)
        return [self._settle(one) for one in progress]

    def _create_temporary(self, started: float) -> tuple[int, str]:
        stem = self._layout.room("pid") + f"/{os.getpid()}.{int(started)}."
        for attempt in range(1, _TRIES + 1):
            path = stem + str(next(self._sequence))
            try:
                return self._disk.create_exclusive(path, MESS_MODE), path
            except FileExistsError as error:
                if attempt == _TRIES:
                    raise queue_error(PID_TROUBLE, error) from error
            except OSError as error:
                raise queue_error(PID_TROUBLE, error) from error
        raise AssertionError("unreachable")

    def _is_haunted(self, number: int, fd: int) -> bool:
        """Whether todo/N or info/N is there already: the envelope of a message that is lost (qmail never syncs mess/s),
        or one that a crash has brought back.

        Were mess/N made now, the new message would go to the old one's recipients. So the number is left unused; the
        descriptor stays open, or the file system would offer it again and again.
        """
        for room in ("todo", "info"):
            path = self._layout.path(room, number)
            try:
                self._disk.stat(path)
            except FileNotFoundError:
                continue
            if len(self._haunted) == HAUNTED_LIMIT:
                raise FileExistsError(errno.EEXIST, "belongs to a lost message", path)
            self._haunted.append(fd)
            return True
        return False

    def _write(self, one: _Progress, sync: BatchSync) -> None:
        """mess/s/N and intd/N, up to the sync."""
        submission = one.submission
        layout = self._layout
        try:
            refusal = envelope_error(submission.envelope)
            if refusal is not None:
                raise refusal
            if submission.mess is None:
                submission.mess = self.create(submission.origin, submission.started)
            mess = submission.mess
            if submission.body:
                self.append(mess, b"".join(submission.body))
            envelope = format_envelope(submission.origin.uid, mess.number, submission.envelope)
            assert mess.fd is not None
            sync.add(mess.number, mess.fd, layout.holder("mess", mess.number))
            mess.fd = None
            intd = self._create_intd(layout.path("intd", mess.number))
            one.made_intd = True
            try:
                self._disk.write_all(intd, envelope)
            except OSError as error:
                close_quietly(self._disk, intd)
                raise queue_error(WRITE_ERROR, error) from error
            sync.add(mess.number, intd, None)
        except QueueError as error:
            one.error = error
        except MemoryError:
            one.error = QueueError(OUT_OF_MEMORY, "out of memory")

    def _create_intd(self, path: str) -> int:
        try:
            try:
                return self._disk.create_exclusive(path, TODO_MODE)
            except FileExistsError:
                # mess/N was free, so this belongs to a message that is gone: a crash lost the removal of its envelope.
                # Were it left, nothing could be queued until this inode is in use elsewhere.
                self._disk.unlink(path)
                return self._disk.create_exclusive(path, TODO_MODE)
        except OSError as error:
            raise queue_error(INTD_TROUBLE, error) from error

    def _publish(self, progress: list[_Progress], sync: BatchSync) -> None:
        """Link into todo what is durable, and make the links durable."""
        layout = self._layout
        for one in progress:
            if one.error is not None:
                continue
            failure = sync.failure(one.number)
            if failure is not None:
                one.error = queue_error(WRITE_ERROR, failure)
                continue
            try:
                self._disk.link(layout.path("intd", one.number), layout.path("todo", one.number))
                one.made_todo = True
            except OSError as error:
                one.error = queue_error(TODO_TROUBLE, error)
        linked = [one for one in progress if one.made_todo]
        if not linked:
            return
        try:
            self._disk.fsync_directory(layout.room("todo"))
        except OSError as error:
            for one in linked:
                one.error = queue_error(TODO_TROUBLE, error)

    def _settle(self, one: _Progress) -> Accepted | QueueError:
        """The answer, once everything of a message that failed is removed."""
        mess = one.submission.mess
        if one.error is None:
            self.busy.discard(one.number)
            return Accepted(one.number, one.number)
        if mess is None:
            return one.error
        layout = self._layout
        if one.made_todo and not self._try_unlink(layout.path("todo", mess.number)):
            # It stays busy: refused, it must not be delivered as long as this process can help it.
            return one.error
        if one.made_intd and not self._try_unlink(layout.path("intd", mess.number)):
            self.busy.discard(mess.number)
            if mess.fd is not None:
                close_quietly(self._disk, mess.fd)
            return one.error
        self.discard(mess)
        return one.error

    def _try_unlink(self, path: str) -> bool:
        try:
            unlink_if_there(self._disk, path)
        except OSError:
            return False
        return True


def envelope_error(envelope: Envelope) -> QueueError | None:
    """Why an envelope cannot be queued; None when it can."""
    try:
        check_envelope(envelope)
    except AddressTooLong as error:
        return QueueError(ADDRESS_TOO_LONG, str(error))
    except ValueError as error:
        return QueueError(BAD_ENVELOPE, str(error))
    return None


def queue_error(code: int, error: OSError) -> QueueError:
    """What is answered when the disk has failed."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return QueueError(code, where + (error.strerror or str(error)))
