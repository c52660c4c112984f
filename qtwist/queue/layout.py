"""Where everything lies in a queue directory, and how an empty one is made (spec/qmail.md §1.4, §5.1)."""

from __future__ import annotations

import contextlib
import os
import stat

import attrs

from qtwist.files.disk import Disk, RealDisk

#: qmail's conf-split: how many subdirectories a new queue has.
DEFAULT_SPLIT = 23

TCPTO_SIZE = 1024

_FLAT = ("pid", "intd", "todo", "bounce", "lock")
_SPLIT = ("mess", "info", "local", "remote")
_MODES = {
    "": 0o750,
    "pid": 0o700,
    "intd": 0o700,
    "todo": 0o750,
    "bounce": 0o700,
    "lock": 0o750,
    "mess": 0o750,
    "info": 0o700,
    "local": 0o700,
    "remote": 0o700,
}

MESS_MODE = 0o644
TODO_MODE = 0o644
PRIVATE_MODE = 0o600


class LayoutError(Exception):
    """A queue directory is not one. str() is one line that names the path, what is wrong and what is expected."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@attrs.frozen
class Layout:
    """The paths of a queue: `directory`, and the number of subdirectories of mess, info, local and remote."""

    directory: str
    split: int = DEFAULT_SPLIT

    def name(self, room: str, number: int) -> str:
        """The path below the queue directory, as warnings show it: ``mess/4/1234``, ``todo/1234``."""
        return f"{room}/{number % self.split}/{number}" if room in _SPLIT else f"{room}/{number}"

    def path(self, room: str, number: int) -> str:
        """The whole path of a message's file in mess, info, local, remote, intd, todo or bounce."""
        return f"{self.directory}/{self.name(room, number)}"

    def holder(self, room: str, number: int) -> str:
        """The directory that :meth:`path` lies in."""
        return f"{self.directory}/{room}/{number % self.split}" if room in _SPLIT else f"{self.directory}/{room}"

    def room(self, room: str, part: int | None = None) -> str:
        """A directory, or subdirectory number `part` of it."""
        return f"{self.directory}/{room}" if part is None else f"{self.directory}/{room}/{part}"

    def lock(self, name: str) -> str:
        """sendmutex, trigger, tcpto or tlsseen."""
        return f"{self.directory}/lock/{name}"


def message_number(name: str) -> int | None:
    """The number that a file name stands for; None when it is not purely decimal (and to be ignored, §9.4)."""
    return int(name) if name.isascii() and name.isdecimal() and len(name) <= 20 else None


def open_layout(directory: str, disk: Disk) -> Layout:
    """The layout of an existing queue, split as its mess/ is. LayoutError when something is missing or wrong."""
    _expect_directory(disk, directory)
    for room in (*_FLAT, *_SPLIT):
        _expect_directory(disk, f"{directory}/{room}")
    split = _detect_split(disk, f"{directory}/mess")
    for room in _SPLIT:
        for part in range(split):
            _expect_directory(disk, f"{directory}/{room}/{part}")
    _expect_one_todo(disk, directory)
    trigger = f"{directory}/lock/trigger"
    if not stat.S_ISFIFO(_status(disk, trigger, "a FIFO").st_mode):
        raise LayoutError(trigger, "is not a FIFO")
    return Layout(directory, split)


def check_access(layout: Layout) -> None:
    """LayoutError when this process may not list, enter and change each directory of the queue, or the disk is
    read-only: a queue manager that cannot remove what it has delivered would deliver it for ever."""
    parts = [layout.room(room, part) for room in _SPLIT for part in range(layout.split)]
    for path in (*map(layout.room, _FLAT), *parts):
        if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            read_only = os.statvfs(path).f_flag & os.ST_RDONLY
            problem = "is on a read-only disk" if read_only else f"user id {os.geteuid()} may not read and write it"
            raise LayoutError(path, f"{problem}; expected a queue to work on")


def create_queue(directory: str, disk: Disk | None = None, split: int = DEFAULT_SPLIT) -> Layout:
    """Make an empty queue (§1.4), durably; what exists of it already stays as it is.

    The parent directory must exist. OSError when the disk fails, LayoutError when something else is in the way.
    """
    disk = RealDisk() if disk is None else disk
    made = []
    for room, mode in _MODES.items():
        made.append(_make_directory(disk, f"{directory}/{room}" if room else directory, mode))
        if room in _SPLIT:
            made += [_make_directory(disk, f"{directory}/{room}/{part}", mode) for part in range(split)]
    _make_file(disk, f"{directory}/lock/sendmutex", 0o600, b"")
    _make_file(disk, f"{directory}/lock/tcpto", 0o644, bytes(TCPTO_SIZE))
    with contextlib.suppress(FileExistsError):
        disk.make_fifo(f"{directory}/lock/trigger", 0o622)
    # The queue syncs the directories that it changes, never those above them: they are made to last here.
    for path in made:
        disk.fsync_directory(path)
    disk.fsync_directory(os.path.dirname(directory) or ".")
    return open_layout(directory, disk)


def _make_directory(disk: Disk, path: str, mode: int) -> str:
    try:
        disk.make_directory(path, mode)
    except FileExistsError:
        _expect_directory(disk, path)
    return path


def _make_file(disk: Disk, path: str, mode: int, contents: bytes) -> None:
    try:
        fd = disk.create_exclusive(path, mode)
    except FileExistsError:
        return
    try:
        disk.write_all(fd, contents)
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _detect_split(disk: Disk, mess: str) -> int:
    try:
        names = disk.list_directory(mess)
    except OSError as error:
        raise LayoutError(mess, f"{error.strerror}; expected a directory that can be read") from error
    parts = {number for number in map(message_number, names) if number is not None}
    if not parts:
        raise LayoutError(mess, "has no numbered subdirectories; expected 0, 1, 2, ...")
    missing = set(range(max(parts) + 1)) - parts if max(parts) < 100_000 else {max(parts) - 1}
    if missing:
        raise LayoutError(mess, f"has a subdirectory {max(parts)} but no subdirectory {min(missing)}")
    return len(parts)


def _expect_one_todo(disk: Disk, directory: str) -> None:
    """Messages in todo/0/ to todo/22/, where the big-todo patch has them, would be waiting there for ever."""
    path = f"{directory}/todo/0"
    try:
        split = stat.S_ISDIR(disk.stat(path).st_mode)
    except OSError:
        split = False
    if split:
        raise LayoutError(
            path,
            "is a directory, as with the big-todo patch of qmail; expected messages only: let its qmail-send empty "
            "todo/ and intd/, then remove the directories in them",
        )


def _expect_directory(disk: Disk, path: str) -> None:
    if not stat.S_ISDIR(_status(disk, path, "a directory").st_mode):
        raise LayoutError(path, "is not a directory")


def _status(disk: Disk, path: str, expected: str) -> os.stat_result:
    try:
        return disk.stat(path)
    except OSError as error:
        raise LayoutError(path, f"{error.strerror}; expected {expected}") from error
