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
        self._stamps: object = None
        self._value: tuple[T] | None = None

    def get(self) -> T:
        """The value; ControlError while there never was one."""
        try:
            stamps: object = [self._control.stamp(name) for name in self._names]
            if stamps == self._stamps and self._value is not None:
                return self._value[0]
            value = self._read()
        except ControlError as error:
            if self._value is None:
                raise
            if self._stamps != str(error):
                _log.error("{error}; what was there before goes on counting", error=error)
            self._stamps = str(error)
            return self._value[0]
        self._stamps = stamps
        self._value = (value,)
        return value
