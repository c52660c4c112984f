"""The queue as servers in other processes see it: messages go in through the door (doc/door.md), nothing comes out."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.interfaces import Accepted, AnswerLost, IIncomingMessage, IQueueEntrance, QueueError
from qtwist.mail.asked import joined
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.client import BROKE_OFF, NO_NETWORK, QueueRefused, read_answer
from qtwist.queue.incoming import MEMORY_LIMIT
from qtwist.queue.pipelining import PipelinedDoor
from qtwist.queue.socket_path import SocketPath
from qtwist.wire.netstring import encode
from qtwist.writing import write

_ANSWER_LIMIT = 10_000


@implementer(IIncomingMessage, IPushProducer)
class _DoorMessage(Protocol):
    """One message on its way through the door, in the chunked form of :mod:`qtwist.wire.qmqp`."""

    def __init__(self, ended: Callable[[_DoorMessage], None]) -> None:
        self._ended = ended
        self._unsent: list[bytes] | None = [b"+"]  # until the connection is there
        self._ready: Deferred[None] | None = None
        self._answer = b""
        self._result: Deferred[Accepted] | None = None
        self._outcome: Accepted | QueueError | None = None

    # IIncomingMessage

    def write(self, data: bytes) -> Deferred[None] | None:
        if data and self._outcome is None:
            self._send(encode(data))
        return self._ready

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        if self._outcome is None:
            self._result = Deferred()
            self._send(
                b"".join((b"0:,", *map(encode, joined(envelope.sender, envelope.recipients, envelope.asked)), b".")),
            )
            return self._result
        return succeed(self._outcome) if isinstance(self._outcome, Accepted) else fail(self._outcome)

    def abort(self) -> None:
        if self._outcome is None:
            self._end(QueueError(BROKE_OFF, "given up"))

    def _send(self, data: bytes) -> None:
        if self._unsent is not None:
            self._unsent.append(data)
            self.pauseProducing()
        else:
            write(self._transport, data)

    @property
    def _transport(self) -> Any:
        return self.transport

    # The connection

    def connectionMade(self) -> None:
        if self._outcome is not None:
            self._transport.abortConnection()
            return
        self._transport.registerProducer(self, True)
        unsent, self._unsent = self._unsent, None
        assert unsent is not None
        ready, self._ready = self._ready, None
        write(self._transport, b"".join(unsent))
        if self._ready is None:  # else the transport has had enough at once
            if ready is not None:
                ready.callback(None)
        elif ready is not None:
            self._ready.addCallback(ready.callback)

    def dataReceived(self, data: bytes) -> None:
        self._answer += data
        if self._answer.endswith(b",") or len(self._answer) > _ANSWER_LIMIT:
            try:
                number = read_answer(self._answer)
            except QueueRefused as error:
                if error.code == BROKE_OFF:  # it is no answer
                    self._lose_answer()
                else:
                    self._end(QueueError(error.code, error.text.decode("utf-8", "replace")))
            else:
                self._end(Accepted(number, number))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._outcome is None:
            self._lose_answer()

    def _lose_answer(self) -> None:
        """No word will come. Without an envelope, nothing was queued; with one, nobody knows."""
        text = "the queue's door closed without an answer"
        self._end(QueueError(BROKE_OFF, text) if self._result is None else AnswerLost(BROKE_OFF, text))

    def unreachable(self, reason: Failure) -> None:
        """There was nobody at the door."""
        if self._outcome is None:
            self._end(QueueError(NO_NETWORK, f"nobody is at the queue's door: {reason.getErrorMessage()}"))

    def _end(self, outcome: Accepted | QueueError) -> None:
        self._outcome = outcome
        if self.transport is not None:
            self._transport.abortConnection()
        self.resumeProducing()
        result, self._result = self._result, None
        if result is not None:
            if isinstance(outcome, Accepted):
                result.callback(outcome)
            else:
                result.errback(outcome)
        self._ended(self)

    # IPushProducer: the door reads no faster than the disk writes.

    def pauseProducing(self) -> None:
        if self._ready is None and self._outcome is None:
            self._ready = Deferred()

    def resumeProducing(self) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready.callback(None)

    def stopProducing(self) -> None:
        """The connection is lost; connectionLost says what follows."""


class _Connector(ClientFactory):
    noisy = False

    def __init__(self, message: _DoorMessage) -> None:
        self._message = message

    def buildProtocol(self, addr: Any) -> _DoorMessage:
        return self._message

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._message.unreachable(reason)


@implementer(IIncomingMessage)
class _Message:
    """One message on its way: kept in memory while it is small, and then sent together with others.

    `submit` sends a whole one, or returns None where that cannot be; `open` begins a connection of its own for it.
    """

    def __init__(
        self,
        submit: Callable[[bytes, Envelope], Deferred[Accepted] | None],
        open: Callable[[], _DoorMessage],
        ended: Callable[[_Message], None],
    ) -> None:
        self._submit = submit
        self._open = open
        self._ended: Callable[[_Message], None] | None = ended
        self._blocks: list[bytes] = []
        self._size = 0
        self._large: _DoorMessage | None = None

    def write(self, data: bytes) -> Deferred[None] | None:
        if self._large is None:
            self._blocks.append(data)
            self._size += len(data)
            return None if self._size <= MEMORY_LIMIT else self._spill()
        return self._large.write(data)

    def commit(self, envelope: Envelope) -> Deferred[Accepted]:
        result = None
        if self._large is None:
            result = self._submit(b"".join(self._blocks), envelope)
        if result is None:
            if self._large is None:
                self._spill()
            assert self._large is not None
            return self._large.commit(envelope)
        self._blocks = []
        answer: Deferred[Accepted] = Deferred()

        def answered(outcome: Any) -> None:
            answer.callback(outcome)
            self._end()

        result.addBoth(answered)
        return answer

    def abort(self) -> None:
        if self._large is not None:
            self._large.abort()
        self._end()

    def _spill(self) -> Deferred[None] | None:
        self._large = self._open()
        blocks, self._blocks = self._blocks, []
        self._end()  # it is counted by that connection now
        return self._large.write(b"".join(blocks))

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self)


@implementer(IQueueEntrance)
class DoorQueue:
    """Hands messages to the daemon behind the socket HOME/run/queue; it knows by our user id where they come from.

    Small ones share a connection (:mod:`qtwist.queue.pipelining`), large ones have one each.
    """

    def __init__(self, home: str, reactor: Any) -> None:
        self._directory = os.path.join(home, "run")
        self._reactor = reactor
        self._open: set[_DoorMessage | _Message] = set()
        self._stopped: Deferred[None] | None = None

    def start(self) -> None:
        """As FileQueue has it; once. OSError when there is no HOME/run."""
        self._socket = SocketPath(self._directory, "queue")
        self._door = PipelinedDoor(self._socket.address, self._reactor)

    def stop(self) -> Deferred[None]:
        """Fires when every message that was begun has been answered or aborted."""
        self._stopped = Deferred()
        self._check_stopped()
        return self._stopped

    def begin(self, origin: Origin) -> _Message:
        """As IQueueEntrance says; `origin` is what the door makes of our user id, whatever is given here."""
        message = _Message(self._door.submit, self._connect, self._message_ended)
        self._open.add(message)
        return message

    def _connect(self) -> _DoorMessage:
        message = _DoorMessage(self._message_ended)
        self._open.add(message)
        self._reactor.connectUNIX(self._socket.address, _Connector(message))
        return message

    def _message_ended(self, message: _DoorMessage | _Message) -> None:
        self._open.discard(message)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped is not None and not self._open and not self._stopped.called:
            self._door.close()
            self._socket.close()
            self._stopped.callback(None)
