"""Tests of qtwist.clock: timers when somebody sets the clock."""

from __future__ import annotations

import threading
import time

from twisted.internet import reactor
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist import clock
from qtwist.clock import ClockWatch, shift

DAY = 86400.0


class SetClock(Clock):
    """A clock that can be set, with timers that go by it, as Twisted's reactors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.rightNow = 100 * DAY
        self.turns: list[tuple] = []

    def callFromThread(self, function, *arguments) -> None:
        self.turns.append((function, arguments))

    def turn(self) -> None:
        turns, self.turns = self.turns, []
        for function, arguments in turns:
            function(*arguments)
        self.advance(0)


class Watching(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SetClock()
        self.steady = 5.0
        self.wall = self.clock.rightNow
        self.watch = ClockWatch(self.clock, wall=lambda: self.wall, steady=lambda: self.steady)
        self.patch(self.watch, "_watch", lambda: None)  # who looks is the test
        self.watch.startService()
        self.addCleanup(self.watch.stopService)
        self.called: list[str] = []

    def go_by(self, seconds: float) -> None:
        """Time goes by, on both clocks."""
        self.steady += seconds
        self.wall += seconds
        self.clock.advance(0)
        self.watch.look()
        self.clock.turn()

    def test_set_back(self) -> None:
        """A timer of a minute takes a minute, not a day and a minute."""
        self.clock.callLater(60, self.called.append, "a minute")
        self.wall -= DAY
        self.go_by(1)
        self.go_by(58)
        self.assertEqual(self.called, [])
        self.go_by(1)
        self.assertEqual(self.called, ["a minute"])

    def test_set_ahead(self) -> None:
        """What has not run out yet when that is noticed takes its time."""
        self.clock.callLater(60, self.called.append, "a minute")
        self.go_by(1)
        self.wall += 30  # before the timer
        self.go_by(1)
        self.go_by(57)
        self.assertEqual(self.called, [])
        self.go_by(1)
        self.assertEqual(self.called, ["a minute"])

    def test_before_it_is_noticed(self) -> None:
        """A timer that is made after the clock was set, and before that was noticed, takes its time too."""
        for jump in (30 * DAY, -DAY):
            self.wall += jump
            self.clock.callLater(1, self.called.append, "a second")
            self.go_by(0.5)
            self.assertEqual(self.called, [])
            self.go_by(0.5)
            self.assertEqual(self.called.pop(), "a second")

    def test_set_ahead_and_many_turns(self) -> None:
        """Turns of the reactor before that is noticed fire nothing too early."""
        self.clock.callLater(60, self.called.append, "a minute")
        self.wall += DAY
        self.clock.turn()
        self.go_by(1)
        self.assertEqual(self.called, [])

    def test_corrected(self) -> None:
        """A clock that is corrected little by little has not been set: timers stay, the time is the corrected one."""
        call = self.clock.callLater(60, self.called.append, "a minute")
        at = call.getTime()
        for _ in range(30):
            self.wall += 0.005
            self.go_by(1)
        self.assertEqual(call.getTime(), at)
        self.assertAlmostEqual(self.clock.seconds(), self.wall)
        call.cancel()

    def test_set_before_the_end(self) -> None:
        """When nobody watches any more, the timers that are left go by the reactor's own clock, whatever that says."""
        call = self.clock.callLater(60, self.called.append, "a minute")
        for jump in (-30 * DAY, 7 * DAY):
            self.wall += jump
            self.clock.rightNow = self.wall
            self.watch.look()
            self.watch.stopService()
            self.clock.turn()
            self.assertAlmostEqual(call.getTime() - self.clock.seconds(), 60)
            self.watch.startService()
        call.cancel()

    def test_the_time(self) -> None:
        """It follows the wall clock when it is told of it; afterwards the reactor has its own again."""
        self.wall -= DAY
        self.assertEqual(self.clock.seconds(), 100 * DAY)
        self.go_by(1)
        self.assertEqual(self.clock.seconds(), 99 * DAY + 1)

    def test_each_once(self) -> None:
        """Each time that the clock is set counts once."""
        self.clock.callLater(60, self.called.append, "a minute")
        for jump in (-DAY, 3 * DAY, -2 * DAY, 20):
            self.wall += jump
            self.watch.look()
        self.clock.turn()
        self.go_by(59)
        self.assertEqual(self.called, [])
        self.go_by(1)
        self.assertEqual(self.called, ["a minute"])


class InTheReactor(TestCase):
    def test_shift(self) -> None:
        """Twisted's own reactor: a timer that a clock set back has moved a day away."""
        fired: Deferred[None] = Deferred()
        call = reactor.callLater(DAY, fired.callback, None)
        self.assertIsInstance(call, DelayedCall)
        others = [one for one in reactor.getDelayedCalls() if one is not call]
        shift(reactor, -DAY)
        for one in others:
            one.delay(DAY)
        return fired

    def test_thread(self) -> None:
        """The service looks by itself, and stops."""
        self.patch(clock, "INTERVAL", 0.01)
        seen: Deferred[None] = Deferred()
        wall = [0.0]

        class Watched:
            def callFromThread(self, function, *arguments) -> None:
                reactor.callFromThread(lambda: seen.called or seen.callback(function))

            def getDelayedCalls(self) -> list[DelayedCall]:
                return []

        watched = Watched()
        watch = ClockWatch(watched, wall=lambda: wall[0] + time.monotonic())
        watch.startService()
        wall[0] = -DAY

        def done(function) -> None:
            function()
            self.assertAlmostEqual(watch.seconds(), time.monotonic() - DAY, places=1)
            watch.stopService()
            self.assertNotIn("clock", [thread.name for thread in threading.enumerate()])
            self.assertEqual(vars(watched), {})

        return seen.addCallback(done)
