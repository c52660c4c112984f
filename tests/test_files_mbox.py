"""mbox delivery: spec/qmail.md §14.1, §26.5."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk
from qtwist.files.mbox import MboxError, deliver_to_mbox, quote_from

PREFIX = b"From joe@x Mon Nov 02 03:04:05 2026\nReturn-Path: <joe@x>\nDelivered-To: me@y\n"


def reference(message: bytes) -> bytes:
    """§14.1 line by line, as a reader of the specification would write it."""
    lines = message.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return b"".join((b">" if re.match(rb">*From ", line) else b"") + line + b"\n" for line in lines) + b"\n"


def message_fd(test: SynchronousTestCase, text: bytes) -> int:
    path = test.mktemp()
    with open(path, "wb") as file:
        file.write(text)
    fd = os.open(path, os.O_RDONLY)
    test.addCleanup(os.close, fd)
    return fd


def contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


class QuotingTests(SynchronousTestCase):
    """quote_from, however the message is cut into blocks."""

    def test_examples(self) -> None:
        for message, expected in [
            (b"", b"\n"),
            (b"\n", b"\n\n"),
            (b"a\n", b"a\n\n"),
            (b"a", b"a\n\n"),
            (b"From me\n", b">From me\n\n"),
            (b">>From me\nFrom: x\n", b">>>From me\nFrom: x\n\n"),
            (b"From", b"From\n\n"),
            (b"From\n \nFrom ", b"From\n \n>From \n\n"),
            (b" From x\nxFrom x\n", b" From x\nxFrom x\n\n"),
        ]:
            self.assertEqual(b"".join(quote_from([message])), expected)

    @given(
        st.lists(st.sampled_from([b"From ", b"From", b"Fr", b"om ", b">", b">>", b"\n", b"x", b" ", b"\r", b"\0"])),
        st.integers(1, 9),
    )
    def test_blocks(self, pieces: list[bytes], size: int) -> None:
        message = b"".join(pieces)
        blocks = [message[at : at + size] for at in range(0, len(message), size)]
        self.assertEqual(b"".join(quote_from(blocks)), reference(message))

    @given(st.binary())
    def test_any_bytes(self, message: bytes) -> None:
        self.assertEqual(b"".join(quote_from([message])), reference(message))

    def test_bounded_memory(self) -> None:
        """A line that never ends, even one that might become a From line, is passed on block by block."""
        for piece in (b"x", b">"):
            longest = max(len(block) for block in quote_from(piece * 1000 for _ in range(50)))
            self.assertLess(longest, 1010)


class BusyDisk(RealDisk):
    """flock fails with `code` for the first `times` times."""

    def __init__(self, times: int, code: int = errno.EWOULDBLOCK) -> None:
        super().__init__()
        self.times = times
        self.code = code
        self.truncated = 0

    def flock(self, fd: int, operation: int) -> None:
        if self.times:
            self.times -= 1
            raise OSError(self.code, os.strerror(self.code))
        super().flock(fd, operation)

    def truncate(self, fd: int, size: int) -> None:
        self.truncated += 1
        super().truncate(fd, size)


class FullDisk(BusyDisk):
    """Writes the half, then has no room; or, with `room`, fails to sync."""

    room = False

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if self.room:
            return super().write(fd, data)
        if len(data) > 10:
            return super().write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def fsync(self, fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")


class DeliveryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.raw = os.fsencode(self.path)
        self.disk = RealDisk()

    def test_new_file(self) -> None:
        """A new mbox has mode 0600, and the descriptor's offset stays."""
        fd = message_fd(self, b"Subject: x\n\nFrom here\nlast")
        os.lseek(fd, 7, os.SEEK_SET)
        deliver_to_mbox(self.disk, self.raw, fd, PREFIX)
        self.assertEqual(contents(self.path), PREFIX + b"Subject: x\n\n>From here\nlast\n\n")
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(os.lseek(fd, 0, os.SEEK_CUR), 7)

    def test_append(self) -> None:
        fd = message_fd(self, b"one\n")
        deliver_to_mbox(self.disk, self.raw, fd, b"A\n")
        deliver_to_mbox(self.disk, self.raw, fd, b"B\n")
        self.assertEqual(contents(self.path), b"A\none\n\nB\none\n\n")

    def test_huge(self) -> None:
        """Many blocks, with a From line across each border."""
        message = (b"x" * 3 + b"\nFrom me\n" + b"y" * 50) * 20_000
        deliver_to_mbox(self.disk, self.raw, message_fd(self, message), PREFIX)
        self.assertEqual(contents(self.path), PREFIX + reference(message))

    def test_short_writes(self) -> None:
        disk = RealDisk()
        self.patch(disk, "write", lambda fd, data: os.write(fd, data[:7]))
        deliver_to_mbox(disk, self.raw, message_fd(self, b"hello, world\n"), PREFIX)
        self.assertEqual(contents(self.path), PREFIX + b"hello, world\n\n")

    def test_trouble_leaves_the_mbox_as_it_was(self) -> None:
        """§14.1: read or write trouble truncates back; a failed fsync, too."""
        with open(self.path, "wb") as file:
            file.write(b"old mail\n\n")
        for room in (False, True):
            disk = FullDisk(0)
            disk.room = room
            error = self.assertRaises(MboxError, deliver_to_mbox, disk, self.raw, message_fd(self, b"x" * 100), PREFIX)
            self.assertIn(b"(#4.3.0)", error.text)
            self.assertEqual(contents(self.path), b"old mail\n\n")

    def test_trouble_unlocked(self) -> None:
        """Without the lock nothing is cut off: somebody else may have written meanwhile."""
        disk = FullDisk(1, errno.ENOLCK)
        self.assertRaises(MboxError, deliver_to_mbox, disk, self.raw, message_fd(self, b"x" * 100), PREFIX)
        self.assertEqual(disk.truncated, 0)

    def test_unlockable(self) -> None:
        """§14.1: a lock failure other than "busy" means to go on unlocked."""
        disk = BusyDisk(1, errno.ENOLCK)
        deliver_to_mbox(disk, self.raw, message_fd(self, b"x\n"), b"A\n")
        self.assertEqual(contents(self.path), b"A\nx\n\n")

    def test_lock_wait(self) -> None:
        """A lock that another program lets go of in time is waited for."""
        pauses: list[float] = []
        deliver_to_mbox(
            BusyDisk(5), self.raw, message_fd(self, b"x\n"), b"A\n", clock=lambda: sum(pauses), pause=pauses.append
        )
        self.assertEqual(len(pauses), 5)
        self.assertEqual(contents(self.path), b"A\nx\n\n")

    def test_lock_timeout(self) -> None:
        """§14.1: 30 seconds, then a temporary error, and nothing is written."""
        pauses: list[float] = []
        with open(self.path, "wb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            error = self.assertRaises(
                MboxError,
                deliver_to_mbox,
                self.disk,
                self.raw,
                message_fd(self, b"x\n"),
                b"A\n",
                clock=lambda: sum(pauses),
                pause=pauses.append,
            )
        self.assertIn(b"(#4.3.0)", error.text)
        self.assertTrue(30 <= sum(pauses) < 31)
        self.assertEqual(contents(self.path), b"")

    def test_cannot_open(self) -> None:
        error = self.assertRaises(
            MboxError, deliver_to_mbox, self.disk, b"/nonexistent/mbox", message_fd(self, b"x"), PREFIX
        )
        self.assertIn(b"(#4.2.1)", error.text)

    def test_fifo(self) -> None:
        """A FIFO that nobody reads does not stop the delivery for ever (O_NDELAY)."""
        os.mkfifo(self.path)
        self.assertRaises(MboxError, deliver_to_mbox, self.disk, self.raw, message_fd(self, b"x"), PREFIX)

    def test_concurrent(self) -> None:
        """Deliveries at the same time come one after the other, none within another."""
        texts = [b"%d" % number * 300_000 + b"\n" for number in range(4)]
        fds = [message_fd(self, text) for text in texts]
        start = threading.Barrier(len(fds))

        def work(fd: int) -> None:
            start.wait()
            deliver_to_mbox(self.disk, self.raw, fd, b"A\n")

        threads = [threading.Thread(target=work, args=(fd,)) for fd in fds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(contents(self.path).split(b"\n\n")[:-1]), sorted(b"A\n" + text[:-1] for text in texts))

    def test_new_entry_is_synced(self) -> None:
        """The directory is synced when the mbox may be new, and not for every message."""
        synced: list[bytes] = []
        self.patch(self.disk, "fsync_directory", synced.append)
        for _ in range(2):
            deliver_to_mbox(self.disk, self.raw, message_fd(self, b"x\n"), b"A\n")
        self.assertEqual(synced, [os.path.dirname(self.raw)])

    def test_new_entry_comes_first(self) -> None:
        """When the delivery is killed in between, the next one finds an empty mbox, and syncs the directory again."""
        self.patch(self.disk, "fsync_directory", lambda _: self.assertEqual(contents(self.path), b""))
        deliver_to_mbox(self.disk, self.raw, message_fd(self, b"x\n"), b"A\n")

    def test_torn(self) -> None:
        """§26.5: after what a crash has left of a message, the next one starts on a line of its own."""
        for rest, between in ((b"From x\nhalf a li", b"\n\n"), (b"half\n", b"\n"), (b"\0", b"\n\n"), (b"\n\n", b"")):
            with open(self.path, "wb") as file:
                file.write(rest)
            deliver_to_mbox(self.disk, self.raw, message_fd(self, b"one\n"), PREFIX)
            self.assertEqual(contents(self.path), rest + between + PREFIX + b"one\n\n")

    def test_unreadable(self) -> None:
        """An mbox that may be written but not read gets its mail."""
        with open(self.path, "wb") as file:
            file.write(b"\n")
        self.patch(self.disk, "open", lambda path, flags, mode=0: os.open(path, forbid_reading(flags), mode))
        deliver_to_mbox(self.disk, self.raw, message_fd(self, b"x\n"), b"A\n")
        self.assertEqual(contents(self.path), b"\nA\nx\n\n")


def forbid_reading(flags: int) -> int:
    if flags & os.O_ACCMODE != os.O_WRONLY:
        raise PermissionError(errno.EACCES, "forbidden")
    return flags
