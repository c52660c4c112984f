"""A value made from control files, read again only when one of them has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from qtwist.control import Control

T = TypeVar("T")


class Watched(Generic[T]):
    """`read` makes the value from the control files called `names`; it runs when their stamps are new.

    What `read` raises comes out of :meth:`get`, each time until the files are right again.
    """

    def __init__(self, control: Control, names: tuple[str, ...], read: Callable[[], T]) -> None:
        self._control = control
        self._names = names
        self._read = read
        self._known: tuple[object, T] | None = None

    def get(self) -> T:
        stamp = self._control.stamp
        stamps = [stamp(name) for name in self._names]
        if self._known is not None and self._known[0] == stamps:
            return self._known[1]
        # The stamps are older than what is read: a change in between is noticed the next time.
        value = self._read()
        self._known = (stamps, value)
        return value
