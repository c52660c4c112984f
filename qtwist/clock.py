"""The reactor's timers when somebody sets the clock.

Twisted's timers go by the wall clock. When that is set back by a day, whatever waits for a timer waits a day longer,
and a call that was only to happen in the next turn does, too: without this, all mail would wait with it. When it is
set ahead, all timers run out at once.
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

#: Seconds by which the reactor's clock may be off before it is corrected.
CORRECTED = 0.001

_log = Logger()


def shift(reactor: Any, seconds: float) -> None:
    """Have all timers of `reactor` run out as if its clock had never been set ahead by so many seconds (back: < 0)."""
    for call in reactor.getDelayedCalls():
        call.delay(seconds)


class ClockWatch(Service):  # type: ignore[misc]  # Twisted's is not typed
    """Gives the reactor a clock that is set between two of its turns only, together with all its timers.

    While it runs, ``reactor.seconds`` goes on steadily; a thread looks once in :data:`INTERVAL` seconds whether the
    wall clock still says the same. If it does not, the reactor is told, and then both are moved at once: so no timer
    is ever made by one clock and read by another. `wall` and `steady` tell the time in seconds: the one that can be
    set, and one that cannot.
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
        self._in_use = False  # whether the reactor goes by our clock

    def seconds(self) -> float:
        """The time: the wall clock's, as long as that is not set."""
        return self._steady() + self._offset

    def startService(self) -> None:
        super().startService()
        self._offset = self._wall() - self._steady()
        self._reactor.seconds = self.seconds
        self._in_use = True
        self._ended.clear()
        self._thread = threading.Thread(target=self._watch, name="clock", daemon=True)
        self._thread.start()

    def stopService(self) -> None:
        super().stopService()
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            # The reactor gets its own clock again, which may have been set a moment ago.
            self._move()
            self._in_use = False
            del self._reactor.seconds

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.look()

    def look(self) -> None:
        """Compare the clocks; called in any thread."""
        if abs(self._off()) >= CORRECTED:
            self._reactor.callFromThread(self._move)

    def _off(self) -> float:
        """How far the wall clock is ahead of the reactor's."""
        return self._wall() - self.seconds()

    def _move(self) -> None:
        seconds = self._off()
        if not self._in_use or abs(seconds) < CORRECTED:
            return
        self._offset += seconds
        if abs(seconds) < JUMP:
            return
        _log.warn(
            "the clock was set {direction} by {seconds:.1f} seconds; timers go on as before",
            direction="ahead" if seconds > 0 else "back",
            seconds=abs(seconds),
        )
        shift(self._reactor, seconds)
