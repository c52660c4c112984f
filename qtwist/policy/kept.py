"""A value made from control files that outlives their going wrong: what was right last is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from twisted.logger import Logger

from qtwist.control import ControlError

if TYPE_CHECKING:
    from qtwist.control import Control

T = TypeVar("T")

_log = Logger(namespace="qtwist.policy")


class Kept(Generic[T]):
    """Like :class:`~qtwist.policy.watched.Watched`; but where `read` raises ControlError, the value stays what it was,
    and the log says so, once for each state of the files. Before there was a value, the error comes out."""

    def __init__(self, control: Control, names: tuple[str, ...], read: Callable[[], T]) -> None:
        self._control = control
        self._names = names
        self._read = read
        self._seen: object = None  # the stamps of what was read last, or the trouble there was in place of them
        self._value: tuple[T] | None = None

    def get(self) -> T:
        """The value; ControlError while there never was one."""
        seen: object = None
        try:
            seen = [self._control.stamp(name) for name in self._names]
            if self._value is None or seen != self._seen:
                self._value = (self._read(),)
                self._seen = seen
        except ControlError as error:
            if self._value is None:
                raise
            trouble = seen or str(error)
            if self._seen != trouble:
                _log.error("{error}; what was there before goes on counting", error=error)
            self._seen = trouble
        return self._value[0]
