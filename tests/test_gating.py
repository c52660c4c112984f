"""Rules about clients for servers without policies, POP3 and QMQP (spec/related.md §4.1)."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from qtwist import gating
from qtwist.control import Control
from qtwist.gating import Gate, Waiting
from qtwist.policy.tcprules import PATIENCE
from qtwist.pop3d.factory import POP3Factory
from qtwist.proxying import ProxyingFactory
from qtwist.qmqpd.factory import QMQPFactory
from qtwist.serving import DrainingFactory, ImplicitTLSFactory
from tests.certificates import Authority
from tests.policy_tools import SILENT, Names, PolicyCase
from tests.test_pop3d import Transport
from tests.test_qmqpd import OK, REQUEST
from tests.test_smtpd import NOW
from tests.test_tls_servers import Client, Files

NAMES = {
    ("ptr", "192.0.2.9"): [b"Joe.Good.test"],
    ("a", b"Joe.Good.test"): ["192.0.2.9"],
    ("ptr", "192.0.2.66"): [b"forged.good.test"],
    ("a", b"forged.good.test"): ["192.0.2.9"],
    ("ptr", "192.0.2.77"): SILENT,
}


def address(ip: str) -> IPv4Address:
    return IPv4Address("TCP", ip, 40000)


class ByAddress(PolicyCase):
    """Where no rule wants more, all is settled when the client connects."""

    def admit(self, gate: Gate, client: IAddress | None) -> Any:
        return gate.build(DrainingFactory(), client, lambda variables: variables)

    def test_rules(self) -> None:
        gate = Gate(self.surroundings(), "pop3")
        client, other = address("192.0.2.9"), address("192.0.3.9")
        self.assertEqual(self.admit(gate, client), {})
        self.put("tcp.pop3", "192.0.2.:deny\n")
        self.assertIsNone(self.admit(gate, client))
        self.assertEqual((self.admit(gate, other), self.admit(gate, None)), ({}, {}))
        self.put("tcp.pop3", '192.0.2.:allow,MAXCONNIP="3",X="a=b"\n')
        self.assertEqual(self.admit(gate, client), {b"MAXCONNIP": b"3", b"X": b"a=b"})
        self.put("tcp.pop3", "192.0.2.:deny\n")
        self.assertIsNone(self.admit(gate, client))
        self.put("tcp.pop3", ":deny\n")  # the whole Internet; a client at a Unix socket has no address
        self.assertEqual((self.admit(gate, client), self.admit(gate, UNIXAddress(None))), (None, {}))
        self.put("tcp.pop3", "192.0.2.:deny\n")
        self.assertIsNone(self.admit(gate, client))
        self.put("tcp.pop3", "nonsense:\n")
        self.assertIsNone(self.admit(gate, client))
        self.assertEqual(self.admit(gate, other), {})
        self.assertIsNone(self.admit(Gate(self.surroundings(), "pop3"), client))
        self.assertEqual(self.names.asked, [])


class Served:
    """A client of a server, from its connection on: the server's protocol is whatever the transport has."""

    def __init__(self, factory: Any, ip: str = "192.0.2.9") -> None:
        self.transport: Any = Transport(peerAddress=address(ip), hostAddress=address("192.0.2.1"))
        self.transport.protocol = factory.buildProtocol(address(ip))
        self.transport.protocol.makeConnection(self.transport)

    def say(self, data: bytes) -> bytes:
        self.transport.protocol.dataReceived(data)
        return self.heard()

    def heard(self) -> bytes:
        data: bytes = self.transport.value()
        self.transport.clear()
        return data

    @property
    def waits(self) -> bool:
        return isinstance(self.transport.protocol, Waiting) and not self.transport.aborted


class ByName(PolicyCase):
    """Names and IDENT are asked for where a rule is about them, and never in the way for long (§4.1)."""

    def setUp(self) -> None:
        super().setUp()
        self.names.table = dict(NAMES)
        self.put("qmqpclients", "192.0.2.0/24\n")
        self.lines: list[str] = []
        self.noted: list[Any] = []

        def note(event: Any) -> None:
            if event.get("log_namespace") == "qtwist.policy":
                self.noted.append(event)
                self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(note)
        self.addCleanup(globalLogPublisher.removeObserver, note)

    def qmqp(self) -> QMQPFactory:
        factory = QMQPFactory(self.control, self.queue, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        factory.surroundings.make = lambda: self.names  # type: ignore[assignment,return-value]
        return factory

    def pop3(self) -> POP3Factory:
        factory = POP3Factory(self.control, None, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        factory.surroundings.make = lambda: self.names  # type: ignore[assignment,return-value]
        return factory

    def test_qmqp(self) -> None:
        """Who has the name is served, and the Received line tells it; a name that leads elsewhere is none."""
        self.put("tcp.qmqp", '=.good.test:allow,X="1"\n:deny\n')
        factory = self.qmqp()
        client = Served(factory)
        self.assertEqual(client.say(REQUEST), OK)
        self.assertIn(b"Received: from joe.good.test (192.0.2.9)\n", self.queue.messages[0].data)
        forged = Served(factory, "192.0.2.66")
        self.assertEqual((forged.transport.aborted, forged.heard()), (True, b""))
        self.assertEqual(
            self.lines, ["connection answered 421 rule=tcprules (:deny of control/tcp.qmqp) ip=192.0.2.66"]
        )

    def test_pop3(self) -> None:
        """Nothing is said before it is known who it is; who does not become known in time has no name."""
        self.put("tcp.pop3", "=.good.test:deny\n")
        factory = self.pop3()
        self.assertTrue(Served(factory).transport.aborted)
        silent = Served(factory, "192.0.2.77")
        self.assertEqual((silent.waits, silent.heard(), silent.transport.producerState), (True, b"", "paused"))
        self.clock.advance(PATIENCE - 0.1)
        self.assertTrue(silent.waits)
        self.clock.advance(0.1)
        self.assertTrue(silent.heard().startswith(b"+OK "))
        self.assertEqual(silent.transport.producerState, "producing")
        self.assertTrue(silent.say(b"QUIT\r\n").startswith(b"+OK"))

    def test_what_waits_is_counted(self) -> None:
        """As the server's connection, which ends with it; and there are not too many of them."""
        self.put("tcp.pop3", "=.good.test:deny\n")
        self.patch(gating, "MOST_WAITING", 2)
        factory = self.pop3()
        clients = [Served(factory, "192.0.2.77") for _ in range(2)]
        self.assertEqual(len(factory.connections), 2)
        self.assertIsNone(factory.buildProtocol(address("192.0.3.9")))
        waiting = "(2 clients wait to be looked up, 0 of 192.0.3.0/24)"
        self.assertEqual(self.lines, [f"connection answered 421 rule=tcprules {waiting} ip=192.0.3.9"])
        self.assertEqual(self.noted[0]["rule"], "tcprules")  # that is what `qtwist log why` explains
        clients[0].transport.protocol.connectionLost()
        self.assertEqual(len(factory.connections), 1)
        factory.drain()
        self.assertTrue(clients[1].transport.aborted)
        clients[1].transport.protocol.connectionLost()
        self.assertEqual(factory.connections, set())
        self.clock.advance(PATIENCE)
        self.assertEqual([client.heard() for client in clients], [b"", b""])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody_takes_all_places(self) -> None:
        """However many of one network wait, somebody from another one is let in."""
        self.put("tcp.pop3", "=.good.test:deny\n")
        self.patch(gating, "MOST_OF_A_NETWORK", 2)
        factory = self.pop3()
        clients = [Served(factory, "192.0.2.77") for _ in range(2)]
        self.assertIsNone(factory.buildProtocol(address("192.0.2.78")))
        self.assertTrue(Served(factory, "192.0.3.9").heard().startswith(b"+OK "))
        clients.pop().transport.protocol.connectionLost()
        self.assertTrue(Served(factory, "192.0.2.66").heard().startswith(b"+OK "))

    def test_what_comes_with_the_header_of_a_proxy(self) -> None:
        """A client that speaks first: what it said before it was known who it is, is heard afterwards."""
        self.put("proxyclients", "10.0.0.7\n")
        self.names.table["ptr", "192.0.2.9"] = SILENT
        self.put("tcp.qmqp", "=.good.test:deny\n")
        factory = self.qmqp()
        client = Served(ProxyingFactory(factory, self.control, self.clock), "10.0.0.7")
        header = b"PROXY TCP4 192.0.2.9 192.0.2.1 40000 628\r\n"
        self.assertEqual(client.say(header + REQUEST[:20]), b"")
        self.assertTrue(client.waits)
        self.assertEqual(client.say(REQUEST[20:]), b"")
        self.clock.advance(PATIENCE)
        self.assertEqual(client.heard(), OK)


class OverSockets(TestCase):
    """The connection goes over to the server's protocol: with TLS from the start, and behind a proxy."""

    timeout = 60

    def setUp(self) -> None:
        self.files = Files(self.mktemp())
        self.authority = Authority()
        self.files.put("me", "mx.test\n")
        self.files.put("tcp.pop3", "=.good.test:allow\n:deny\n")
        self.files.put("servercert.pem", self.authority.certify("mx.test"))
        self.names = Names({**NAMES, ("ptr", "127.0.0.1"): [b"me.good.test"], ("a", b"me.good.test"): ["127.0.0.1"]})
        control = Control(self.files.path)
        self.factory = POP3Factory(control, None)  # type: ignore[arg-type]
        self.factory.surroundings.make = lambda: self.names  # type: ignore[assignment,return-value]
        behind = ProxyingFactory(ImplicitTLSFactory(self.factory), control, IReactorTime(reactor))
        port = reactor.listenTCP(0, behind, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(port.stopListening)
        self.addCleanup(self.gone)
        self.port: int = port.getHost().port

    def gone(self) -> Deferred[None]:
        self.factory.abort()
        return self.factory.drain()

    def greeting(self, before: bytes = b"") -> bytes:
        """What a client reads first, over TLS, when it has said `before` in the clear; empty when it is sent away."""
        try:
            client = Client(self.port, self.authority)
        except ConnectionResetError:  # sooner than the client's own system knew that it was there
            return b""
        try:
            client.sock.sendall(before)
            client.wrap()
            line: bytes = client.file.readline()
        except OSError:
            return b""
        finally:
            client.close()
        return line

    async def test_tls(self) -> None:
        self.assertTrue((await deferToThread(self.greeting)).startswith(b"+OK "))
        self.names.table = {}
        self.assertEqual(await deferToThread(self.greeting), b"")

    async def test_proxy(self) -> None:
        """It is the address that the proxy tells which counts."""
        self.files.put("proxyclients", "127.0.0.1\n")
        for ip, served in (("192.0.2.9", True), ("192.0.2.66", False)):
            before = b"PROXY TCP4 %b 192.0.2.1 40000 995\r\n" % ip.encode()
            self.assertEqual((await deferToThread(self.greeting, before)).startswith(b"+OK "), served, ip)
