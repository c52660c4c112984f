"""Group commit: who waits together, and who is answered what (design §4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from qtwist.interfaces import Accepted, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.accept import INTERNAL_BUG, Submission
from qtwist.queue.commit import GroupCommitter

LIMIT = 3


class FromThreads:
    """A reactor that makes calls from threads at once, one after the other."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def callFromThread(self, call: Callable[..., Any], *arguments: Any) -> None:
        call(*arguments)


class CommitterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.batches: list[list[int]] = []
        self.published = 0
        self.answers: dict[int, Any] = {}

    def commit(self, batch: Sequence[Submission]) -> list[Accepted | QueueError]:
        """Messages are numbered by their time; those that divide by five are refused, and with seven comes a defect."""
        numbers = [int(one.started) for one in batch]
        self.batches.append(numbers)
        if 7 in numbers:
            raise ValueError("a defect")
        return [Accepted(one, one) if one % 5 else QueueError(53, "no") for one in numbers]

    def run_through(self, numbers: Sequence[int]) -> None:
        """All of them are there when the thread begins."""
        reactor = FromThreads()

        def published() -> None:
            self.published += 1

        committer = GroupCommitter(reactor, self.commit, published, LIMIT)  # type: ignore[arg-type]
        committer._accepting = True
        for number in numbers:
            submission = Submission(Origin.user(1), number, Envelope(b"", ()), [])
            committer.submit(submission).addBoth(lambda result, number=number: self.answers.update({number: result}))
        committer.stop().addCallback(lambda _: reactor.ended.set())
        committer.start()
        self.assertTrue(reactor.ended.wait(30))

    def test_batches(self) -> None:
        """As many as there are, up to the limit; each has its own answer."""
        self.run_through([1, 2, 3, 4, 5, 6])
        self.assertEqual(self.batches, [[1, 2, 3], [4, 5, 6]])
        self.assertEqual(
            {number: one.number for number, one in self.answers.items() if number != 5}, {n: n for n in (1, 2, 3, 4, 6)}
        )
        self.assertEqual(self.answers[5].value.code, 53)
        self.assertEqual(self.published, 2)

    def test_nothing_accepted(self) -> None:
        """Nobody is woken for it."""
        self.run_through([5, 10])
        self.assertEqual((self.batches, self.published), ([[5, 10]], 0))

    def test_defect(self) -> None:
        """Those who were in the batch hear of it, and the others are committed."""
        self.run_through([7, 8, 9, 1])
        self.assertEqual([self.answers[number].value.code for number in (7, 8, 9)], [INTERNAL_BUG] * 3)
        self.assertEqual(self.answers[1], Accepted(1, 1))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
