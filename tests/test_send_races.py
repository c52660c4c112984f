"""Everything that can happen to a running queue manager, in any order, while the disk answers when it likes.

Stories of Hypothesis send mail, end deliveries, steer, signal and restart; they hold up, give or refuse the disk's
answers one by one. Whatever they did: nothing raises, every message ends once, no slot and no pass is left behind, and
who has a result is not tried again (spec/qmail.md §9, doc/queue.md).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.envelope import Report
from qtwist.mail.holds import DESTINATION, SENDER, Hold, Holds
from qtwist.send.log import SendLog
from qtwist.send.manager import QueueManager, SendSettings
from qtwist.send.steering import DROP, FAIL, Steering, SteeringError
from tests.memory_queue import MemoryQueue, ScriptedSpawner
from tests.test_send_manager import BOUNCES, rewriter

#: What the disk may be slow with, and what it may refuse. A mark that is refused would allow a second copy.
SLOW = ("todo", "preprocess", "scan", "info", "recipients", "open", "mark", "postpone", "finish_channel",
        "append_bounce", "bounce", "discard_bounce", "finish")  # fmt: skip
BROKEN = ("info", "recipients", "open", "postpone", "finish_channel", "append_bounce", "finish")

LIFETIME = 5000

Action = tuple[Any, ...]


class ReusingQueue(MemoryQueue):
    """As on a real disk, a number is free at once when its message is gone, and what is gone cannot be read."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.free: list[int] = []

    def _number(self) -> int:
        return self.free.pop() if self.free else super()._number()

    def info(self, number: int) -> Deferred[Any]:
        return super().info(number) if number in self.infos else self._missing("info")

    def recipients(self, number: int, channel: str, offset: int, limit: int) -> Deferred[Any]:
        if (number, channel) not in self.files:
            return self._missing("recipients")
        return super().recipients(number, channel, offset, limit)

    def finish(self, number: int) -> Deferred[Any]:
        answer = super().finish(number)
        if number not in self.messages:
            self.free.append(number)
        return answer

    def _missing(self, method: str) -> Deferred[Any]:
        before = set(self.broken)
        self.broken.add(method)
        try:
            return self._answer(method)
        finally:
            self.broken = before


@attrs.define(eq=False)
class Sent:
    """One message that was handed in. `results` has the letters of the attempts by recipient."""

    number: int
    birth: float
    recipients: tuple[bytes, ...]
    results: dict[bytes, list[bytes]] = attrs.field(factory=dict)
    verdict: str | None = None


class Story:
    """One queue, and the lives of the queue manager on it, told action by action."""

    def __init__(self, concurrency: dict[str, int]) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000_000)
        self.queue = ReusingQueue(self.clock)
        self.concurrency = concurrency
        self.sent: list[Sent] = []
        self.holds: list[Hold] = []
        self.failures: list[str] = []
        self.settling: list[Deferred[Any]] = []
        self.begun: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.stopping: Deferred[None] | None = None
        self.restarts = 0
        self.forgot = False  # the disk refused paragraphs: a failure that is in none when a life ends is tried again

    def tell(self, actions: Sequence[Action]) -> None:
        """Do all of it, then whatever is needed until nothing is left. AssertionError when something is wrong."""
        globalLogPublisher.addObserver(self.observe)
        try:
            self.start()
            for name, *arguments in actions:
                getattr(self, name)(*arguments)
                self.go()
                self.check()
            self.come_to_the_end()
        finally:
            globalLogPublisher.removeObserver(self.observe)

    def observe(self, event: LogEvent) -> None:
        if "log_failure" in event:
            self.failures.append(event["log_failure"].getTraceback())

    def start(self) -> None:
        self.queue.locked = False
        self.spawners = {"local": ScriptedSpawner(), "remote": ScriptedSpawner()}
        self.manager = QueueManager(
            self.queue,
            self.spawners,
            SendSettings(rewriter(), self.concurrency, LIFETIME, BOUNCES),
            SendLog(self.logged),
            self.clock,
            reread=rewriter,
            read_holds=lambda: Holds(self.holds),
        )
        self.steering = Steering(self.manager)
        self.stopping = None
        self.manager.startService()
        self.go()

    def go(self, seconds: float = 0) -> None:
        self.clock.advance(seconds)
        self.clock.advance(0)

    def logged(self, lines: bytes) -> None:
        for line in lines.decode().splitlines():
            found = re.fullmatch(r"(new|end) msg (\d+)", line)
            if found:
                (self.begun if found[1] == "new" else self.ended)[int(found[2])] += 1

    # What happens to mail.

    def send(self, local: int, remote: int) -> None:
        self.go(1)  # no two messages of one number have the same birth
        token = len(self.sent)
        recipients = [b"l%d-%d@here.test" % (token, n) for n in range(local)]
        recipients += [b"r%d-%d@far.test" % (token, n) for n in range(remote)]
        number = self.queue.send(b"ann%d@x.test" % (token % 2), *recipients)
        self.sent.append(Sent(number, self.clock.seconds(), tuple(recipients)))

    def open_deliveries(self) -> list[tuple[ScriptedSpawner, int]]:
        return [(spawner, n) for spawner in self.spawners.values() for n in range(len(spawner.open))]

    def report(self, which: int, letter: bytes) -> None:
        found = self.open_deliveries()
        if not found:
            return
        spawner, position = found[which % len(found)]
        delivery, answer = spawner.open.pop(position)
        for sent in self.sent:
            if delivery.recipient in sent.recipients:
                results = sent.results.setdefault(delivery.recipient, [])
                assert not {b"K", b"D"} & set(results), f"{delivery.recipient!r} was tried after {results}"
                results.append(letter)
        answer.callback(Report(letter, b"text\n"))

    def wait(self, seconds: int) -> None:
        self.go(seconds)

    # The disk.

    def slow_or_fast(self, method: str) -> None:
        self.queue.slow ^= {method}

    def break_or_mend(self, method: str) -> None:
        self.queue.broken ^= {method}

    def answer_one(self, which: int) -> None:
        if self.queue.held_up:
            self.queue.resume_one(which % self.queue.held_up)

    def answer_all(self) -> None:
        self.queue.resume()

    # People and signals.

    def alarm(self) -> None:
        self.manager.retry_all()

    def hold(self, kind: int, which: int) -> None:
        if kind < 2:
            self.holds.append(Hold.make(SENDER, b"ann%d@x.test" % kind))
        elif kind == 2:
            self.holds.append(Hold.make(DESTINATION, b"far.test"))
        elif self.sent:
            sent = self.sent[which % len(self.sent)]
            self.holds.append(Hold.of_message(sent.number, sent.birth))
        self.steering.reread_holds()

    def release(self, which: int, by_signal: bool) -> None:
        if self.holds:
            del self.holds[which % len(self.holds)]
            (self.manager.reread if by_signal else self.steering.reread_holds)()

    def retry(self, which: int) -> None:
        if self.sent:
            self.steering.retry([self.sent[-1 - which % len(self.sent)].number])

    def settle(self, which: int, verdict: str) -> None:
        if not self.sent:
            return
        sent = self.sent[-1 - which % len(self.sent)]
        settled = Deferred.fromCoroutine(self.steering.settle(sent.number, sent.birth, verdict, 0))
        settled.addCallbacks(lambda _: setattr(sent, "verdict", verdict), lambda failure: failure.trap(SteeringError))
        self.settling.append(settled)

    def term(self) -> None:
        if self.stopping is None:
            self.stopping = self.manager.stopService()

    def restart(self) -> None:
        """What runs comes to its end, then the next life begins."""
        self.term()
        self.exhaust()
        assert self.stopping is not None
        stopped: list[Any] = []
        self.stopping.addBoth(stopped.append)
        assert stopped == [None], stopped
        assert [channel.running for channel in self.manager.channels.values()] == [0, 0]
        assert all(settled.called for settled in self.settling), "a decision goes on after the end"
        self.restarts += 1
        for sent in self.sent if self.forgot else ():
            for recipient, results in sent.results.items():
                if results[-1:] == [b"D"] and [False, recipient] in self.records(sent.number):
                    results.clear()
        self.forgot = False
        self.start()

    def records(self, number: int) -> list[Any]:
        return [record for (n, _), records in self.queue.files.items() if n == number for record in records]

    # What has to hold.

    def check(self) -> None:
        """At any time: nothing raised, nobody is delivered to twice at once, the slots are counted."""
        assert not self.failures, self.failures[0]
        for settled in self.settling:
            if settled.called and isinstance(settled.result, Failure):
                settled.result.raiseException()
        for spawner in self.spawners.values():
            running = [delivery.recipient for delivery, _ in spawner.open if b"-" in delivery.recipient]
            assert len(set(running)) == len(running), running
            settled = {recipient for sent in self.sent if sent.verdict for recipient in sent.recipients}
            assert not settled & set(running), f"{settled & set(running)} are tried after the decision"
        for channel in self.manager.channels.values():
            assert 0 <= channel.running <= channel.concurrency, channel.running
            assert all(one.running >= 0 for one in channel.passes.values())
        assert set(self.manager.keeper._kept_back) <= set(self.queue.messages)
        self.forgot |= "append_bounce" in self.queue.broken

    def exhaust(self) -> None:
        """Give all answers, of the disk and of the deliveries, until there are no more."""
        self.queue.slow.clear()
        self.queue.broken.clear()
        for _ in range(1000):
            self.queue.resume()
            self.go()
            if self.open_deliveries():
                self.report(0, b"K")
            elif self.manager._tasks and self.clock.getDelayedCalls():
                self.go(10)
            elif not self.queue.held_up:
                return
        raise AssertionError("it does not come to rest")

    def come_to_the_end(self) -> None:
        if self.stopping is not None:
            self.restart()
        self.holds.clear()
        self.steering.reread_holds()
        for _ in range(10):
            self.exhaust()
            if not self.queue.messages:
                break
            self.manager.retry_all()
            self.go(2000)
        self.check()
        queue, manager = self.queue, self.manager
        assert not (queue.messages or queue.infos or queue.files or queue.bounces or queue.envelopes), vars(queue)
        for channel in manager.channels.values():
            assert channel.is_idle and not channel.waiting(), vars(channel)
        assert not (manager._tasks or manager._both or manager.keeper.claimed or manager.keeper._kept_back)
        assert manager.history.numbers() == []
        assert all(settled.called for settled in self.settling)
        for number, times in self.begun.items():
            # What the disk would not remove before a restart is ended once more after it.
            assert times <= self.ended[number] <= times + self.restarts, (number, times, self.ended[number])
        told = b"".join(text for _, text in queue.accepted if b"failure notice" in text)
        for sent in self.sent:
            for recipient in sent.recipients:
                result = (sent.results.get(recipient) or [b""])[-1]
                failed = b"<%b>:\n" % recipient in told
                assert result == b"K" or failed or sent.verdict == DROP, (recipient, sent)
                assert not (result == b"K" and failed), (recipient, sent)


def _action(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), *arguments)


_which = st.integers(0, 5)
_counts = st.sampled_from(((1, 1), (1, 1), (1, 1), (2, 1), (0, 1), (1, 0), (0, 0), (0, 3)))
_WEIGHTED = (
    (3, _counts.map(lambda counts: ("send", *counts))),
    (6, _action("report", _which, st.sampled_from((b"Z", b"Z", b"K", b"D")))),
    (4, _action("slow_or_fast", st.sampled_from(SLOW))),
    (1, _action("break_or_mend", st.sampled_from(BROKEN))),
    (6, _action("answer_one", _which)),
    (1, _action("answer_all")),
    (2, _action("wait", st.sampled_from((1, 10, 130, 500, 3000)))),
    (1, _action("alarm")),
    (3, _action("retry", _which)),
    (1, _action("hold", st.integers(0, 3), _which)),
    (1, _action("release", _which, st.booleans())),
    (4, _action("settle", st.integers(0, 1), st.sampled_from((FAIL, DROP)))),
    (1, st.sampled_from((("term",), ("restart",)))),
)
actions = st.lists(st.one_of([one for weight, one in _WEIGHTED for _ in range(weight)]), min_size=25, max_size=60)
concurrency = st.fixed_dictionaries({"local": st.integers(1, 3), "remote": st.integers(1, 3)})


class RaceTests(SynchronousTestCase):
    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(concurrency, actions)
    def test_races(self, concurrency: dict[str, int], actions: Sequence[Action]) -> None:
        try:
            Story(concurrency).tell(actions)
        finally:
            self.flushLoggedErrors()
