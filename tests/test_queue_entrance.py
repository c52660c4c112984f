"""The queue as servers in other processes see it, over a real socket: doc/door.md."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from qtwist.interfaces import AnswerLost, QueueError
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.entrance import DoorQueue
from tests.test_queue_door import SocketCase

ENVELOPE = Envelope(b"a@b", (b"c@d", b"e@f"))


class EntranceTests(SocketCase):
    def setUp(self) -> None:
        super().setUp()
        self.entrance = DoorQueue(self.path, reactor)
        self.entrance.start()
        self.addCleanup(self.entrance.stop)

    def begin(self) -> Any:
        return self.entrance.begin(Origin.network(0))

    async def refusal(self, result: Deferred[Any]) -> QueueError:
        try:
            await result
        except QueueError as error:
            return error
        raise AssertionError("not refused")

    async def test_accepted(self) -> None:
        """Who asks is found out from the socket, whatever the origin says; servers' accounts count as the network."""
        service = self.home.door(frozenset({os.geteuid()}))
        service.startService()
        self.addCleanup(self.close, service)
        message = self.begin()
        message.write(b"Subject: x\n")
        message.write(b"\nhello\n")
        accepted = await message.commit(ENVELOPE)
        self.assertEqual((accepted.number, accepted.qp), (101, 101))
        self.assertEqual(self.queue.accepted, [(ENVELOPE, b"Subject: x\n\nhello\n")])
        self.assertEqual(self.queue.origins[101], Origin.network(os.geteuid()))

    async def test_large(self) -> None:
        """The writer waits for the disk; memory does not hold the message."""
        self.open()
        message = self.begin()
        blocks = [bytes([number]) * 100_000 for number in range(100)]
        waited = 0
        for block in blocks:
            ready = message.write(block)
            if ready is not None:
                waited += 1
                await ready
        accepted = await message.commit(ENVELOPE)
        self.assertEqual(self.queue.messages[accepted.number], b"".join(blocks))
        self.assertGreater(waited, 0)

    async def test_refused(self) -> None:
        self.open()
        self.queue.refuse = 53
        message = self.begin()
        message.write(b"hello\n")
        error = await self.refusal(message.commit(ENVELOPE))
        self.assertEqual(error.code, 53)

    async def test_nobody_at_the_door(self) -> None:
        """A temporary failure, before or at the commit."""
        message = self.begin()
        error = await self.refusal(message.commit(ENVELOPE))
        self.assertEqual((error.code, "nobody is at the queue's door" in error.text), (56, True))

    async def test_door_closes(self) -> None:
        """A daemon that dies before it has the envelope has not accepted anything."""
        service = self.open()
        message = self.begin()
        message.write(b"hello\n")
        while not service.factory.connections:
            await self.turn()
        service.factory.abort()
        while message.write(b"more\n") is not None or service.factory.connections:
            await self.turn()
        for _ in range(3):
            await self.turn()
        error = await self.refusal(message.commit(ENVELOPE))
        self.assertEqual((error.code, type(error)), (74, QueueError))
        self.assertEqual(self.queue.accepted, [])

    async def test_answer_lost(self) -> None:
        """One that dies with the envelope may have accepted the message: nobody knows."""
        service = self.open()
        message = self.begin()
        ready = message.write(bytes(5_000_000))
        committed = message.commit(ENVELOPE)
        self.assertIsNotNone(ready)  # the connection is not there yet
        while not service.factory.connections:
            await self.turn()
        service.factory.abort()
        error = await self.refusal(committed)
        self.assertEqual((error.code, type(error)), (74, AnswerLost))

    async def test_no_answer(self) -> None:
        """Neither does what is no answer tell anything."""
        for answer in (b"garbage,", b"3:Kok,", b"x" * 20_000):
            message = self.begin()
            committed = message.commit(ENVELOPE)
            message.dataReceived(answer)
            self.assertEqual(type(await self.refusal(committed)), AnswerLost)

    async def test_aborted(self) -> None:
        service = self.open()
        message = self.begin()
        message.write(b"hello\n")
        while not service.factory.connections:
            await self.turn()
        message.abort()
        message.abort()
        while service.factory.connections:
            await self.turn()
        self.assertEqual(self.queue.accepted, [])

    async def test_stop_waits(self) -> None:
        """A stop waits for the answer to what was committed."""
        self.open()
        message = self.begin()
        message.write(b"hello\n")
        committed = message.commit(ENVELOPE)
        await self.entrance.stop()
        self.assertEqual(self.successResultOf(committed).number, 101)

    def turn(self) -> Deferred[None]:
        """One turn of the reactor."""
        turned: Deferred[None] = Deferred()
        reactor.callLater(0, turned.callback, None)
        return turned


del SocketCase
