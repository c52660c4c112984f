"""The seam to the disk: what RealDisk promises (design §4)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import RealDisk


class StingyDisk(RealDisk):
    """Writes three octets at a time."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return super().write(fd, data[:3])


class RealDiskTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = RealDisk()
        self.directory = self.mktemp()
        os.makedirs(self.directory)
        self.path = os.path.join(self.directory, "file")

    def create(self, mode: int = 0o600) -> int:
        fd = self.disk.create_exclusive(self.path, mode)
        self.addCleanup(os.close, fd)
        return fd

    def test_new_file(self) -> None:
        fd = self.create(0o640)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o640)
        self.assertFalse(os.get_inheritable(fd))
        self.assertRaises(FileExistsError, self.disk.create_exclusive, self.path, 0o640)

    def test_a_link_in_the_way_is_not_followed(self) -> None:
        os.symlink("elsewhere", self.path)
        self.assertRaises(FileExistsError, self.disk.create_exclusive, self.path, 0o600)

    def test_contents(self) -> None:
        fd = self.create()
        self.assertEqual(self.disk.write(fd, b"Tjoe@x\0"), 7)
        self.assertEqual(self.disk.pwrite(fd, b"D", 0), 1)
        self.assertEqual(self.disk.pread(fd, 100, 0), b"Djoe@x\0")
        self.disk.truncate(fd, 4)
        again = self.disk.open_read(self.path)
        self.assertEqual(
            [self.disk.read(again, 3), self.disk.read(again, 3), self.disk.read(again, 3)], [b"Djo", b"e", b""]
        )
        self.disk.close(again)
        self.assertEqual(self.disk.fstat(fd).st_size, 4)

    def test_write_all_goes_on_until_all_is_written(self) -> None:
        self.disk = StingyDisk()
        fd = self.create()
        self.disk.write_all(fd, b"more than three")
        self.disk.write_all(fd, b"")
        self.assertEqual(os.pread(fd, 100, 0), b"more than three")

    def test_names(self) -> None:
        self.create()
        other = self.path + "-2"
        self.disk.link(self.path, other)
        self.assertRaises(FileExistsError, self.disk.link, self.path, other)
        self.assertEqual(self.disk.stat(other).st_nlink, 2)
        self.disk.rename(other, self.path + "-3")
        self.assertEqual(sorted(self.disk.list_directory(self.directory)), ["file", "file-3"])
        self.disk.unlink(self.path)
        self.assertEqual(self.disk.list_directory(os.fsencode(self.directory)), ["file-3"])
        self.assertRaises(FileNotFoundError, self.disk.unlink, self.path)

    def test_times(self) -> None:
        self.create()
        self.disk.utime(self.path, 1234567890.5)
        self.assertEqual(self.disk.stat(self.path).st_mtime, 1234567890.5)

    def test_modes_do_not_depend_on_the_umask(self) -> None:
        self.addCleanup(os.umask, os.umask(0o077))
        self.disk.make_fifo(self.path, 0o622)
        self.disk.make_directory(self.path + "-d", 0o755)
        status = os.stat(self.path)
        self.assertTrue(stat.S_ISFIFO(status.st_mode))
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o622)
        self.assertEqual(stat.S_IMODE(os.stat(self.path + "-d").st_mode), 0o755)

    def test_lock(self) -> None:
        fd = self.create()
        other = self.disk.open_read(self.path)
        self.disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.assertRaises(BlockingIOError, self.disk.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.disk.close(other)

    def test_syncs(self) -> None:
        self.disk.fsync(self.create())
        self.disk.fsync_directory(self.directory)
        self.assertRaises(FileNotFoundError, self.disk.fsync_directory, self.directory + "/none")
        self.assertRaises(NotADirectoryError, self.disk.fsync_directory, self.path)

    def test_syncs_reach_the_system(self) -> None:
        """fdatasync is enough for a file whose size stays."""
        calls: list[tuple[str, str]] = []
        for name in ("fsync", "fdatasync"):
            self.patch(os, name, lambda fd, name=name: calls.append((name, os.readlink(f"/proc/self/fd/{fd}"))))
        fd = self.create()
        self.disk.fsync(fd)
        self.disk.sync_data(fd)
        self.disk.fsync_directory(self.directory)
        file, directory = os.path.realpath(self.path), os.path.realpath(self.directory)
        self.assertEqual(calls, [("fsync", file), ("fdatasync", file), ("fsync", directory)])

    def test_sync_of_the_file_system(self) -> None:
        if not self.disk.can_sync_filesystem:
            self.skipTest("syncfs does not tell of errors here (Linux 5.8 does)")
        fd = self.disk.open_directory(self.directory)
        self.disk.sync_filesystem(fd)
        self.disk.close(fd)
        error = self.assertRaises(OSError, self.disk.sync_filesystem, fd)
        self.assertEqual(error.errno, errno.EBADF)
