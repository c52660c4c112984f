"""The queue as servers in other processes see it, over a real socket: doc/door.md."""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from qtwist.interfaces import AnswerLost, QueueError
from qtwist.mail.asked import Asked
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.entrance import DoorQueue
from qtwist.roles import DoorService
from tests.test_queue_door import SocketCase

ENVELOPE = Envelope(b"a@b", (b"c@d", b"e@f"))
ASKING = Envelope(b"a@b", (b"c@d", b"e@f"), Asked(b"RET=HDRS", (b"", b"NOTIFY=NEVER")))


class Answering(Protocol):
    """Gives one answer to whatever comes, and leaves."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(self.answer)
        self.transport.loseConnection()


class EntranceTests(SocketCase):
    def setUp(self) -> None:
        super().setUp()
        self.entrance = DoorQueue(self.path, reactor)
        self.entrance.start()
        self.addCleanup(self.entrance.stop)

    def open(self) -> DoorService:
        """The door, with this process as one of the servers."""
        service = self.home.door(frozenset({os.geteuid()}))
        service.startService()
        self.addCleanup(self.close, service)
        return service

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
        self.open()
        message = self.begin()
        message.write(b"Subject: x\n")
        message.write(b"\nhello\n")
        accepted = await message.commit(ENVELOPE)
        self.assertEqual((accepted.number, accepted.qp), (101, 101))
        self.assertEqual(self.queue.accepted, [(ENVELOPE, b"Subject: x\n\nhello\n")])
        self.assertEqual(self.queue.origins[101], Origin.network(os.geteuid()))

    async def test_parameters(self) -> None:
        """What was asked for (RFC 3461) goes with small messages and with large ones; what is none is refused."""
        self.open()
        for size in (10, 200_000):
            message = self.begin()
            message.write(b"x" * size)
            await message.commit(ASKING)
            self.assertEqual(self.queue.accepted.pop()[0], ASKING)
            message = self.begin()
            message.write(b"x" * size)
            wrong = Envelope(b"a@b", (b"c@d",), Asked(b"", (b"NOTIFY=NEVER\r\nDATA",)))
            await self.refusal(message.commit(wrong))
        self.assertEqual(self.queue.accepted, [])
        self.flushLoggedErrors(ValueError)

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
        message.write(bytes(100_000))
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
        os.makedirs(f"{self.path}/run", exist_ok=True)
        for size in (10, 100_000):
            for answer in (b"garbage,", b"3:Kok,", b"x" * 20_000, b"\0\0\0\x01x", b"\0\0\0\x0d\0\0\0\x63\0" + bytes(8)):
                factory = Factory.forProtocol(lambda answer=answer: Answering(answer))
                port = reactor.listenUNIX(f"{self.path}/run/queue", factory)
                message = self.begin()
                message.write(bytes(size))
                self.assertEqual(type(await self.refusal(message.commit(ENVELOPE))), AnswerLost)
                await port.stopListening()

    async def test_aborted(self) -> None:
        """While it is small, nobody has heard of it; a large one closes its connection."""
        service = self.open()
        message = self.begin()
        message.write(b"hello\n")
        message.abort()
        message.abort()
        message = self.begin()
        message.write(bytes(100_000))
        while not service.factory.connections:
            await self.turn()
        message.abort()
        message.abort()
        while service.factory.connections:
            await self.turn()
        self.assertEqual(self.queue.accepted, [])

    async def test_side_by_side(self) -> None:
        """Small messages share one connection, and one that is refused does not harm the others."""
        service = self.open()
        messages = [self.begin() for _ in range(50)]
        for number, message in enumerate(messages):
            self.assertIsNone(message.write(b"message %d\n" % number))
        answers = [message.commit(ENVELOPE) for message in messages]
        numbers = {(await answer).number for answer in answers}
        self.assertEqual(len(numbers), 50)
        self.assertEqual(
            sorted(text for _, text in self.queue.accepted), sorted(b"message %d\n" % number for number in range(50))
        )
        self.queue.refuse = 11
        self.assertEqual((await self.refusal(self.begin().commit(ENVELOPE))).code, 11)
        self.assertEqual(len(service.factory.connections), 1)

    async def test_connection_is_lost(self) -> None:
        """Every message that waits for its answer is refused for now; the next one finds the door again."""
        service = self.open()
        first = self.begin()
        first.write(b"hello\n")
        await first.commit(ENVELOPE)
        self.queue.slow.add("commit")
        second, third = self.begin(), self.begin()
        answers = [second.commit(ENVELOPE), third.commit(ENVELOPE)]
        while self.queue.held_up < 2:
            await self.turn()
        service.factory.abort()
        for answer in answers:
            self.assertEqual((await self.refusal(answer)).code, 74)
        self.queue.slow.clear()
        fourth = self.begin()
        fourth.write(b"again\n")
        self.assertEqual((await fourth.commit(ENVELOPE)).number > 0, True)

    async def test_drain(self) -> None:
        """A door that closes answers what it was asked, and takes no more."""
        service = self.open()
        self.queue.slow.add("commit")
        message = self.begin()
        message.write(b"hello\n")
        committed = message.commit(ENVELOPE)
        while not self.queue.held_up:
            await self.turn()
        stopped = service.stopService()
        late = self.begin().commit(ENVELOPE)
        self.assertNoResult(stopped)
        self.queue.resume()
        self.assertEqual((await committed).number, 101)
        await stopped
        self.assertIn((await self.refusal(late)).code, (56, 74))

    async def test_garbage(self) -> None:
        """What is no request ends the connection, and nobody else's."""
        service = self.open()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{self.path}/run/queue")
            client.sendall(b"*" + b"\xff" * 100)
            while not service.factory.connections:
                await self.turn()
            while service.factory.connections:
                await self.turn()
            self.assertEqual(client.recv(1), b"")
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    async def test_not_for_others(self) -> None:
        """Only our own servers may ask this way: an ordinary client's memory is bounded."""
        service = self.home.door()
        service.startService()
        self.addCleanup(self.close, service)
        error = await self.refusal(self.begin().commit(ENVELOPE))
        self.assertEqual(error.code, 74)

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
