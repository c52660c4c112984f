"""The simulated disk is like a real one until something crashes, and then forgets what its docstring says."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.disk import Disk, RealDisk
from qtwist.queue.layout import create_queue, open_layout
from tests.sim.disk import Crash, Model, SimulatedDisk

NAMES = ("a", "b", "d/a", "d/b", "d", "none/a", "a/below")
FLAGS = (
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_RDONLY | os.O_DIRECTORY,
)

names = st.sampled_from(NAMES)
slots = st.integers(0, 3)
sizes = st.integers(0, 20)
data = st.binary(max_size=12)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("open"), names, st.sampled_from(FLAGS)),
        st.tuples(st.just("close"), slots),
        st.tuples(st.just("read"), slots, sizes),
        st.tuples(st.just("pread"), slots, sizes, sizes),
        st.tuples(st.just("write"), slots, data),
        st.tuples(st.just("pwrite"), slots, data, sizes),
        st.tuples(st.just("truncate"), slots, sizes),
        st.tuples(st.just("fstat"), slots),
        st.tuples(st.just("fsync"), slots),
        st.tuples(st.just("flock"), slots, st.sampled_from((fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN))),
        st.tuples(st.just("stat"), names),
        st.tuples(st.just("utime"), names, st.integers(1, 10**9)),
        st.tuples(st.just("link"), names, names),
        st.tuples(st.just("unlink"), names),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("list_directory"), st.sampled_from(("", "d", "none", "a"))),
        st.tuples(st.just("make_directory"), st.sampled_from(("d", "e", "d/a"))),
        st.tuples(st.just("make_fifo"), st.sampled_from(("f", "d/b"))),
    ),
    max_size=40,
)


def carry_out(disk: Disk, base: str, steps: list[Any]) -> list[Any]:
    """What each step gives: a value, or the number of an error."""
    opened: list[int] = []
    results: list[Any] = []
    for operation, *arguments in steps:
        try:
            results.append(_carry_out(disk, base, opened, operation, arguments))
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
    for fd in opened:
        disk.close(fd)
    return results


def _carry_out(disk: Disk, base: str, opened: list[int], operation: str, arguments: list[Any]) -> Any:
    path = f"{base}/{arguments[0]}"
    if operation == "open":
        if disk_is_fifo(disk, path):
            return None  # would wait for a writer
        opened.append(disk.open(path, arguments[1], 0o640))
        return "opened"
    if operation in {"close", "read", "pread", "write", "pwrite", "truncate", "fstat", "fsync", "flock"}:
        if arguments[0] >= len(opened):
            return None
        fd = opened.pop(arguments[0]) if operation == "close" else opened[arguments[0]]
        if operation == "flock":
            return disk.flock(fd, arguments[1] | fcntl.LOCK_NB)
        result = getattr(disk, operation)(fd, *arguments[1:])
        return described(result) if operation == "fstat" else result
    if operation in {"link", "rename"}:
        if operation == "rename" and disk_is_directory(disk, path):
            return None
        return getattr(disk, operation)(path, f"{base}/{arguments[1]}")
    if operation in {"make_directory", "make_fifo"}:
        return getattr(disk, operation)(path, 0o750)
    result = getattr(disk, operation)(path, *arguments[1:])
    if operation == "stat":
        return described(result)
    return sorted(result) if operation == "list_directory" else result


def disk_is_directory(disk: Disk, path: str) -> bool:
    return _kind(disk, path, stat.S_ISDIR)


def disk_is_fifo(disk: Disk, path: str) -> bool:
    return _kind(disk, path, stat.S_ISFIFO)


def _kind(disk: Disk, path: str, is_it: Callable[[int], bool]) -> bool:
    try:
        return is_it(disk.stat(path).st_mode)
    except OSError:
        return False


def described(status: os.stat_result) -> tuple[int, int, int]:
    """What two disks agree on (not times of day, nor the sizes and links of directories)."""
    directory = stat.S_ISDIR(status.st_mode)
    return (status.st_mode, 0 if directory else status.st_size, 0 if directory else status.st_nlink)


class LikeARealDisk(SynchronousTestCase):
    @settings(deadline=None, max_examples=150, derandomize=True)
    @given(operations)
    def test_same_results(self, steps: list[Any]) -> None:
        """Without a crash, the same operations give the same results."""
        folder = tempfile.mkdtemp()
        try:
            real = carry_out(RealDisk(), folder, steps)
        finally:
            shutil.rmtree(folder)
        disk = SimulatedDisk(lambda: 1000.0)
        disk.prepare_directories("/x")
        self.assertEqual(carry_out(disk, "/x", steps), real)

    def test_number_is_used_again(self) -> None:
        """Like ext4: when neither a name nor a descriptor is left, and not before."""
        disk = SimulatedDisk(lambda: 1000.0, Model.JOURNAL)
        fd = disk.create_exclusive("/a", 0o600)
        number = disk.fstat(fd).st_ino
        disk.unlink("/a")
        other = disk.create_exclusive("/b", 0o600)
        self.assertNotEqual(disk.fstat(other).st_ino, number)
        disk.close(fd)
        self.assertEqual(disk.fstat(disk.create_exclusive("/c", 0o600)).st_ino, number)

    def test_a_queue(self) -> None:
        """What create_queue makes, survives."""
        for model in Model:
            for seed in range(20):
                disk = SimulatedDisk(lambda: 1000.0, model)
                disk.prepare_directories("/home")
                create_queue("/home/queue", disk, 3)
                disk.crash(random.Random(seed))
                self.assertEqual(open_layout("/home/queue", disk).split, 3)
                self.assertEqual(disk.names("/home/queue/lock"), ["sendmutex", "tcpto", "trigger"])


def write_file(disk: SimulatedDisk, path: str, contents: bytes, *, sync: bool) -> None:
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    disk.write_all(fd, contents)
    if sync:
        disk.fsync(fd)
    disk.close(fd)


class Forgetting(SynchronousTestCase):
    """What is seen after many crashes is what the model allows, all of it, and nothing else."""

    def outcomes(
        self,
        story: Callable[[SimulatedDisk], None],
        look: Callable[[SimulatedDisk], Any],
        model: Model,
        count: int = 300,
    ) -> set[Any]:
        found = set()
        for seed in range(count):
            disk = SimulatedDisk(lambda: 1000.0, model)
            story(disk)
            disk.crash(random.Random(seed))
            found.add(look(disk))
        return found

    def test_contents(self) -> None:
        """Of an unsynced append, any part; what was synced stays."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"old.", sync=True)
            disk.fsync_directory("/")
            fd = disk.open("/a", os.O_WRONLY | os.O_APPEND)
            disk.write_all(fd, b"new")

        found = self.outcomes(story, lambda disk: disk.contents("/a"), Model.POSIX)
        self.assertEqual(found, {b"old.", b"old.n", b"old.ne", b"old.new", b"old.\0\0\0"})

    def test_marks(self) -> None:
        """Two marks in place: each for itself."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"TT", sync=True)
            disk.fsync_directory("/")
            fd = disk.open("/a", os.O_WRONLY)
            disk.pwrite(fd, b"D", 0)
            disk.pwrite(fd, b"D", 1)

        found = self.outcomes(story, lambda disk: disk.contents("/a"), Model.POSIX)
        self.assertEqual(found, {b"TT", b"DT", b"TD", b"DD"})

    def test_entry_apart_from_contents(self) -> None:
        """On POSIX a synced file may have no name; with a journal, it has. An unsynced file may have a name only."""

        def look(disk: SimulatedDisk) -> bytes | None:
            return disk.contents("/a") if disk.exists("/a") else None

        for model, expected in ((Model.POSIX, {None, b"x"}), (Model.JOURNAL, {b"x"})):
            self.assertEqual(self.outcomes(lambda d: write_file(d, "/a", b"x", sync=True), look, model), expected)
        for model in Model:
            found = self.outcomes(lambda d: write_file(d, "/a", b"x", sync=False), look, model)
            self.assertEqual(found, {None, b"", b"\0", b"x"})

    def test_order_of_names(self) -> None:
        """A journal keeps the order in which names were removed; POSIX keeps none."""

        def story(disk: SimulatedDisk) -> None:
            for path in ("/a", "/b"):
                write_file(disk, path, b"", sync=True)
            disk.fsync_directory("/")
            disk.unlink("/a")
            disk.unlink("/b")

        def look(disk: SimulatedDisk) -> tuple[str, ...]:
            return tuple(disk.names("/"))

        self.assertEqual(self.outcomes(story, look, Model.JOURNAL), {("a", "b"), ("b",), ()})
        self.assertEqual(self.outcomes(story, look, Model.POSIX), {("a", "b"), ("a",), ("b",), ()})

    def test_rename(self) -> None:
        """One change of two directories each, in the order of the journal or in none."""

        def story(disk: SimulatedDisk) -> None:
            disk.prepare_directories("/d")
            write_file(disk, "/a", b"", sync=True)
            disk.fsync_directory("/")
            disk.rename("/a", "/d/a")

        def look(disk: SimulatedDisk) -> tuple[bool, bool]:
            return disk.exists("/a"), disk.exists("/d/a")

        self.assertEqual(self.outcomes(story, look, Model.JOURNAL), {(True, False), (True, True), (False, True)})
        everything = {(True, False), (True, True), (False, True), (False, False)}
        self.assertEqual(self.outcomes(story, look, Model.POSIX), everything)

    def test_syncs(self) -> None:
        """sync_filesystem makes all of it last, a directory's sync its names, and so does a file's with a journal."""

        def by_filesystem(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"x", sync=False)
            disk.sync_filesystem(disk.open_directory("/"))

        def by_directory(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"x", sync=True)
            disk.fsync_directory("/")

        for story in (by_filesystem, by_directory):
            for model in Model:
                self.assertEqual(self.outcomes(story, lambda disk: disk.contents("/a"), model, 50), {b"x"})

    def test_times(self) -> None:
        """An unsynced utime may be undone."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"", sync=True)
            disk.fsync_directory("/")
            disk.utime("/a", 5000)

        self.assertEqual(self.outcomes(story, lambda disk: disk.stat("/a").st_mtime, Model.POSIX), {1000, 5000})

    def test_failed_sync(self) -> None:
        """What an fsync could not write is lost, although a second one succeeds."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"", sync=True)
            disk.fsync_directory("/")
            fd = disk.open("/a", os.O_WRONLY)
            disk.write_all(fd, b"x")
            disk.watch = fail
            self.assertRaises(OSError, disk.fsync, fd)
            disk.watch = lambda _: None
            disk.fsync(fd)
            self.assertEqual(disk.contents("/a"), b"x")

        def fail(operation: str) -> None:
            raise OSError(errno.EIO, "broken")

        self.assertIn(b"", self.outcomes(story, lambda disk: disk.contents("/a"), Model.POSIX))

    def test_written_again(self) -> None:
        """What is written after the failure lasts, and so does the rest of its page; another page may not."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"a" * 4096, sync=True)
            disk.fsync_directory("/")
            fd = disk.open("/a", os.O_WRONLY)
            disk.pwrite(fd, b"b" * 8192, 0)
            disk.watch = fail
            self.assertRaises(OSError, disk.fsync, fd)
            disk.watch = lambda _: None
            disk.pwrite(fd, b"c", 8000)
            disk.fsync(fd)

        def fail(operation: str) -> None:
            raise OSError(errno.EIO, "broken")

        second = b"b" * (8000 - 4096) + b"c" + b"b" * 191
        outcomes = self.outcomes(story, lambda disk: disk.contents("/a"), Model.POSIX)
        self.assertIn(b"a" * 4096 + second, outcomes)
        self.assertEqual({one[4096:] for one in outcomes}, {second})

    def test_cut_off(self) -> None:
        """A file that is cut off to what it was has lost nothing, and takes more (as an mbox does)."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"old", sync=True)
            disk.fsync_directory("/")
            fd = disk.open("/a", os.O_WRONLY | os.O_APPEND)
            disk.write_all(fd, b"refused" * 1000)
            disk.watch = fail
            self.assertRaises(OSError, disk.fsync, fd)
            disk.watch = lambda _: None
            disk.truncate(fd, 3)
            disk.write_all(fd, b"new")
            disk.fsync(fd)

        def fail(operation: str) -> None:
            raise OSError(errno.EIO, "broken")

        self.assertEqual(self.outcomes(story, lambda disk: disk.contents("/a"), Model.POSIX), {b"oldnew"})

    def test_number_has_one_owner(self) -> None:
        """When a freed number has a new file, the former file's name does not come back with it."""

        def story(disk: SimulatedDisk) -> None:
            write_file(disk, "/a", b"old", sync=True)
            disk.fsync_directory("/")
            disk.unlink("/a")
            write_file(disk, "/b", b"new", sync=True)

        self.assertEqual(self.outcomes(story, lambda disk: tuple(disk.names("/")), Model.JOURNAL), {("b",)})

    def test_stop(self) -> None:
        """After the stop, nothing reaches the disk; the end of the processes alone loses nothing."""
        disk = SimulatedDisk(lambda: 1000.0)
        fd = disk.create_exclusive("/a", 0o600)
        disk.write_all(fd, b"x")
        disk.dead = True
        self.assertRaises(Crash, disk.write, fd, b"y")
        self.assertRaises(Crash, disk.close, fd)
        disk.kill()
        self.assertEqual(disk.contents("/a"), b"x")
        self.assertRaises(OSError, disk.write, fd, b"y")

    def test_full(self) -> None:
        disk = SimulatedDisk(lambda: 1000.0)
        fd = disk.create_exclusive("/a", 0o600)
        disk.full = 3
        error = self.assertRaises(OSError, disk.write_all, fd, b"12345")
        self.assertEqual((error.errno, disk.contents("/a")), (errno.ENOSPC, b"123"))
