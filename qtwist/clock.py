"""The reactor's timers when somebody sets the clock.

Twisted's timers go by the wall clock. When that is set back by a day, whatever waits for a timer waits a day longer,
and a call that was only to happen in the next turn does, too: without this, all mail would wait with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.logger import Logger

#: Seconds between two looks at the clock.
INTERVAL = 1.0

#: Seconds by which a clock is off that has been set; what is less is how a clock is corrected little by little.
JUMP = 0.5

_log = Logger()


def shift(reactor: Any, seconds: float) -> None:
    """Have all timers of `reactor` run out as if its clock had never been set ahead by so many seconds (back: < 0)."""
    for call in reactor.getDelayedCalls():
        call.delay(seconds)


class ClockWatch(Service):  # type: ignore[misc]  # Twisted's is not typed
    """Notices that the wall clock has been set, and moves the reactor's timers with it.

    A thread looks once in :data:`INTERVAL` seconds, since a timer would not do. `wall` and `steady` tell the time in
    seconds: the one that can be set, and one that cannot.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reactor = reactor
        self._wall = wall
        self._steady = steady
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._offset = wall() - steady()

    def startService(self) -> None:
        super().startService()
        self._offset = self._wall() - self._steady()
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="clock", daemon=True)
        self._thread.start()

    def stopService(self) -> None:
        super().stopService()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Compare the clocks; called in any thread."""
        offset = self._wall() - self._steady()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) >= JUMP:
            self._reactor.callFromThread(self._jumped, jump)

    def _jumped(self, seconds: float) -> None:
        _log.warn(
            "the clock was set {direction} by {seconds:.1f} seconds; timers go on as before",
            direction="ahead" if seconds > 0 else "back",
            seconds=abs(seconds),
        )
        shift(self._reactor, seconds)
