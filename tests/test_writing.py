"""Writing to a connection at once (qtwist.writing), over real sockets."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IPullProducer, IReactorTCP
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from qtwist.writing import write

BLOCK = bytes(1000)
BLOCKS = 50


@implementer(IPullProducer)
class Producing(Protocol):
    """Sends some blocks, each when it is asked for."""

    transport: Any

    def connectionMade(self) -> None:
        self.left = BLOCKS
        write(self.transport, b"head")
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.left -= 1
        write(self.transport, BLOCK)
        if not self.left:
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def stopProducing(self) -> None: ...


class Reading(Protocol):
    def __init__(self, ended: Deferred[int]) -> None:
        self._ended = ended
        self._octets = 0

    def dataReceived(self, data: bytes) -> None:
        self._octets += len(data)

    def connectionLost(self, reason: object = None) -> None:
        self._ended.callback(self._octets)


class WritingTests(TestCase):
    timeout = 20

    async def test_pull_producer(self) -> None:
        """It is asked for the next block although the socket has taken all of the last one (as with large mail)."""
        ended: Deferred[int] = Deferred()
        factory = Factory.forProtocol(lambda: Reading(ended))  # type: ignore[arg-type]
        assert IReactorTCP.providedBy(reactor)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        client = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        await client.connect(Factory.forProtocol(Producing))
        self.assertEqual(await ended, 4 + BLOCKS * len(BLOCK))
