"""The contract (doc/durability.md) holds with the journal in front of the files, wherever the machine stops.

As `test_machine.py`, but every queue here is a JournaledQueue with segments of 16 KiB and six numbers at a time.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from twisted.trial.unittest import SynchronousTestCase

from qtwist.queue import settling
from qtwist.queue.live import Live
from tests.sim.disk import Model
from tests.sim.machine import QUEUE, Life, Machine, SimulatedJournaledQueue, Stop, entries_on
from tests.sim.stories import EVERYBODY, FAILURES, Story, count_calls, one_message, stop_everywhere, stories

SLOW = FAILURES[3:]


def story(*actions: tuple[Any, ...], **how: Any) -> Story:
    return Story([Life(actions)], journal=True, **how)


def send(*kinds: tuple[bytes, bytes], size: int = 10, sender: bytes = b"ok") -> tuple[Any, ...]:
    return ("send", sender, kinds, size)


SETTLE = ("settle",)


class JournalCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.mkdir(self.home)

    def stop_everywhere(self, one: Story, seeds: int = 1, **how: Any) -> None:
        self.assertGreater(stop_everywhere(self.home, one, range(seeds), **how), 50)

    def fail_everywhere(self, one: Story, codes: tuple[int, ...] = (errno.EIO,)) -> None:
        """Each disk call of the first life fails once; then power is lost, or the processes die, or it ends well."""
        for code in codes:
            for at in range(1, count_calls(self.home, one) + 1):
                stop = (Stop(), Stop(power=False), Stop(power=False, clean=True))[at % 3]
                life = attrs.evolve(one.lives[0], fault=(at, code), stop=stop)
                attrs.evolve(one, lives=[life], seed=one.seed + at).tell(self.home)


class StopEverywhere(JournalCase):
    def test_to_everybody(self) -> None:
        for model in Model:
            self.stop_everywhere(one_message(EVERYBODY, model=model, journal=True), 2)

    def test_failures(self) -> None:
        """Recipients that fail at once or later, and the notice about them; what is deferred is settled."""
        for model in Model:
            for shared in (True, False):
                self.stop_everywhere(one_message(FAILURES, model=model, shared_sync=shared, journal=True))

    def test_segments(self) -> None:
        """Segments fill up and are used again while older messages are still on their way; so are numbers."""
        large = (send(EVERYBODY[2], size=5000), SETTLE)
        self.stop_everywhere(story(send(*SLOW), *large * 12, ("advance", 7), *large * 3, model=Model.POSIX))

    def test_settled_when_old(self) -> None:
        """A message that is not done after some seconds, before and after it is preprocessed."""
        actions = [("hold", 1, True), send(*EVERYBODY), SETTLE, send(*EVERYBODY), ("advance", 9)]
        for model in Model:
            self.stop_everywhere(story(*actions, model=model, interleaved=True))

    def test_large_beside_small(self) -> None:
        actions = [send(EVERYBODY[0], size=70_000), send(*EVERYBODY), send(EVERYBODY[2], size=70_000), SETTLE]
        self.stop_everywhere(story(*actions, model=Model.POSIX, interleaved=True))

    def test_stopped_in_order(self) -> None:
        """TERM settles everything; cut off anywhere, and the next start settles the rest, cut off again."""
        actions = (send(*EVERYBODY), send(*SLOW), SETTLE, send(*EVERYBODY))
        one = story(*actions, model=Model.POSIX)
        last = count_calls(self.home, one)
        for at in range(40, last + 1, 2):
            first = Life(actions, Stop(at % 4 > 0, at, clean=True))
            for later in range(1 + at % 5, 60, 5):
                attrs.evolve(one, lives=[first, Life((SETTLE,), Stop(at=later))], seed=at).tell(self.home)

    def test_killed(self) -> None:
        """Nothing is forgotten, but what the writer's thread had not written yet."""
        self.stop_everywhere(one_message(EVERYBODY + FAILURES, journal=True), power=False)

    def test_fail_and_drop(self) -> None:
        for verdict in ("fail", "drop"):
            self.stop_everywhere(story(send(*SLOW, *SLOW), SETTLE, ("steer", verdict, 0), SETTLE, model=Model.POSIX))


class Faults(JournalCase):
    """Each disk call fails once. The journal is begun anew after that, and messages go to files meanwhile."""

    def test_everybody(self) -> None:
        for model in Model:
            self.fail_everywhere(
                story(send(*EVERYBODY), SETTLE, send(*EVERYBODY), ("advance", 9), send(*FAILURES), model=model)
            )

    def test_held(self) -> None:
        """While messages are settled, not yet preprocessed."""
        actions = [send(*EVERYBODY), send(*SLOW), ("steps", 60), ("advance", 9), send(*EVERYBODY), ("advance", 100)]
        self.fail_everywhere(story(*actions, model=Model.POSIX, shared_sync=False, interleaved=True))

    def test_renewed(self) -> None:
        """After the disk has failed once in it, the journal is used again before long, and no earlier record counts."""
        machine = Machine(self.home, queue=SimulatedJournaledQueue)
        failed: list[str] = []

        def fail(operation: str) -> None:
            if operation == "sync_data" and not failed and machine.sent:
                failed.append(operation)
                raise OSError(errno.EIO, "")

        machine.disk.watch = fail
        machine.live(Life([send(*EVERYBODY), SETTLE, ("advance", 9), send(*EVERYBODY), SETTLE], Stop(power=False)))
        self.assertEqual([one.state for one in machine.sent], ["refused", "accepted"])
        self.assertIsNone(machine.queue._writer.broken)
        machine.live(Life((), Stop(clean=True)), to_the_end=True)
        self.assertEqual({one.content.count(b"token: 0") for one in machine.attempts}, {0})

    def test_full_while_there_is_no_segment(self) -> None:
        """A disk without room for another segment: what is marked then is in memory, so that a killed daemon may repeat
        it, as doc/durability.md says. (A story of `python -m tests.sim.soak`, SEED=1670325161: the judge took the mark
        for written.)"""
        twice = ((b"dir", b"here.test"),) * 2
        first = (*send(*twice, (b"slow", b"far.test"), size=5000), True)
        actions = (first, ("full", 6000), send(*twice, size=5000), send(*twice, *twice, size=5000), SETTLE)
        for seed in range(4):
            life = Life(actions, stop=Stop(power=False))
            Story([life], seed, Model.POSIX, shared_sync=False, interleaved=True, journal=True).tell(self.home)


class InMemory(JournalCase):
    """What the journal's messages must not have to do with the files."""

    def machine(self) -> Machine:
        machine = Machine(self.home, queue=SimulatedJournaledQueue)
        self.patch(Live, "open", lambda live: machine.disk.open_memory(live.entry.message))
        machine._start()
        return machine

    def being_settled(self, machine: Machine) -> tuple[SimulatedJournaledQueue, int]:
        """A message that has a try before it, and whose files are about to be made."""
        queue: SimulatedJournaledQueue = machine.queue
        machine._act(("hold", 1, True))
        machine._act(send(*SLOW))
        for _ in range(200):
            machine.reactor.advance(0)
            if [live for live in queue._live.values() if live.entry.channels is not None]:
                break
            machine._step()
        [number] = queue._live
        queue._resting.append(number)
        queue._settle_resting()
        return queue, number

    def test_sweep(self) -> None:
        """A message that is being settled has a mess file and nothing else for a moment, and its inode may be old: it
        is no garbage (§5.4)."""
        machine = self.machine()
        machine.settle()
        machine.reactor.rightNow += 200_000
        number = machine.queue._numbers.take()
        assert number is not None
        machine.disk.link(f"{QUEUE}/journal/{number}", machine.layout.path("mess", number))
        machine.queue._live[number] = object()  # type: ignore[assignment]
        machine.queue.collect_garbage()
        machine.settle()
        self.assertTrue(machine.disk.exists(machine.layout.path("mess", number)))
        del machine.queue._live[number]
        machine.queue.collect_garbage()
        machine.settle()
        self.assertFalse(machine.disk.exists(machine.layout.path("mess", number)))

    def test_idle(self) -> None:
        """Nothing ticks while nothing is in the journal."""
        machine = self.machine()
        before = len(machine.reactor.getDelayedCalls())
        machine._act(send(*EVERYBODY))
        machine._advance(20)
        self.assertEqual(len(machine.reactor.getDelayedCalls()), before)

    def test_mark_while_it_is_settled(self) -> None:
        """The mark is in the journal at once, for the case of a kill, and in the files when these count."""
        machine = self.machine()
        queue, number = self.being_settled(machine)
        marked = queue.mark(number, "remote", 0)
        machine.reactor.advance(0)
        queue._writer._one_turn()
        self.assertEqual(bytes(entries_on(machine.disk)[number].channels["remote"])[:1], b"D")
        self.assertNoResult(marked)
        machine.settle()
        self.successResultOf(marked)
        self.assertEqual(machine.disk.contents(machine.layout.path("remote", number))[:1], b"D")
        self.assertEqual(entries_on(machine.disk), {})

    def test_mark_behind_the_copy(self) -> None:
        """As before, but the files were written without it."""
        machine = self.machine()
        queue, number = self.being_settled(machine)
        for _ in range(200):
            if machine.disk.exists(machine.layout.path("info", number)):
                break
            machine._step()
        marked = queue.mark(number, "remote", 0)
        machine.settle()
        self.successResultOf(marked)
        self.assertEqual(machine.disk.contents(machine.layout.path("remote", number))[:1], b"D")

    def test_due_times_of_many(self) -> None:
        """Those in the journal get a record, those in files a time."""
        machine = self.machine()
        machine._act(send(*SLOW))
        machine.settle()
        [settled] = machine._files("info")
        machine._act(("hold", 1, True))
        machine._act(send(*SLOW))
        for _ in range(200):
            machine.reactor.advance(0)
            live = [one for one in machine.queue._live.values() if one.entry.channels is not None]
            if live:
                break
            machine._step()
        result = machine.queue.postpone_all("remote", [(settled, 5.0), (live[0].entry.number, 6.0), (1, 7.0)])
        machine.settle()
        self.assertEqual(self.successResultOf(result), [1])
        self.assertEqual(machine.disk.mtime_of(machine.layout.path("remote", settled)), 5.0)

    def test_disk_that_stays_broken(self) -> None:
        """What cannot be settled is delivered from memory, and settling is tried once a minute, not all the time."""
        machine = self.machine()
        machine._act(("hold", 1, True))
        tries: list[str] = []

        def refuse(operation: str) -> None:
            if operation == "truncate":
                tries.append(operation)
                raise OSError(errno.EIO, "")

        machine.disk.watch = refuse
        machine._act(send(*SLOW))
        machine._advance(300)
        self.assertTrue(3 <= len(tries) <= 7, len(tries))
        self.assertEqual(machine.undone(), {b"slow-0.0@far.test"})

    def test_not_renewed_over_what_is_left(self) -> None:
        """A journal that broke does not begin anew as long as it holds what could not become files."""
        machine = self.machine()
        machine._act(send(*SLOW))
        while machine.sent[0].state != "accepted":
            machine.reactor.advance(0)
            machine._step()
        flushed: list[str] = []

        def refuse(operation: str) -> None:
            if operation == "truncate" or (operation == "sync_data" and not flushed):
                flushed.append(operation)
                raise OSError(errno.EIO, "")

        machine.disk.watch = refuse
        machine._act(send(*SLOW))
        machine._advance(100)
        self.assertIsNotNone(machine.queue._writer.broken)
        self.assertEqual([one.state for one in machine.sent], ["accepted", "refused"])
        self.assertEqual(len(machine.queue._live), 1)
        self.assertGreaterEqual(set(entries_on(machine.disk)), set(machine.queue._live))
        machine.disk.watch = lambda _: None
        machine._advance(100)
        self.assertIsNone(machine.queue._writer.broken)

    def test_bound(self) -> None:
        """What the journal has no room for goes to files at once."""
        machine = self.machine()
        for most, in_journal in ((1, 1), (0, 0)):
            self.patch(settling, "MOST_MESSAGES", most)
            machine._act(send(*SLOW))
            while machine.sent[-1].state != "accepted":
                machine.reactor.advance(0)
                machine._step()
            self.assertEqual(len(machine.queue._live), in_journal)
            machine.settle()


class Stories(JournalCase):
    @settings(
        max_examples=120,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(stories)
    def test_stories(self, one: Story) -> None:
        """Any mail, any decisions, faults and stops, in any order."""
        attrs.evolve(one, journal=True).tell(self.home)
