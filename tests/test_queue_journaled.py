"""The journaled queue on a real disk, with its real thread: who hears of a message, and when (doc/journal.md)."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import TestCase

from qtwist.files.disk import RealDisk
from qtwist.interfaces import Accepted
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue import settling
from qtwist.queue.journaled import JournaledQueue
from tests.queue_tools import make_queue


class OrderTests(TestCase):
    timeout = 20

    async def test_answer_first(self) -> None:
        """The client's server writes its answer before the queue manager begins with the message: what it does in its
        next turn comes first, too."""
        self.patch(settling, "SETTLE_AFTER", 1000.0)  # what is settled is told once more
        queue = JournaledQueue(make_queue(self).directory, RealDisk(), reactor)
        queue.start()
        queue.lock()
        self.addCleanup(queue.stop)
        order: list[object] = []
        heard: Deferred[None]

        def todo() -> None:
            order.append("queue manager")
            if not heard.called:
                heard.callback(None)

        def accepted(result: Accepted) -> None:
            order.append("accepted")
            IReactorTime(reactor).callLater(0, order.append, "answer written")

        queue.on_todo(todo)
        for _ in range(3):  # with the first one comes what the queue says at its start, too
            order.clear()
            heard = Deferred()
            incoming = queue.begin(Origin.network(1000))
            incoming.write(b"Subject: hello\n\n")
            await incoming.commit(Envelope(b"a@b", (b"joe@x",))).addCallback(accepted)
            await heard
            self.assertEqual(order[:3], ["accepted", "answer written", "queue manager"])
