"""Who a client is: its name by the DNS, and what it says of the user behind the connection (spec/related.md §4.1)."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from qtwist.interfaces import DNSTemporaryError, IResolver
from qtwist.policy.session import Session, plain_ip

#: How many of the names that an address has are tried.
_NAMES = 3
_IDENT_PORT = 113
_LONGEST_ANSWER = 1000
_LONGEST_IDENT = 256


async def remote_name(resolver: IResolver, address: str, clock: Any, seconds: float) -> bytes | None:
    """The name of `address`, in lower case, that has this address in turn; None when there is none, or when it is not
    known within `seconds`.

    Whoever owns an address may give it any name, so one that does not lead back is nobody's (tcpserver's -p).
    """
    found: Deferred[bytes | None] = Deferred.fromCoroutine(_confirmed_name(resolver, address))
    found.addTimeout(seconds, clock)
    try:
        return await found
    except (DNSTemporaryError, TimeoutError, CancelledError, OSError, ValueError):
        return None


async def _confirmed_name(resolver: IResolver, address: str) -> bytes | None:
    for name in (await resolver.ptr(address)).records[:_NAMES]:
        assert isinstance(name, bytes)
        try:
            addresses = (await resolver.addresses(name)).records
        except DNSTemporaryError:
            continue
        if any(plain_ip(str(known)) == address for known in addresses):
            return name.lower()
    return None


async def remote_info(session: Session, clock: Any, seconds: float, port: int = _IDENT_PORT) -> bytes | None:
    """What the client's host says by IDENT (RFC 1413) of the user behind the connection; None when it says nothing
    usable within `seconds`. Only the client's host itself vouches for it."""
    if not session.remote_ip or not session.local_ip:
        return None
    kind = TCP6ClientEndpoint if ":" in session.remote_ip else TCP4ClientEndpoint
    endpoint = kind(clock, session.remote_ip, port, timeout=seconds, bindAddress=(session.local_ip, 0))
    asking = _Ident(b"%d , %d\r\n" % (session.remote_port, session.local_port))
    connected: Deferred[Any] = connectProtocol(endpoint, asking)
    connected.addCallback(lambda _: asking.answer)
    connected.addTimeout(seconds, clock)
    try:
        return _user(await connected)
    except (ConnectError, TimeoutError, CancelledError, OSError):
        return None
    finally:
        asking.leave()


class _Ident(Protocol):
    """One question and the first line that comes."""

    def __init__(self, question: bytes) -> None:
        self._question = question
        self._received = b""
        self.answer: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._question)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if b"\n" in data or len(self._received) > _LONGEST_ANSWER:
            self._done()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._done()

    def leave(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def _done(self) -> None:
        if not self.answer.called:
            self.answer.callback(self._received[:_LONGEST_ANSWER])


def _user(answer: bytes) -> bytes | None:
    """What stands behind the third colon of the first line, without blanks; None for an error or nothing."""
    parts = answer.partition(b"\n")[0].rstrip(b"\r").split(b":", 3)
    if len(parts) < 4:
        return None
    return b"".join(parts[3].split())[:_LONGEST_IDENT].replace(b"\0", b"") or None
