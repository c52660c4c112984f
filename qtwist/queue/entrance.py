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
from qtwist.mail.envelope import Envelope, Origin
from qtwist.queue.client import BROKE_OFF, NO_NETWORK, QueueRefused, read_answer
from qtwist.wire.netstring import encode

_PATH_LIMIT = 107  # sun_path holds 108 octets, with a NUL
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
                b"".join((b"0:,", encode(envelope.sender), *map(encode, envelope.recipients), b".")),
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
            self._transport.write(data)

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
        self._transport.write(b"".join(unsent))
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


@implementer(IQueueEntrance)
class DoorQueue:
    """Hands messages to the daemon behind the socket HOME/run/queue; it knows by our user id where they come from."""

    def __init__(self, home: str, reactor: Any) -> None:
        self._directory = os.path.join(home, "run")
        self._reactor = reactor
        self._holder = -1
        self._open: set[_DoorMessage] = set()
        self._stopped: Deferred[None] | None = None

    def start(self) -> None:
        """As FileQueue has it; once. OSError when there is no HOME/run."""
        self._path = os.path.join(self._directory, "queue")
        if len(os.fsencode(self._path)) > _PATH_LIMIT:
            self._holder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._path = f"/proc/self/fd/{self._holder}/queue"

    def stop(self) -> Deferred[None]:
        """Fires when every message that was begun has been answered or aborted."""
        self._stopped = Deferred()
        self._check_stopped()
        return self._stopped

    def begin(self, origin: Origin) -> _DoorMessage:
        """As IQueueEntrance says; `origin` is what the door makes of our user id, whatever is given here."""
        message = _DoorMessage(self._message_ended)
        self._open.add(message)
        self._reactor.connectUNIX(self._path, _Connector(message))
        return message

    def _message_ended(self, message: _DoorMessage) -> None:
        self._open.discard(message)
        self._check_stopped()

    def _check_stopped(self) -> None:
        if self._stopped is not None and not self._open and not self._stopped.called:
            if self._holder != -1:
                os.close(self._holder)
                self._holder = -1
            self._stopped.callback(None)
