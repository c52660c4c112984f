"""Connections through proxies: who is believed, who is not, and what the servers then know (control/proxyclients)."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from qtwist.proxying import HEADER_SECONDS, ProxyingFactory
from qtwist.smtpd.factory import SMTPFactory
from tests.test_smtpd import ENVELOPE, Hooks, Transport, WithFactory
from tests.test_wire_proxy_protocol import JOE_V2, SIGNATURE

HEADER = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 25\r\n"


class ProxyCase(WithFactory):
    def setUp(self) -> None:
        super().setUp()
        self.put("proxyclients", "10.0.0.9\n10.1.0.0/16 10025 10110\n")
        self.hooks = Hooks()
        self.server: SMTPFactory = self.factory(self.hooks)
        self.proxying = ProxyingFactory(self.server, self.control, self.clock)

    def connect(self, host: str = "10.0.0.9", port: int = 25) -> Transport:
        address = IPv4Address("TCP", host, 40000)
        transport = Transport(hostAddress=IPv4Address("TCP", "10.0.0.1", port), peerAddress=address)
        transport.protocol = self.proxying.buildProtocol(address)
        transport.protocol.makeConnection(transport)
        return transport

    def say(self, transport: Any, data: bytes) -> bytes:
        transport.protocol.dataReceived(data)
        said: bytes = transport.value()
        transport.clear()
        return said


class Proxying(ProxyCase):
    def test_who_it_is(self) -> None:
        """Policies, Received and the log hear of the client, not of the proxy; both versions, cut anywhere."""
        for header in (HEADER, JOE_V2):
            for step in (1, 7, 1000):
                client = self.connect()
                said = header + b"EHLO cli.test\r\n" + b"\r\n".join(ENVELOPE) + b"\r\nDATA\r\nx\r\n.\r\n"
                output = b"".join(self.say(client, said[at : at + step]) for at in range(0, len(said), step))
                self.assertTrue(output.startswith(b"220 mx.test ESMTP\r\n"), output)
                session = client.protocol.session
                self.assertEqual((session.remote_ip, session.remote_port), ("192.0.2.7", 56324))
                self.assertEqual((session.local_ip, session.local_port), ("192.0.2.1", 25))
                message = self.queue.messages.pop()
                self.assertTrue(
                    message.data.startswith(
                        b"Received: from unknown (HELO cli.test) (192.0.2.7)\n  by 192.0.2.1 with SMTP"
                    )
                )

    def test_nothing_before_the_header(self) -> None:
        """No policy is asked, and nothing is said."""
        client = self.connect()
        self.assertEqual(self.say(client, HEADER[:-1]), b"")
        self.assertEqual(self.hooks.calls, [])
        self.assertEqual(self.say(client, b"\n"), b"220 mx.test ESMTP\r\n")
        self.assertEqual(self.hooks.calls, [("connect",)])
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_the_proxy_for_itself(self) -> None:
        """LOCAL and UNKNOWN: the addresses are those of the connection."""
        for header in (SIGNATURE + b"\x20\0\0\0", b"PROXY UNKNOWN\r\n"):
            client = self.connect()
            self.say(client, header)
            self.assertEqual(client.protocol.session.remote_ip, "10.0.0.9")

    def test_no_header(self) -> None:
        """A proxy that sends none, or a wrong one, is not served."""
        for data in (
            b"EHLO x\r\n",
            b"PROXY TCP4 1.2.3.4\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\nEHLO x\r\n",
            b"x" * 5000,
        ):
            client = self.connect()
            self.assertEqual(self.say(client, data), b"")
            self.assertTrue(client.aborted, data)
        self.assertEqual(self.hooks.calls, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_slow(self) -> None:
        client = self.connect()
        self.clock.advance(HEADER_SECONDS / 2)
        self.say(client, HEADER[:-1])
        self.clock.advance(HEADER_SECONDS / 2)
        self.assertTrue(client.aborted)

    def test_gone(self) -> None:
        from twisted.internet.protocol import connectionDone

        self.connect().protocol.connectionLost(connectionDone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_others_are_not_believed(self) -> None:
        """The header is a command that does not exist; so is a second one, and one on another port."""
        for host, port in (("10.0.0.8", 25), ("192.0.2.7", 25), ("10.1.2.3", 25), ("::1", 10025)):
            client = self.connect(host, port)
            self.assertTrue(self.say(client, HEADER).endswith(b"502 unimplemented (#5.5.1)\r\n"))
            self.assertEqual(client.protocol.session.remote_ip, host)
        client = self.connect()
        self.assertTrue(
            self.say(client, HEADER + HEADER.replace(b".7", b".8")).endswith(b"502 unimplemented (#5.5.1)\r\n")
        )
        self.assertEqual(client.protocol.session.remote_ip, "192.0.2.7")

    def test_ports(self) -> None:
        client = self.connect("::ffff:10.1.2.3", 10110)
        self.say(client, HEADER)
        self.assertEqual(client.protocol.session.remote_ip, "192.0.2.7")

    def test_relaying_is_for_the_client(self) -> None:
        """A proxy that may relay does not let others relay."""
        self.put("relayclients", "10.0.0.0/8\n")
        client = self.connect()
        self.say(client, HEADER)
        self.assertFalse(client.protocol.session.may_relay)
        client = self.connect()
        self.say(client, HEADER.replace(b"192.0.2.7", b"10.5.5.5"))
        self.assertTrue(client.protocol.session.may_relay)

    def test_wrong_file(self) -> None:
        """Nobody is served, as nobody knows who is who."""
        self.put("proxyclients", "10.0.0.9 smtp\n")
        self.assertIsNone(self.proxying.buildProtocol(IPv4Address("TCP", "10.0.0.9", 1)))

    def test_no_file(self) -> None:
        """It costs no protocol in between."""
        self.put("proxyclients", "")
        self.assertIsInstance(self.proxying.buildProtocol(IPv4Address("TCP", "10.0.0.9", 1)), SMTPFactory.protocol)


class Others(SynchronousTestCase):
    def test_all_protocols_know_of_it(self) -> None:
        from qtwist.pop3d.protocol import POP3Protocol
        from qtwist.qmqpd.protocol import QMQPProtocol
        from qtwist.qmtpd.protocol import QMTPProtocol
        from qtwist.smtpd.protocol import SMTPProtocol

        for kind in (SMTPProtocol, QMTPProtocol, QMQPProtocol, POP3Protocol):
            self.assertIsNone(kind.proxied)
