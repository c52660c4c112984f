"""A value made from control files, read again only when one of them has changed."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from qtwist.files.watching import DirectoryWatch

if TYPE_CHECKING:
    from qtwist.control import Control

T = TypeVar("T")

#: A watch hears when its directory is moved or removed, but not when one above it is, or when another file system is
#: mounted there: that is looked at once in so many seconds.
_INTERVAL = 1.0

_watches: WeakKeyDictionary[Control, _Watch] = WeakKeyDictionary()


class _OneLook:
    """Within ``with one_look:``, each directory is asked once whether anything has changed.

    For what runs without a pause, as the answer to one piece of a client's input does: a dozen values are wanted there
    within a millisecond. A change made meanwhile is noticed the next time.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.number = 0  # another one for each look

    def __enter__(self) -> None:
        if not self.depth:
            self.number += 1
        self.depth += 1

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1


one_look = _OneLook()


class _Watch:
    """Tells whether anything has changed in the directory of a :class:`Control`, where the system can."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._watch: DirectoryWatch | None = None
        self._opened = 0  # how many there were
        self._look_again = 0.0  # when to see whether the directory is still the one that is watched
        self._hopeless = False
        self._look = 0  # the number of the look with which the answer was found
        self._answer: tuple[int, int] | None = None

    def version(self) -> tuple[int, int] | None:
        """Another value whenever there was a change since the last time; None when nobody knows. Within
        :data:`one_look` it is what was found at first."""
        if not one_look.depth:
            return self._version()
        if self._look != one_look.number:
            self._answer = self._version()
            self._look = one_look.number
        return self._answer

    def _version(self) -> tuple[int, int] | None:
        if self._hopeless:
            return None
        try:
            watch = self._watch
            now = time.monotonic()
            if watch is None or now >= self._look_again:
                self._look_again = now + _INTERVAL
                status = os.stat(self._directory)
                if watch is None or (status.st_ino, status.st_dev) != (watch.inode, watch.device):
                    self._watch = watch = DirectoryWatch(self._directory)
                    self._opened += 1
        except FileNotFoundError:
            return None
        except OSError:
            self._hopeless = True
            return None
        version = watch.version()
        if version is None:
            self._watch = None
            return None
        return self._opened, version

    def sees(self, path: str) -> bool:
        """Whether a change of this file would be noticed: it is no link, mounted from nowhere else, and has no other
        name."""
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return (
            self._watch is not None
            and stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and status.st_dev == self._watch.device
        )


class Watched(Generic[T]):
    """`read` makes the value from the control files called `names`; it runs when their stamps are new.

    What `read` raises comes out of :meth:`get`, each time until the files are right again.
    """

    def __init__(self, control: Control, names: tuple[str, ...], read: Callable[[], T]) -> None:
        self._control = control
        self._names = names
        self._read = read
        self._known: tuple[list[object], T] | None = None
        if control not in _watches:
            _watches[control] = _Watch(control.directory)
        self._watch = _watches[control]
        # With this version of the directory, the value is the one that is known; None when that has to be looked up.
        self._version: tuple[int, int] | None = None

    def get(self) -> T:
        """The value as the files have it now; what `read` raises, and ControlError for a file that cannot be seen."""
        version = self._watch.version()
        known = self._known
        if known is not None and version is not None and version == self._version:
            return known[1]
        self._version = None
        # The stamps are older than what is read: a change in between is noticed the next time.
        stamps: list[object] = [self._control.stamp(name) for name in self._names]
        if known is None or known[0] != stamps:
            self._known = known = stamps, self._read()
        if version is not None and all(self._watch.sees(self._control.path(name)) for name in self._names):
            self._version = version
        return known[1]
