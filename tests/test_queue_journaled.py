"""The journaled queue on a real disk, with its real thread: who hears of a message, and when (doc/journal.md)."""

from __future__ import annotations

import errno
import os

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import TestCase

from qtwist.files.disk import Disk, RealDisk
from qtwist.interfaces import Accepted
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue import settling
from qtwist.queue.accept import Acceptor, Submission
from qtwist.queue.journaled import JournaledQueue
from qtwist.queue.trigger import pull_trigger
from tests.queue_tools import WatchedDisk, make_queue, open_files

JOE = Envelope(b"a@b", (b"joe@x",))


class JournaledCase(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.layout = make_queue(self)  # type: ignore[arg-type]

    def start(self, disk: Disk | None = None) -> JournaledQueue:
        queue = JournaledQueue(self.layout.directory, disk or RealDisk(), reactor)
        queue.start()
        queue.lock()
        return queue


class OrderTests(JournaledCase):
    async def test_answer_first(self) -> None:
        """The client's server writes its answer before the queue manager begins with the message: what it does in its
        next turn comes first, too."""
        self.patch(settling, "SETTLE_AFTER", 1000.0)  # what is settled is told once more
        queue = self.start()
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

    async def test_news_of_files(self) -> None:
        """What another program has put into the files is found with what is new in the journal."""
        queue = self.start()
        self.addCleanup(queue.stop)
        await queue.todo()
        journaled = await queue.begin(Origin.network(1000)).commit(JOE)
        self.assertEqual(await queue.todo(), [journaled.number])
        woken: Deferred[None] = Deferred()
        acceptor = Acceptor(RealDisk(), self.layout)
        [filed] = acceptor.commit([Submission(Origin.user(1000), 1793620800.0, JOE, [b"Subject: x\n\n"])])
        assert isinstance(filed, Accepted)
        queue.on_todo(lambda: None if woken.called else woken.callback(None))
        pull_trigger(self.layout.lock("trigger"))
        await woken
        journaled = await queue.begin(Origin.network(1000)).commit(JOE)
        self.assertEqual(set(await queue.todo()), {journaled.number, filed.number})


class AskedTests(JournaledCase):
    async def test_kept(self) -> None:
        """What was asked for (DSN) is known after preprocessing, and after a restart."""
        queue = self.start()
        asked = Asked(b"RET=HDRS", (b"NOTIFY=NEVER",))
        accepted = await queue.begin(Origin.network(1000)).commit(Envelope(b"a@b", (b"joe@x",), asked))
        await queue.preprocess([accepted.number], lambda address: ("remote", address))
        before = (await queue.info(accepted.number)).asked
        assert before is not None
        self.assertEqual((before.mail, set(before.recipients.values())), (b"RET=HDRS", {b"NOTIFY=NEVER"}))
        await queue.stop()
        queue = self.start()
        self.addCleanup(queue.stop)
        self.assertEqual((await queue.info(accepted.number)).asked, before)


class SettlingTests(JournaledCase):
    async def test_disk_in_trouble(self) -> None:
        """What cannot be written into the files stays in the journal, and no file of it stays open."""
        full = False

        def watch(operation: str) -> None:
            if full and operation == "utime":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        queue = self.start(WatchedDisk(watch))
        accepted = await queue.begin(Origin.network(1000)).commit(JOE)
        await queue.preprocess([accepted.number], lambda address: ("remote", address))
        full = True
        await queue.stop()
        left = {
            os.path.relpath(path, os.path.realpath(self.layout.directory)) for path in open_files(self.layout.directory)
        }
        self.assertEqual({name for name in left if name.split("/")[0] in ("mess", "info", "local", "remote")}, set())
        queue = self.start()
        self.addCleanup(queue.stop)
        [record], _ = await queue.recipients(accepted.number, "remote", 0, 10)
        self.assertEqual((record.address, record.done), (b"joe@x", False))
