"""One query sent to one DNS server, by UDP or by TCP, and its reply: the sockets of the stub resolver.

Every UDP query has a socket of its own, connected to the server, so that the kernel picks a fresh source port each
time and drops what others send. It is a plain descriptor given to the reactor: Twisted's UDP port writes two lines to
the log for each socket, which would drown qmail's own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from twisted.internet import interfaces
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import ClientFactory, connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.dns.config import Server
from qtwist.dns.message import MalformedReply, Reply

# A reply for us is at most UDP_PAYLOAD octets; what is cut off here does not decode.
_DATAGRAM = 4096
_DATAGRAMS_AT_ONCE = 16

Accept = Callable[[bytes], "Reply | None"]


class ServerFailure(Exception):
    """This server gave no usable reply, and asking it again now is of no use. `args[0]` says why."""


class Ask(Protocol):
    """Send `wire` to `server`; fire with the first reply for which `accept` gives not None.

    Errbacks with ServerFailure. Has no time limit: cancelling the Deferred ends it and frees the socket.
    """

    def __call__(self, server: Server, wire: bytes, accept: Accept) -> Deferred[Reply]: ...


@implementer(interfaces.IReadDescriptor)
class _UDPExchange:
    def __init__(self, reactor: interfaces.IReactorFDSet, server: Server, accept: Accept) -> None:
        self._reactor = reactor
        self._server = server
        self._accept = accept
        self._open = True
        self._socket = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET, socket.SOCK_DGRAM)
        self.result: Deferred[Reply] = Deferred(lambda _: self._close())

    def start(self, wire: bytes) -> None:
        try:
            self._socket.setblocking(False)
            self._socket.connect((self._server.host, self._server.port))
            self._socket.send(wire)
        except OSError:
            self._socket.close()
            raise
        self._reactor.addReader(self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "dns"

    def doRead(self) -> None:
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                data, source = self._socket.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                self._finish(ServerFailure(error.strerror or "receive failed"))
                return
            # The kernel filters by source only once the socket is connected; it was open a moment before.
            if source[:2] != (self._server.host, self._server.port):
                continue
            try:
                reply = self._accept(data)
            except MalformedReply as error:
                self._finish(ServerFailure(f"malformed reply ({error})"))
                return
            if reply is not None:
                self._finish(reply)
                return

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an error on the socket, such as a port that nobody listens on."""
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if self._open else 0
        self._finish(ServerFailure(os.strerror(number) if number else reason.getErrorMessage()))

    def _finish(self, result: Reply | ServerFailure) -> None:
        if not self._open:
            return
        self._close()
        if isinstance(result, ServerFailure):
            self.result.errback(result)
        else:
            self.result.callback(result)

    def _close(self) -> None:
        self._open = False
        self._reactor.removeReader(self)
        self._socket.close()


class _TCPExchange(Int16StringReceiver):
    transport: interfaces.ITCPTransport

    def __init__(self, factory: _TCPFactory) -> None:
        self.factory = factory

    def connectionMade(self) -> None:
        self.sendString(self.factory.wire)

    def stringReceived(self, string: bytes) -> None:
        try:
            reply = self.factory.accept(string)
        except MalformedReply as error:
            self.factory.finish(ServerFailure(f"malformed reply over TCP ({error})"))
        else:
            self.factory.finish(reply if reply is not None else ServerFailure("reply to another question over TCP"))
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.finish(ServerFailure("TCP connection closed before the reply"))


class _TCPFactory(ClientFactory):
    noisy = False

    def __init__(self, wire: bytes, accept: Accept) -> None:
        self.wire = wire
        self.accept = accept
        self.connector: interfaces.IConnector | None = None
        self.result: Deferred[Reply] = Deferred(lambda _: self._abandon())
        self._finished = False

    def buildProtocol(self, addr: interfaces.IAddress | None) -> _TCPExchange:
        return _TCPExchange(self)

    def startedConnecting(self, connector: interfaces.IConnector) -> None:
        self.connector = connector

    def clientConnectionFailed(self, connector: interfaces.IConnector, reason: Failure) -> None:
        self.finish(ServerFailure(f"no TCP connection ({reason.getErrorMessage()})"))

    def finish(self, result: Reply | ServerFailure) -> None:
        if self._finished:
            return
        self._finished = True
        if isinstance(result, ServerFailure):
            self.result.errback(result)
        else:
            self.result.callback(result)

    def _abandon(self) -> None:
        # First of all, so that the end of the connection is not taken for the result.
        self._finished = True
        if self.connector is not None:
            self.connector.disconnect()


def udp(reactor: interfaces.IReactorFDSet) -> Ask:
    """The :class:`Ask` that sends one datagram."""

    def ask(server: Server, wire: bytes, accept: Accept) -> Deferred[Reply]:
        try:
            exchange = _UDPExchange(reactor, server, accept)
            exchange.start(wire)
        except OSError as error:  # no route, no such family, out of descriptors
            return fail(ServerFailure(error.strerror or "send failed"))
        return exchange.result

    return ask


def tcp(reactor: interfaces.IReactorTCP) -> Ask:
    """The :class:`Ask` that makes a connection for one query."""

    def ask(server: Server, wire: bytes, accept: Accept) -> Deferred[Reply]:
        factory = _TCPFactory(wire, accept)
        reactor.connectTCP(server.host, server.port, factory)
        return factory.result

    return ask
