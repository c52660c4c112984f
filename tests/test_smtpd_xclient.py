"""XCLIENT: for whom a trusted front end speaks, and that nobody else can (Postfix's XCLIENT_README)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.policy import Policy, Session, refuse
from qtwist.policy.base import Opinion
from qtwist.policy.session import is_local
from qtwist.tls.info import ClientCertificate, TLSInfo
from qtwist.wire.xclient import parse_xclient
from tests.test_smtpd import ENVELOPE, Client, Hooks, WithFactory

JOE = b"XCLIENT NAME=cli.test ADDR=192.0.2.7"


class Attributes(SynchronousTestCase):
    def test_good(self) -> None:
        """Its "XCLIENT Command syntax": any letter case, xtext, IPv6 with its prefix, what is not known."""
        for argument, wanted in (
            (b"ADDR=192.0.2.7", {b"ADDR": b"192.0.2.7"}),
            (b"addr=IPv6:2001:DB8:0::7  Port=025", {b"ADDR": b"2001:db8::7", b"PORT": b"25"}),
            (b"NAME=[UNAVAILABLE] HELO=[tempunavail]", {b"NAME": None, b"HELO": None}),
            (b"HELO=a+20b+2B proto=esmtp", {b"HELO": b"a b+", b"PROTO": b"ESMTP"}),
            (b"DESTADDR=10.0.0.1 DESTPORT=587", {b"DESTADDR": b"10.0.0.1", b"DESTPORT": b"587"}),
            (b"NAME=a_b.test.", {b"NAME": b"a_b.test."}),
        ):
            self.assertEqual(parse_xclient(argument), wanted)

    def test_bad(self) -> None:
        for argument in (
            b"",
            b"ADDR",
            b"ADDR=",
            b"ADDR=192.0.2",
            b"ADDR=192.0.2.7 ADDR=192.0.2.8",
            b"ADDR=2001:db8::1",
            b"ADDR=IPV6:192.0.2.7",
            b"ADDR=IPV6:fe80::1+25eth0",
            b"ADDR=[UNAVAILABLE]",
            b"PROTO=[UNAVAILABLE]",
            b"PROTO=QMTP",
            b"PORT=65536",
            b"PORT=-1",
            b"LOGIN=joe",
            b"NAME=a b",
            b"NAME=a+20b",
            b"NAME=a+0D+0AMAIL",
            b"HELO=a+0D+0AReceived:",
            b"HELO=a+00",
            b"HELO=a+2",
            b"HELO=a+2b",
            b"HELO=a=b",
            b"HELO=" + b"x" * 256,
            b"ADDR=\xc2\xb2.0.0.1",
        ):
            with self.subTest(argument=argument):
                self.assertRaises(ValueError, parse_xclient, argument)

    @given(st.binary())
    def test_anything(self, argument: bytes) -> None:
        for start in (b"", b"ADDR=", b"HELO=", b"NAME=", b"PORT="):
            try:
                values = parse_xclient(start + argument).values()
            except ValueError:
                continue
            for value in values:
                self.assertFalse(set(value or b"") & set(b"\r\n\0"))


class XClientCase(WithFactory):
    def setUp(self) -> None:
        super().setUp()
        self.put("xclients", "10.0.0.9\n")

    def fronted(self, *policies: Policy, command: bytes = JOE) -> Client:
        """A client behind the front end, whose greeting has come."""
        client = self.client(*policies)
        self.assertEqual(client.say(command), [b"220 mx.test ESMTP"])
        return client


class Fronts(XClientCase):
    def test_announced_to_front_ends(self) -> None:
        for host, offered in (("10.0.0.9", True), ("10.0.0.8", False), ("127.0.0.1", False)):
            client = self.client(host=host)
            lines = client.say(b"EHLO front")
            wanted = b"250-XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT"
            self.assertEqual(wanted in [line.replace(b"250 ", b"250-") for line in lines], offered)
            if not offered:
                self.assertEqual(client.say(JOE), [b"502 5.5.1 unimplemented"])
                self.assertEqual(client.protocol.session.remote_ip, host)

    def test_who_it_is(self) -> None:
        """Policies, Received and log know the client."""
        client = self.fronted()
        session = client.protocol.session
        self.assertEqual((session.remote_ip, session.remote_port, session.local_ip), ("192.0.2.7", 0, "10.0.0.1"))
        client.say(b"EHLO cli.test", *ENVELOPE, b"DATA", b"x", b".")
        received = b"Received: from cli.test (192.0.2.7)\n  by 10.0.0.1 with SMTP"
        self.assertTrue(self.queue.messages[0].data.startswith(received), self.queue.messages[0].data)

    def test_the_whole(self) -> None:
        ends = b"ADDR=IPV6:2001:db8::7 PORT=4000 DESTADDR=IPV6:2001:db8::1 DESTPORT=25"
        client = self.fronted(command=b"XCLIENT " + ends + b" HELO=cli.test PROTO=ESMTP")
        session = client.protocol.session
        self.assertEqual((session.remote_ip, session.remote_port), ("2001:db8::7", 4000))
        self.assertEqual((session.local_ip, session.local_port), ("2001:db8::1", 25))
        self.assertEqual((session.helo, session.extended), (b"cli.test", True))

    def test_in_two_commands(self) -> None:
        """What was said before counts until another address is told."""
        client = self.fronted(command=b"XCLIENT NAME=cli.test")
        client.say(b"XCLIENT ADDR=192.0.2.7")
        self.assertNotIn(b"TCPREMOTEHOST", client.protocol.session.environment)
        client.say(b"XCLIENT NAME=other.test")
        session = client.protocol.session
        self.assertEqual((session.remote_ip, session.environment[b"TCPREMOTEHOST"]), ("192.0.2.7", b"other.test"))

    def test_all_is_asked_anew(self) -> None:
        """The greeting is the policies' for the client; what they allowed the front end is not its clients'."""
        self.put("relayclients", "10.0.0.0/8\n")
        hooks = Hooks()
        client = self.client(hooks)
        self.assertTrue(client.protocol.session.may_relay)
        client.say(JOE)
        self.assertFalse(client.protocol.session.may_relay)
        self.assertEqual([call[0] for call in hooks.calls], ["connect", "connect"])
        self.assertEqual(client.codes(b"HELO c", ENVELOPE[0], b"RCPT TO:<x@far.test>"), [250, 250, 553])

    def test_refused(self) -> None:
        """A client that may not connect is told so, and the connection ends."""

        class Picky(Policy):
            def connect(self, session: Session) -> Opinion:
                return refuse(554, b"not you (#5.7.1)") if session.remote_ip == "192.0.2.7" else None

        client = self.client(Picky())
        self.assertEqual(client.say(JOE), [b"554 not you (#5.7.1)"])
        self.assertTrue(client.transport.disconnecting)

    def test_sessions_end(self) -> None:
        """Each session that began ends once: the front end's, too."""
        ended = []

        class Counting(Policy):
            def end(self, session: Session) -> None:
                ended.append(session.remote_ip)

        client = self.fronted(Counting())
        self.assertEqual(ended, ["10.0.0.9"])
        client.hang_up()
        self.assertEqual(ended, ["10.0.0.9", "192.0.2.7"])

    def test_limits_are_the_clients(self) -> None:
        self.put("maxconnip", "1\n")
        factory = self.factory()
        first, second = Client(factory), Client(factory)
        first.replies()
        second.replies()
        self.assertEqual(first.say(JOE), [b"220 mx.test ESMTP"])
        self.assertEqual(Client(factory).codes(JOE)[-1] // 100, 4)

    def test_order(self) -> None:
        """Not in a transaction; a greeting is due again; the login is forgotten."""
        client = self.client()
        client.say(b"EHLO front", ENVELOPE[0])
        self.assertEqual(client.say(JOE), [b"503 5.5.1 not in the middle of a transaction"])
        self.assertEqual(client.say(b"RSET", JOE), [b"250 2.0.0 flushed", b"220 mx.test ESMTP"])
        self.assertEqual(client.say(ENVELOPE[1]), [b"503 MAIL first (#5.5.1)"])
        self.assertIsNone(client.protocol.session.helo)
        self.assertEqual(client.codes(b"XCLIENT ADDR=me"), [501])
        client.say(b"EHLO cli.test", *ENVELOPE, b"BDAT 2\r\n")
        self.assertEqual(client.codes(JOE), [503])

    def test_login_and_certificate_are_the_front_ends(self) -> None:
        client = self.client()
        session = client.protocol.session
        session.user = b"front"
        session.tls = TLSInfo("TLSv1.3", "x", client=ClientCertificate("CN=front", (b"front@mx.test",), "00"))
        client.say(JOE)
        self.assertIsNone(session.user)  # logged out
        session = client.protocol.session
        self.assertIsNone(session.user)
        assert session.tls is not None
        self.assertIsNone(session.tls.client)

    def test_nobody_becomes_local(self) -> None:
        """Passwords in the clear are for clients on this host: the front end's word, not its own place, counts."""
        self.put("xclients", "127.0.0.1\n")
        client = self.client(host="127.0.0.1")
        self.assertTrue(client.protocol._plaintext)
        client.say(JOE)
        self.assertFalse(client.protocol._plaintext)
        self.assertFalse(is_local(client.protocol.session.remote_ip))

    def test_wrong_file(self) -> None:
        self.put("xclients", "front.test\n")
        client = Client(self.factory())
        self.assertEqual(client.replies(), [b"421 the configuration cannot be read (#4.3.0)"])
