"""control/clamd: ClamAV looks at messages, by its own protocol (clamd(8), INSTREAM)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.control_services import Service
from qtwist.policy.asking import NoAnswer, Scanner, connected
from qtwist.policy.base import Opinion, refuse
from qtwist.policy.content import Content
from qtwist.policy.session import Session

_LONGEST_ANSWER = 4096
_ANSWER = re.compile(rb"stream: (?:(OK)|(.{1,200}) FOUND)", re.DOTALL)
_UNPRINTABLE = re.compile(rb"[^ -~]")


@implementer(IPullProducer)
class _Stream(Protocol):
    """Sends blocks, each with its length in front, and collects the answer up to its NUL."""

    transport: Any

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks: Iterator[bytes] | None = blocks
        self._said = b""
        self.answer: Deferred[bytes] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        self.transport.write(b"zINSTREAM\0")
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        block = None if self._blocks is None else next(self._blocks, None)
        if block is None:
            self.transport.write(struct.pack(">L", 0))
            self.stopProducing()
            self.transport.unregisterProducer()
        else:
            self.transport.write(struct.pack(">L", len(block)) + block)

    def stopProducing(self) -> None:
        self._blocks = None

    def dataReceived(self, data: bytes) -> None:
        self._said += data
        if b"\0" in data or len(self._said) > _LONGEST_ANSWER:
            self.transport.abortConnection()  # it may answer before it has got all

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answer.called:
            self.answer.callback(self._said)


class Clamd(Scanner):
    """Refuses messages in which clamd finds something (554), and what it cannot look at, as control/clamd says."""

    name = "clamd"
    idle_without = ("clamd",)
    timeout = 120

    async def _scan(self, service: Service, session: Session, content: Content) -> Opinion:
        stream = _Stream(content.blocks())
        await connected(service, self._clock, stream)
        said = await stream.answer
        found = _ANSWER.fullmatch(said.partition(b"\0")[0])
        if found is None:
            shown = said[:100].decode("ascii", "backslashreplace")
            raise NoAnswer(f"it said {shown!r}" if said else "it closed the connection without an answer")
        if found[1] is not None:
            return None
        virus = _UNPRINTABLE.sub(b"?", found[2])
        return refuse(554, b"the message has a virus: %b (#5.7.1)" % virus, f"{virus.decode()}, by {service.name}")
