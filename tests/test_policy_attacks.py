"""Nobody relays who may not: every odd form of an address, through every listener (issue 8)."""

from __future__ import annotations

import os

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.testing import StringTransport

from qtwist.control import ControlError
from qtwist.proxying import ProxyingFactory
from qtwist.qmqpd.factory import QMQPFactory
from qtwist.smtpd.factory import SMTPFactory
from qtwist.wire.netstring import encode
from tests.policy_tools import PolicyCase, codes
from tests.test_smtpd import Client

# What a client says as the argument of RCPT, without <>; the bytes of the address that QMTP carries are the same where
# there is nothing to unquote.
ELSEWHERE = (
    b"a@far.test", b"A@FAR.TEST", b"a@far.test.", b"a@mx.test@far.test", b'"a@mx.test"@far.test',
    b"a%far.test@far.test",
    b"far.test!a@far.test", b"a@[192.0.2.99]", b"a@[IPv6:2001:db8::1]", b"a@[127.0.0.1]", b"a@127.0.0.1",
    b"a@2130706433",
    b"a@sub.mx.test", b"a@mx.test.far.test", b"a@.mx.test", b"a@mx.test.", b"a@mx.test ", b"a@mx.test,b@far.test",
    b"a@far.test,b@mx.test,", b"a@\\mx.test@far.test", b"@far.test", b"a@", b"a@@far.test", b"a@far.test@", b"a@*",
    b"a@localhost", b"a@xn--mx.test", b"a@mx.test/far.test", b"a@mx.test:far.test", b"a@mx_test",
    b"postmaster@far.test",
    b'"a b"@far.test', b"a@mx.test%far.test",
)  # fmt: skip

# Taken, and delivered at mx.test or nowhere: the part before the last @ is a local part, whatever it says (§16.5).
HERE = (
    b"a@mx.test", b"a@MX.TEST", b"a%far.test@mx.test", b"far.test!a@mx.test", b"a@far.test@mx.test",
    b'"a@far.test"@mx.test',
    b"a%far.test%further.test@mx.test", b"/dev/null@mx.test", b"|/bin/sh@mx.test", b"../../x@mx.test", b"postmaster",
)  # fmt: skip

SOURCE_ROUTES = (b"@mx.test:a@far.test", b"@mx.test,@mx.test:a@far.test", b"@far.test:a@far.test")


class Attacks(PolicyCase):
    def smtp(self, argument: bytes) -> list[bytes]:
        """The recipients of a message that a client tries to send there."""
        client = self.connect("203.0.113.9")
        client.say(b"EHLO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:" + argument)
        return [recipient.raw for recipient in client.protocol.session.recipients]

    def qmtp(self, address: bytes) -> bytes:
        connection = self.qmtp_factory().buildProtocol(None)
        transport = StringTransport(peerAddress=IPv4Address("TCP", "203.0.113.9", 4000))
        transport.hostAddr = IPv4Address("TCP", "10.0.0.1", 209)
        transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
        connection.makeConnection(transport)
        connection.dataReceived(encode(b"\nSubject: x\n\n") + encode(b"a@b.test") + encode(encode(address)))
        answer: bytes = transport.value()
        return answer.partition(b":")[2][:1]

    def test_smtp(self) -> None:
        for form in (b"<%b>", b"%b"):
            for address in (*ELSEWHERE, *SOURCE_ROUTES):
                # Without brackets a blank ends the address, and a source route is none of mx.test's.
                if form == b"%b" and b" " in address:
                    continue
                self.assertEqual(self.smtp(form % address), [], address)
        for address in HERE:
            [taken] = self.smtp(b"<%b>" % address)
            self.assertIn(taken.rpartition(b"@")[2].lower(), (b"mx.test", b"postmaster"), address)

    def test_qmtp(self) -> None:
        for address in ELSEWHERE:
            if not address.startswith(b'"'):
                self.assertEqual(self.qmtp(address), b"D", address)
        self.assertEqual(self.qmtp(b"a@mx.test"), b"K")

    def test_the_same_policies_serve_qmtp(self) -> None:
        """A 4xx is a Z, a 5xx a D; denied is without a word."""
        for name, text, answer in (
            ("badrcptto", "a@mx.test\n", b"D"),
            ("badmailfrom", "@b.test\n", b"D"),
            ("greylisting", "", b"Z"),
            ("mfcheck", "1\n", b"D"),
            ("tcp.qmtp", ':allow,RBLSMTPD="later"\n', b"Z"),
            ("tcp.qmtp", "203.0.113.:deny\n", b""),
            ("tcp.smtp", ":deny\n", b"K"),
        ):
            self.put(name, text)
            self.assertEqual(self.qmtp(b"a@mx.test"), answer, (name, text))
            self.remove(name)

    def test_nul_and_line_ends(self) -> None:
        """A NUL or a CR in an address is refused; what stands behind an LF is a command of its own, no address."""
        for address in (
            b"a@mx.test\0@far.test",
            b"a@far.test\0@mx.test",
            b"a@mx.test\r@far.test",
            b"a@far.test\r@mx.test",
        ):
            self.assertEqual(self.smtp(b"<" + address + b">"), [], address)
        for address in (b"a@far.test\0@mx.test", b"a@mx.test\0@far.test"):
            self.assertEqual(self.qmtp(address), b"D", address)
        client = self.connect("203.0.113.9")
        client.say(b"MAIL FROM:<>", b"RCPT TO:<a@mx.test\n@far.test>")
        taken = [one.raw for one in client.protocol.session.recipients]
        self.assertEqual(taken, [b"a@mx.test"])

    def test_percenthack(self) -> None:
        """§9.3: rewritten addresses have to be ours as well, as often as they are rewritten."""
        self.put("percenthack", "mx.test\n")
        for address in (b"a%far.test@mx.test", b"a%far.test%mx.test@mx.test", b'"a%far.test"@mx.test', b"a%@mx.test"):
            self.assertEqual(self.smtp(b"<" + address + b">"), [], address)
        self.assertEqual(self.smtp(b"<a%mx.test@mx.test>"), [b"a%mx.test@mx.test"])

    def test_relayclient_with_a_suffix(self) -> None:
        """§4: the suffix is what follows the address, whatever the address ends in; it can only lead where it says."""
        self.put("tcp.smtp", '203.0.113.:allow,RELAYCLIENT="@scan.mx.test"\n')
        for address in (b"a@far.test", b"a", b"a@far.test@"):
            [taken] = self.smtp(b"<" + address + b">")
            self.assertTrue(taken.endswith(b"@scan.mx.test"), address)

    def test_no_file_makes_a_relay(self) -> None:
        """Whatever is missing, empty or misplaced among the files: a stranger does not relay."""
        for files in (
            {"rcpthosts": None},
            {"rcpthosts": ""},
            {"rcpthosts": None, "virtualdomains": ":everybody\n"},
            {"rcpthosts": ".\n"},
            {"rcpthosts": None, "locals": ""},
            {"relayclients": ""},
            {"tcp.smtp": ""},
            {"tcp.smtp": ":allow\n"},
            {"tcp.smtp": '127.:allow,RELAYCLIENT=""\n:allow\n'},
            {"tcp.smtp": '=.far.test:allow,RELAYCLIENT=""\n'},
            {"policies": "greylisting\nrcptcheck\nrblsmtpd\nbadmailfrom\n"},
            {"rcptcheck": "1\n", "greylisting": "", "badrcptto": "!*\n", "badmailfrom": "!*\n"},
            {"dnsbllist": "+wl.test\n"},
            {"greylistexempt": "0.0.0.0/0\n*@*\n", "greylisting": ""},
        ):
            for name, text in files.items():
                if text is not None:
                    self.put(name, text)
                else:
                    self.remove(name)
            self.names.table = {
                ("ptr", "203.0.113.9"): [b"x.far.test"],
                ("a", b"9.113.0.203.wl.test"): ["127.0.0.2"],
                ("a", b"x.far.test"): ["203.0.113.8"],
            }
            client = self.connect("203.0.113.9")
            client.say(b"EHLO x", b"MAIL FROM:<a@b.test>", b"RCPT TO:<a@far.test>")
            self.assertEqual(client.protocol.session.recipients, [], files)
            for name in files:
                self.remove(name)
            self.put("rcpthosts", "mx.test\n")

    def remove(self, name: str) -> None:
        path = self.control.path(name)
        if os.path.exists(path):
            os.remove(path)

    def test_qmqp(self) -> None:
        """§17.2: whoever is listed sends to anywhere, others to nowhere; rules deny them, and never allow more."""

        def answer(host: str) -> bytes | None:
            factory = QMQPFactory(self.control, self.queue, clock=self.clock)  # type: ignore[arg-type]
            connection = factory.buildProtocol(IPv4Address("TCP", host, 4000))
            if connection is None:
                return None
            transport = StringTransport(peerAddress=IPv4Address("TCP", host, 4000))
            transport.hostAddr = IPv4Address("TCP", "10.0.0.1", 628)
            transport.abortConnection = transport.loseConnection  # type: ignore[method-assign]
            connection.makeConnection(transport)
            connection.dataReceived(encode(encode(b"Subject: x\n\n") + encode(b"a@b.test") + encode(b"a@far.test")))
            said: bytes = transport.value()
            return said.partition(b":")[2][:1]

        self.put("tcp.qmqp", '203.0.113.:allow,RELAYCLIENT=""\n198.51.100.66:deny\n')
        self.assertEqual(answer("203.0.113.9"), b"D")
        self.put("qmqpclients", "198.51.100.0/24\n")
        self.assertEqual((answer("198.51.100.1"), answer("198.51.100.66"), answer("203.0.113.9")), (b"K", None, b"D"))

    def forms(self, client: Client) -> list[bytes]:
        """Those odd addresses of other domains that are taken from a client; each in a transaction of its own."""
        taken = []
        for address in (*ELSEWHERE, *SOURCE_ROUTES):
            client.say(b"MAIL FROM:<a@b.test>", b"RCPT TO:<" + address + b">")
            taken += [one.raw for one in client.protocol.session.recipients]
            client.say(b"RSET")
        return taken

    def test_behind_a_proxy(self) -> None:
        """A proxy that may relay itself, and is this host, lets no stranger do so; a client is whom it tells, once."""
        self.put("proxyclients", "127.0.0.1\n")
        self.put("relayclients", "127.0.0.1\n")
        proxying = ProxyingFactory(self.factory(), self.control, self.clock)

        def come(header: bytes) -> Client:
            client = Client(proxying, host="127.0.0.1")
            client.protocol.dataReceived(header)
            client.protocol = client.transport.protocol
            return client

        client = come(b"PROXY TCP4 203.0.113.9 10.0.0.1 4000 25\r\n")
        client.say(b"EHLO x")
        self.assertEqual(client.say(b"PROXY TCP4 127.0.0.1 10.0.0.1 4000 25")[0][:3], b"502")
        self.assertEqual(self.forms(client), [])
        relaying = come(b"PROXY TCP4 127.0.0.1 10.0.0.1 4000 25\r\n")
        self.assertIn(b"a@far.test", self.forms(relaying))

    def test_behind_a_front_end(self) -> None:
        """XCLIENT: the same for one that speaks SMTP; and who is no front end cannot say that he is somebody else."""
        self.put("xclients", "127.0.0.1\n")
        self.put("relayclients", "127.0.0.1\n10.0.0.7\n")
        client = self.connect("127.0.0.1")
        client.say(b"EHLO x", b"XCLIENT ADDR=203.0.113.9", b"EHLO x")
        self.assertEqual(self.forms(client), [])
        stranger = self.connect("203.0.113.9")
        for address in (b"127.0.0.1", b"10.0.0.7", b"IPV6:::1"):
            self.assertEqual(stranger.say(b"EHLO x", b"XCLIENT ADDR=" + address)[-1][:3], b"502")
        self.assertEqual(self.forms(stranger), [])

    def test_etrn(self) -> None:
        """Nobody makes a queue run for a domain that is not theirs, in whatever form they ask for it."""
        self.put("etrnclients", "far.test:203.0.113.9\n")
        asked: list[bytes] = []

        class Asking(SMTPFactory):
            def send_for(self, domain: bytes) -> Deferred[int]:
                asked.append(domain)
                return succeed(1)

        client = self.connect("203.0.113.9", self.factory(kind=Asking))
        client.say(b"EHLO x")
        for domain in (
            *(b"b.test", b"@far.test", b"#far.test", b"sub.far.test", b".test", b"*", b"far.test b.test", b""),
            *(b"far.test\0b.test", b"a@far.test", b"<far.test>", b"[203.0.113.9]", b"far.test,b.test"),
        ):
            [answer] = client.say(b"ETRN " + domain)
            self.assertIn(answer[:1], b"45", (domain, answer))
        self.assertEqual(asked, [])
        client.say(b"ETRN Far.TEST")
        self.assertEqual(asked, [b"far.test"])
        self.assertEqual(self.forms(client), [])

    def test_order_is_by_the_file(self) -> None:
        """control/policies puts named ones first; what is not named keeps its place, and nothing is lost."""
        self.put("badrcptto", "a@mx.test\n")
        self.put("badmailfrom", "@spam.test\n")
        mail = (b"MAIL FROM:<x@spam.test>", b"RCPT TO:<a@mx.test>")
        self.assertIn(b"mail from this sender", self.dialogue(*mail)[-1])
        self.put("policies", "badrcptto\n")
        self.assertIn(b"mail to this recipient", self.dialogue(*mail)[-1])
        self.assertEqual(codes(self.dialogue(mail[0], b"RCPT TO:<b@mx.test>"))[-1], 553)
        self.assertEqual(self.control.check(), [])
        for wrong in ("rcpthosts\n", "tcprules\n", "badrcptto\nbadrcptto\n", "nonsense\n"):
            self.put("policies", wrong)
            self.assertRaises(ControlError, self.factory)
