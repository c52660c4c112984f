"""Fetches small texts over HTTPS, with the host's addresses from our own resolver, and no redirects."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from qtwist.interfaces import IResolver


class FetchError(Exception):
    """There is nothing to be had; ``str()`` says why."""


class HTTPSFetcher:
    """GETs texts of at most `most` octets in at most `seconds`.

    The server's certificate must be good for its name by the system's authorities. `port` is for tests.
    """

    def __init__(
        self, reactor: Any, clock: IReactorTime, resolver: IResolver, *, most: int, seconds: float, port: int = 443
    ) -> None:
        self._clock = clock
        self._most = most
        self._seconds = seconds
        self._agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, resolver, port))

    def get(self, host: bytes, path: bytes) -> Deferred[bytes]:
        """The text at ``https://HOST/PATH``. Errbacks with FetchError, or what the network has to say."""
        fetched = Deferred.fromCoroutine(self._get(b"https://" + host + path))
        return fetched.addTimeout(self._seconds, self._clock)

    async def _get(self, uri: bytes) -> bytes:
        response: Any = await self._agent.request(b"GET", uri, Headers({b"User-Agent": [b"qtwist"]}))
        found = response.code == 200
        body = _Body(self._most if found else 0)
        response.deliverBody(body)
        if not found:
            body.done.addErrback(lambda failure: None)
            raise FetchError(f"the answer is {response.code}")
        return await body.done


class _Body(Protocol):
    """Collects a body, up to `most` octets."""

    transport: Any

    def __init__(self, most: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self.transport.loseConnection())
        self._most = most
        self._parts: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._most:
            self._parts.append(data)
        else:
            self._parts.clear()
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if self._size > self._most:
            self.done.errback(FetchError(f"it has more than {self._most} octets"))
        elif reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, resolver: IResolver, port: int) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._port = port

    def endpointForURI(self, uri: Any) -> Any:
        name = uri.host.decode("ascii")
        return wrapClientTLS(optionsForClientTLS(name), _Resolved(self._reactor, self._resolver, uri.host, self._port))


@implementer(IStreamClientEndpoint)
class _Resolved:
    """Connects to one of the addresses of a name."""

    def __init__(self, reactor: Any, resolver: IResolver, name: bytes, port: int) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._name = name
        self._port = port

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> Any:
        answer = await self._resolver.addresses(self._name)
        if not answer.records:
            raise FetchError(f"{self._name.decode('ascii', 'replace')} has no address")
        address = str(answer.records[0])
        endpoint: Any = TCP6ClientEndpoint if ":" in address else TCP4ClientEndpoint
        return await endpoint(self._reactor, address, self._port).connect(factory)
