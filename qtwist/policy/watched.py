"""A value made from control files, read again only when one of them has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from qtwist.control import Control

T = TypeVar("T")

#: A directory that was changed this long ago (ns) gets another time stamp when it is changed again, on any file system.
_SETTLED = 2_000_000_000


class Watched(Generic[T]):
    """`read` makes the value from the control files called `names`; it runs when their stamps are new.

    What `read` raises comes out of :meth:`get`, each time until the files are right again.
    """

    def __init__(self, control: Control, names: tuple[str, ...], read: Callable[[], T]) -> None:
        self._control = control
        self._names = names
        self._read = read
        self._known: tuple[dict[str, object], T] | None = None
        # Most files that could be there are not: they are looked for only when something came into the directory, or
        # left it. Its time stamp then, None while that says nothing.
        self._directory: int | None = None

    def get(self) -> T:
        """The value as the files have it now; what `read` raises, and ControlError for a file that cannot be seen."""
        stamp = self._control.stamp
        known = self._known
        directory = self._directory_stamp()
        if known is not None:
            stamps, value = known
            if directory is not None and directory == self._directory:
                # A file has a stamp of None when it is not there.
                if all(one is None or stamp(name) == one for name, one in stamps.items()):
                    return value
            elif stamps == {name: stamp(name) for name in self._names}:
                self._directory = None if self._may_appear() else directory
                return value
        # The stamps are older than what is read: a change in between is noticed the next time.
        stamps = {name: stamp(name) for name in self._names}
        value = self._read()
        self._known = stamps, value
        self._directory = None if self._may_appear() else directory
        return value

    def _directory_stamp(self) -> int | None:
        try:
            modified = os.stat(self._control.directory).st_mtime_ns
        except OSError:
            return None
        return modified if time.time_ns() - modified > _SETTLED else None

    def _may_appear(self) -> bool:
        """Whether a missing file can come without a change of the directory: behind a link that leads nowhere."""
        return any(os.path.islink(self._control.path(name)) for name in self._names)
