"""`qtwist queue fail` and `drop` on a stopped queue: wherever they are cut off, nobody is lost (doc/queue.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.constmap import ConstantMap
from qtwist.mail.rewriting import Rewriter
from qtwist.queue.layout import open_layout
from qtwist.queue.looking import Looking
from qtwist.send.steering import DROP, FAIL
from qtwist.steering import stopped
from qtwist.steering.stopped import StoppedQueue
from tests.sim.disk import Model
from tests.sim.machine import ACCEPTED, QUEUE, Action, Life, Machine, Stop, Violation
from tests.sim.running import SimulatedReactor
from tests.sim.stories import FAILURES

NO, DIRECTORY, BAD, SLOW = FAILURES

#: Tried once: one recipient is delivered to, one has failed, two are left.
TRIED = [("send", b"ok", [SLOW, DIRECTORY, BAD, SLOW], 10), ("settle",)]


class StoppedMachine(Machine):
    """In the life of an administrator, whose only action is ``("decide", verdict)``, there is no daemon."""

    def live(self, life: Life, *, to_the_end: bool = False) -> None:
        self.administrator = any(action[0] == "decide" for action in life.actions)
        super().live(life, to_the_end=to_the_end)

    def _start(self) -> None:
        if self.administrator:
            self.reactor = SimulatedReactor(self.reactor.seconds() + 60)
        else:
            super()._start()

    def _act(self, action: Action) -> None:
        if action[0] == "decide":
            self.decide(action[1])
        else:
            super()._act(action)

    def decide(self, verdict: str) -> None:
        """What the command does with every message that it finds."""
        planned, self._stop_at, self._fault = (self._stop_at, self._fault), None, None
        layout = open_layout(QUEUE, self.disk)
        rewriter = Rewriter(b"here.test", ConstantMap.plain([b"here.test"]))
        queue = StoppedQueue(self.disk, layout, lambda: rewriter)
        messages = list(Looking(self.disk, layout).messages())
        self._stop_at, self._fault = planned
        self.calls = 0
        for message in messages:
            [sent] = [one for one in self.sent if one.number == message.number and one.state == ACCEPTED]
            sent.settled = verdict
            if verdict == FAIL:
                self._failed.update(sent.recipients)
            try:
                queue.settle(message.number, verdict)
            except OSError as error:
                self.log.append(f"decision: {error}")


class StoppedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.mkdir(self.home)
        # Whose the simulated files are is not part of the story.
        self.patch(stopped, "os", mock.Mock(geteuid=lambda: 1, getegid=lambda: 1))

    def tell(
        self,
        before: Sequence[Action],
        verdict: str,
        stop: Stop,
        *,
        seed: int,
        fault: int = 0,
        model: Model = Model.POSIX,
        until: int | None = None,
    ) -> StoppedMachine:
        """A life of the daemon, the administrator's, then all others until nothing is left. Violation."""
        machine = StoppedMachine(self.home, seed=seed, model=model)
        first = Life(before, Stop(power=False, at=until))
        machine.run([first, Life([("decide", verdict)], stop, (fault, errno.EIO) if fault else None)])
        return machine

    def calls(self, before: Sequence[Action], verdict: str) -> int:
        machine = StoppedMachine(self.home)
        machine.live(Life(before, Stop(power=False)))
        machine.live(Life([("decide", verdict)], Stop(power=False)))
        return machine.calls


class EverywhereTests(StoppedCase):
    def test_cut_off(self) -> None:
        """At each disk call, by the death of the process or of the machine: those who were left still are, or have
        their result, or were dropped by a decision."""
        for verdict in (FAIL, DROP):
            calls = self.calls(TRIED, verdict)
            self.assertGreater(calls, 20)
            for at in range(1, calls + 1):
                for power in (False, True):
                    for model in Model if power else (Model.JOURNAL,):
                        self.tell(TRIED, verdict, Stop(power, at), seed=at, model=model)

    def test_trouble(self) -> None:
        """Each disk call fails once: what could not be done is told, and the rest goes on."""
        for verdict in (FAIL, DROP):
            for at in range(1, self.calls(TRIED, verdict) + 1):
                self.tell(TRIED, verdict, Stop(power=False), seed=at, fault=at)

    def test_done(self) -> None:
        """Not cut off: the notice tells of everybody who was left, and of who had failed before; or nobody hears."""
        [(verb, *how), *later] = TRIED
        self.tell([(verb, *how, True), *later], FAIL, Stop(power=False), seed=1)  # with DSN parameters: as they want it
        machine = self.tell(TRIED, FAIL, Stop(power=False), seed=1)
        [notice] = [one for one in machine.attempts if not one.sender]
        told = machine._told(notice.content)
        self.assertEqual({one.partition(b"-")[0] for one in told}, {b"slow", b"bad"})
        self.assertEqual(len(told), 3)
        machine = self.tell(TRIED, DROP, Stop(power=False), seed=1)
        self.assertEqual([one for one in machine.attempts if not one.sender], [])
        self.assertEqual(len([one for one in machine.attempts if one.life > 1]), 0)

    def test_not_preprocessed(self) -> None:
        """A message that the daemon had only just accepted."""
        before = [("send", b"ok", [NO, DIRECTORY, SLOW], 10), ("steps", 200)]
        found = 0
        for until in range(1, 100):
            machine = StoppedMachine(self.home)
            machine.live(Life(before, Stop(power=False, at=until)))
            if not machine._files("todo") or machine.sent[0].state != ACCEPTED:
                continue
            found += 1
            for verdict in (FAIL, DROP):
                for at in range(1, 60, 7):
                    self.tell(before, verdict, Stop(True, at), seed=at, until=until)
        self.assertGreater(found, 2)

    def test_marks_before_paragraphs(self) -> None:
        """The machine would notice: whoever is marked before the paragraph is on disk may be forgotten."""

        async def wrong_order(queue, number, channel, original):  # type: ignore[no-untyped-def]
            records, _ = await queue.recipients(number, channel, 0, 100)
            for record in records:
                await queue.mark(number, channel, record.offset)
            await queue.append_bounce(number, b"".join(b"<%b>:\nno\n\n" % original(one.address) for one in records))
            return len(records)

        self.patch(stopped, "fail_recipients", wrong_order)
        with self.assertRaises(Violation):
            for at in range(1, 60):
                self.tell(TRIED, FAIL, Stop(False, at), seed=at)
