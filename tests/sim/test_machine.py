"""The contract (doc/durability.md) holds wherever the machine stops: spec/qmail.md §5.3, §5.4, §9, §26.5.

`make soak SECONDS=…` tells as many stories as there is time for; here is a fixed set.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from twisted.trial.unittest import SynchronousTestCase

from tests.sim.disk import Model
from tests.sim.machine import Life, Machine, Stop, Violation
from tests.sim.stories import EVERYBODY, FAILURES, Story, count_calls, one_message, stop_everywhere, stories

BOX = (b"box", b"here.test")


class MachineCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.mkdir(self.home)

    def tell(self, *lives: Life, **how: Any) -> Machine:
        return Story(lives, **how).tell(self.home)


class WithoutStops(MachineCase):
    """The machine sees what there is to be seen."""

    def test_results(self) -> None:
        """Each recipient has one result, and the sender hears of those that failed."""
        [life] = one_message(EVERYBODY + FAILURES).lives
        machine = self.tell(attrs.evolve(life, stop=Stop(power=False, clean=True)))
        results = sorted((one.recipient.partition(b"-")[0], one.letter) for one in machine.attempts if one.sender)
        expected = [(kind, b"K") for kind in (b"box", b"dir", b"dir", b"ok")]
        expected += [(b"bad", b"D"), (b"no", b"D"), (b"slow", b"K"), (b"slow", b"Z"), (b"slow", b"Z")]
        self.assertEqual(results, sorted(expected))
        [notice] = [one for one in machine.attempts if not one.sender]
        self.assertIn(b"<no-0.3@here.test>:\n", notice.content)
        self.assertIn(b"<bad-0.5@far.test>:\n", notice.content)

    def test_group_commit(self) -> None:
        """Messages of concurrent sessions share one sync of the file system."""
        machine = Machine(self.home)
        syncs: list[str] = []
        machine.disk.ignores = lambda operation, path: bool(syncs.append(operation))
        machine.live(Life([("send", b"ok", EVERYBODY, 10)] * 5 + [("settle",)]))
        self.assertEqual([one.state for one in machine.sent], ["accepted"] * 5)
        self.assertLess(syncs.count("sync_filesystem"), 5)
        self.assertLess(len(syncs), 5 * 4 + 5 * 4)  # maildir and mbox make four each, as they wait for nobody

    def test_violation(self) -> None:
        """A machine whose disk forgets what was synced complains."""
        machine = Machine(self.home)
        machine.disk.ignores = lambda operation, path: True
        with self.assertRaises(Violation):
            for seed in range(20):
                machine.rng = random.Random(seed)
                machine.live(Life([("send", b"ok", EVERYBODY, 10), ("steps", 4 + seed)]))


class StopEverywhere(MachineCase):
    """One message, a stop at each of its disk calls, and several outcomes of each crash."""

    def stop_everywhere(self, story: Story, seeds: int, **how: Any) -> None:
        self.assertGreater(stop_everywhere(self.home, story, range(seeds), **how), 100)

    def test_to_everybody(self) -> None:
        """A maildir, an mbox and a remote host, on both kinds of file system."""
        for model in Model:
            for shared in (True, False):
                self.stop_everywhere(one_message(EVERYBODY, model=model, shared_sync=shared), 2)

    def test_failures(self) -> None:
        """Recipients that fail at once or later, and the notice about them."""
        for model in Model:
            self.stop_everywhere(one_message(FAILURES, model=model, shared_sync=False), 2)

    def test_parameters(self) -> None:
        """RFC 3461: what was asked for survives, in files and journal, and each report says of whom it is."""
        for journal in (False, True):
            self.stop_everywhere(one_message(FAILURES, model=Model.JOURNAL, journal=journal, asked=True), 1)

    def test_double_bounce(self) -> None:
        """§9.11: what cannot be told to the sender is told to the postmaster; a notice has no sender itself."""
        for sender in (b"bad", b""):
            self.stop_everywhere(one_message(FAILURES[:1], sender=sender, model=Model.POSIX), 1)

    def test_group_commit(self) -> None:
        self.stop_everywhere(one_message(EVERYBODY, times=3, model=Model.POSIX), 1)

    def test_large(self) -> None:
        """A message that does not wait in memory."""
        self.stop_everywhere(one_message(EVERYBODY, size=70_000, model=Model.POSIX), 1)

    def test_number_used_again(self) -> None:
        """A message that gets the number of one before it has nothing of it."""
        actions = [("send", b"ok", EVERYBODY, 10), ("settle",), ("send", b"bad", FAILURES[:1], 10), ("settle",)]
        for model in Model:
            self.stop_everywhere(Story([Life(actions)], model=model, shared_sync=False), 1)

    def test_killed(self) -> None:
        """Without a power failure nothing is forgotten: who was marked is not tried again (Machine judges that)."""
        self.stop_everywhere(one_message(EVERYBODY + FAILURES), 1, power=False)

    def test_killed_then_power_lost(self) -> None:
        """What the dead process had not synced is no more durable for having been seen by the next one."""
        story = one_message(FAILURES, model=Model.POSIX, shared_sync=False)
        for at in range(1, count_calls(self.home, story) + 1, 2):
            killed = attrs.evolve(story.lives[0], stop=Stop(False, at))
            self.tell(killed, Life([("settle",)], Stop(at=60 + at)), model=Model.POSIX, shared_sync=False, seed=at)

    def test_fail_and_drop(self) -> None:
        """doc/queue.md: an administrator's decision, cut off anywhere."""
        for verdict in ("fail", "drop"):
            actions = [("send", b"ok", [FAILURES[3], FAILURES[3]], 10), ("settle",), ("steer", verdict, 0), ("settle",)]
            self.stop_everywhere(Story([Life(actions)], model=Model.POSIX), 1)


class Faults(MachineCase):
    """Each disk call fails once: nothing is lost, and a refusal means no."""

    def fail_everywhere(self, story: Story, codes: Sequence[int] = (errno.EIO, errno.ENOSPC)) -> None:
        for code in codes:
            for at in range(1, count_calls(self.home, story) + 1):
                life = attrs.evolve(story.lives[0], fault=(at, code), stop=Stop(power=bool(at % 2)))
                attrs.evolve(story, lives=[life], seed=at).tell(self.home)

    def test_everybody(self) -> None:
        self.fail_everywhere(one_message(EVERYBODY, model=Model.POSIX, shared_sync=False))

    def test_failures(self) -> None:
        self.fail_everywhere(one_message(FAILURES, model=Model.POSIX), [errno.EIO])

    def test_appends_to_one_bounce(self) -> None:
        """Recipients that fail at the same time, one of whose paragraphs the disk refuses: the others' stay."""
        kinds = (FAILURES[0],) * 3
        self.fail_everywhere(one_message(kinds, model=Model.POSIX, interleaved=True), [errno.EIO])

    def test_full(self) -> None:
        """A disk that fills up anywhere in the story: 4xx or deferral, and it goes on when there is room."""
        for octets in range(0, 1500, 40):
            actions = [("full", octets), *one_message(EVERYBODY + FAILURES).lives[0].actions]
            self.tell(Life(actions, Stop(power=False)), seed=octets)


class Regressions(MachineCase):
    """What the machine has found."""

    def test_torn_mbox(self) -> None:
        """§26.5: two deliveries to one mbox, cut off: what the crash has left hides no later message."""
        for seed in range(30):
            story = one_message((BOX, BOX), model=Model.JOURNAL, interleaved=True, seed=seed)
            at = random.Random(seed).randint(60, count_calls(self.home, story))
            attrs.evolve(story, lives=[attrs.evolve(story.lives[0], stop=Stop(at=at))]).tell(self.home)

    def test_clock_set_back(self) -> None:
        """§26.5: the clock is set back by hours between a commit and the next turn: nobody waits for hours."""
        for journal in (False, True):
            life = Life([("send", b"ok", [], 10), ("jump", -20_000)], Stop(power=False, clean=True))
            Story([life], journal=journal).tell(self.home)

    def test_empty_bounce_file(self) -> None:
        """A bounce file made by `fail` just before the crash, and recipients who then succeed: no empty notice."""
        actions = [("send", b"ok", [FAILURES[3]], 10), ("settle",), ("steer", "fail", 0), ("settle",)]
        self.assertGreater(stop_everywhere(self.home, Story([Life(actions)], shared_sync=False), range(2)), 200)


class Stories(MachineCase):
    @settings(
        max_examples=250,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(stories)
    def test_stories(self, story: Story) -> None:
        """Any mail, any decisions, faults and stops, in any order."""
        story.tell(self.home)
