"""maildir delivery: spec/qmail.md §14.2."""

from __future__ import annotations

import errno
import os
import re

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files import maildir
from qtwist.files.disk import Path, RealDisk
from qtwist.files.maildir import MaildirError, deliver_to_maildir, unique_name

PREFIX = b"Return-Path: <joe@x>\nDelivered-To: me@y\n"
NOW = 1_700_000_000.25


class FailingDisk(RealDisk):
    """Fails at the `at`-th call, counted from 0, and writes down the calls by name."""

    def __init__(self, at: int = -1) -> None:
        super().__init__()
        self.at = at
        self.calls: list[str] = []

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.at + 1:
            raise OSError(errno.EIO, "Input/output error")

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        self._count("open")
        return super().open(path, flags, mode)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self._count("pread")
        return super().pread(fd, size, offset)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._count("write")
        return super().write(fd, data)

    def fsync(self, fd: int) -> None:
        self._count("fsync")
        super().fsync(fd)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._count("close")

    def link(self, source: Path, target: Path) -> None:
        self._count("link")
        super().link(source, target)


class MaildirTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.mktemp()
        self.raw = os.fsencode(self.path) + b"/"
        for name in ("", "tmp", "new", "cur"):
            os.mkdir(os.path.join(self.path, name))
        self.disk = RealDisk()

    def message(self, text: bytes) -> int:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(text)
        fd = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd

    def listing(self) -> dict[str, list[str]]:
        return {name: os.listdir(os.path.join(self.path, name)) for name in ("tmp", "new", "cur")}

    def deliver(self, text: bytes, disk: RealDisk | None = None) -> bytes:
        return deliver_to_maildir(disk or self.disk, self.raw, self.message(text), PREFIX, NOW, b"mx.test")

    def test_delivery(self) -> None:
        """§14.2: the two lines and the message as it is: no From quoting, no LF added, mode 0600, tmp/ empty."""
        fd = self.message(b"Subject: x\n\nFrom me\nno end")
        os.lseek(fd, 3, os.SEEK_SET)
        path = deliver_to_maildir(self.disk, self.raw, fd, PREFIX, NOW, b"mx.test")
        with open(path, "rb") as file:
            self.assertEqual(file.read(), PREFIX + b"Subject: x\n\nFrom me\nno end")
            self.assertEqual(os.fstat(file.fileno()).st_mode & 0o777, 0o600)
        self.assertEqual(self.listing(), {"tmp": [], "new": [os.fsdecode(os.path.basename(path))], "cur": []})
        self.assertEqual(os.lseek(fd, 0, os.SEEK_CUR), 3)

    def test_sizes(self) -> None:
        for size in (0, 1, 256 * 1024, 256 * 1024 + 1, 3_000_000):
            with open(self.deliver(b"z" * size), "rb") as file:
                self.assertEqual(file.read(), PREFIX + b"z" * size)

    def test_names(self) -> None:
        """Time, delivery id, host; no two alike in one instant; no slash, and no colon before the flags."""
        first, second = (unique_name(NOW, b"a/b:c") for _ in range(2))
        self.assertNotEqual(first, second)
        self.assertTrue(re.fullmatch(rb"1700000000\.M250000P%dQ\d+\.a\\057b\\072c" % os.getpid(), first), first)

    def test_name_taken(self) -> None:
        """A name that somebody has is not overwritten; another one is taken."""
        names = [b"taken", b"free"]
        self.patch(maildir, "unique_name", lambda now, hostname: names.pop(0))
        with open(os.path.join(self.path, "tmp", "taken"), "wb") as file:
            file.write(b"other")
        self.deliver(b"x")
        self.assertEqual(self.listing(), {"tmp": ["taken"], "new": ["free"], "cur": []})

    def test_no_name(self) -> None:
        """Three tries, then a temporary error."""
        tries: list[float] = []
        self.patch(maildir, "unique_name", lambda now, hostname: tries.append(now) or b"taken")
        with open(os.path.join(self.path, "tmp", "taken"), "wb"):
            pass
        error = self.assertRaises(MaildirError, self.deliver, b"x")
        self.assertIn(b"(#4.3.0)", error.text)
        self.assertEqual(len(tries), 3)

    def test_no_maildir(self) -> None:
        """§14.2: no maildir there is #4.2.1."""
        for path in (b"/nonexistent/", os.fsencode(self.path) + b"/cur/"):
            error = self.assertRaises(
                MaildirError, deliver_to_maildir, self.disk, path, self.message(b"x"), PREFIX, NOW, b"h"
            )
            self.assertIn(b"(#4.2.1)", error.text)

    def test_order(self) -> None:
        """Contents, then the name in new/, then the directory: each is on disk before the next."""
        disk = FailingDisk()
        self.deliver(b"x", disk)
        # The directory is opened, synced and closed.
        expected = ["open", "pread", "write", "pread", "fsync", "close", "link", "open", "fsync", "close"]
        self.assertEqual(disk.calls, expected)

    def test_any_failure(self) -> None:
        """Whichever call fails: a temporary error, and nothing is left or delivered."""
        good = FailingDisk()
        os.unlink(self.deliver(b"x", good))
        for at in range(len(good.calls)):
            error = self.assertRaises(MaildirError, self.deliver, b"x", FailingDisk(at))
            self.assertIn(b"(#4.3.0)", error.text)
            self.assertEqual(self.listing(), {"tmp": [], "new": [], "cur": []}, f"call {at}")
