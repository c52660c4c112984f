"""What the tests of the queue share: a queue to try things in, and disks that fail and count."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.files.disk import Disk, RealDisk
from qtwist.queue.layout import Layout, create_queue

OPERATIONS = tuple(
    name for name in vars(Disk) if not name.startswith("_") and callable(getattr(Disk, name)) and name != "write_all"
)
"""What a disk can be asked. write_all is made of writes."""


class WatchedDisk(RealDisk):
    """The real disk; `watch` is called with the name of every operation before it is done, and may raise."""

    def __init__(self, watch: Callable[[str], None]) -> None:
        super().__init__()
        self.watch = watch


def _watched(name: str) -> Callable[..., Any]:
    def operation(self: WatchedDisk, *arguments: Any) -> Any:
        if name == "close":
            # A descriptor is gone whatever close says.
            os.close(*arguments)
            return self.watch(name)
        self.watch(name)
        return getattr(super(WatchedDisk, self), name)(*arguments)

    return operation


for _name in OPERATIONS:
    setattr(WatchedDisk, _name, _watched(_name))


class Trouble:
    """A watch that fails at call number `first`, and at all later ones when `lasting`."""

    def __init__(self, first: int, lasting: bool = False, code: int = errno.EIO) -> None:
        self.first = first
        self.lasting = lasting
        self.code = code
        self.calls = 0
        self.struck = ""

    def __call__(self, name: str) -> None:
        self.calls += 1
        if self.calls == self.first or (self.lasting and self.calls > self.first):
            self.struck = self.struck or name
            raise OSError(self.code, os.strerror(self.code), name)


class CountingDisk(WatchedDisk):
    """The real disk, with every operation counted in `counts`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        super().__init__(lambda name: self.counts.update([name]))


def note_syncs(case: SynchronousTestCase | TestCase, directory: str) -> list[str]:
    """What this process syncs from now on, in order, as paths below `directory`; between them, what gets a name."""
    done: list[str] = []
    root = os.path.realpath(directory)
    fsync = os.fsync

    def noting_fsync(fd: int) -> None:
        done.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root))
        fsync(fd)

    def noting(name: str, call: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def called(source: Any, target: Any) -> None:
            call(source, target)
            done.append(f"{name} {os.path.basename(os.fsdecode(target))}")

        return called

    case.patch(os, "fsync", noting_fsync)
    for name in ("link", "rename", "replace"):
        case.patch(os, name, noting(name, getattr(os, name)))
    return done


def open_files(directory: str) -> list[str]:
    """What the descriptors of this process are open on below `directory`."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [target for target in found if target.startswith(os.path.realpath(directory) + "/")]


def descriptors() -> set[str]:
    """The descriptors that this process has open, with what they are of.

    Watches of directories that other tests have left (:mod:`qtwist.files.watching`) are not among them: they close when
    Python looks for garbage, which may be at any time.
    """
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink('/proc/self/fd/' + fd)}")
    return {one for one in found if not one.endswith("anon_inode:inotify")}


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)


def files_of(layout: Layout) -> set[str]:
    """Every file of the queue except those in lock/, as paths below the queue directory."""
    found = set()
    for where, _, names in os.walk(layout.directory):
        below = os.path.relpath(where, layout.directory)
        found.update(f"{below}/{name}" for name in names if below != "lock")
    return found


def put_message(layout: Layout, body: bytes, **rooms: bytes) -> int:
    """A message laid out by hand (§5.2): mess, and the given rooms' files, todo being the same file as intd."""
    path = layout.room("pid") + "/put"
    write(path, body, 0o644)
    number = os.stat(path).st_ino
    os.rename(path, layout.path("mess", number))
    for room, contents in rooms.items():
        if room == "todo" and "intd" in rooms:
            os.link(layout.path("intd", number), layout.path("todo", number))
        else:
            write(layout.path(room, number), contents)
    return number


def make_queue(test: SynchronousTestCase, split: int = 23) -> Layout:
    """A new, empty queue."""
    return create_queue(os.path.join(tempfile.mkdtemp(dir=os.path.dirname(test.mktemp())), "queue"), split=split)


def queue_log(case: SynchronousTestCase) -> list[str]:
    """What the queue's parts log from here on, while the test runs."""
    lines: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "qtwist.queue":
            lines.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(note)
    case.addCleanup(globalLogPublisher.removeObserver, note)
    return lines
