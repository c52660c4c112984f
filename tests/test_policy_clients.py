"""Who may connect: tcprules, names and IDENT, limits, traces (spec/related.md §4; issue 8 item 1)."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.control import ControlError
from qtwist.files.cdb import write_cdb
from qtwist.files.tcprules import RuleError, Rules, compile_rules, find_rule
from qtwist.policy import Session
from qtwist.policy.base import Drop, Reply
from qtwist.policy.clients import remote_info, remote_name
from qtwist.policy.limits import ClientLimits, Rate
from qtwist.policy.serving import asks_network
from qtwist.policy.shared_counts import SharedCounts, SharedRates
from qtwist.policy.tcprules import TCPRules, read_rules
from qtwist.policy.trace import LINE, MOST, Tracer
from tests.policy_tools import SILENT, TROUBLE, Names, PolicyCase, codes, session
from tests.test_tls_servers import Logged

# As it stood on many a server around 2005, written by hand over the years, open-smtp entries at its end.
OLD_TCP_SMTP = b"""\
# tcp.smtp -- run "qmailctl cdb" after editing!
#
127.:allow,RELAYCLIENT="",RBLSMTPD=""
10.1.:allow,RELAYCLIENT="",RBLSMTPD="",QMAILQUEUE="/usr/bin/queue"
192.168.0.1-20:allow,RELAYCLIENT=""
192.168.0.:allow,DATABYTES="5000000"

# the scanner in the copy room
192.168.7.9:allow,RELAYCLIENT="@scans.example.org"
# spammers, 2003-11
203.0.113.66:deny
203.0.113.200-255:deny
198.51.100.:allow,RBLSMTPD="-No mail from you. See http://example.org/spam.html"
=.dialup.example.net:allow,RBLSMTPD="Use your provider"
=mail.partner.example:allow,RBLSMTPD=/,/
fred@192.0.2.77:allow,RELAYCLIENT=""
this line has been a comment since the hash got lost
:allow,BADMIMETYPE="",GREETDELAY="20"
#:allow
192.0.2.133:allow,RELAYCLIENT="",RBLSMTPD=""\t
"""


class Lookups(SynchronousTestCase):
    def test_an_old_file(self) -> None:
        """§4.2: exact addresses before prefixes, prefixes before everybody; ranges; any delimiter."""
        rules = Rules(compile_rules(OLD_TCP_SMTP))
        for ip, name, info, wanted in (
            (b"127.0.0.1", None, None, (b"127.", b"RELAYCLIENT=", b"RBLSMTPD=")),
            (b"10.1.2.3", None, None, (b"10.1.", b"RELAYCLIENT=", b"RBLSMTPD=", b"QMAILQUEUE=/usr/bin/queue")),
            (b"10.12.2.3", None, None, (b"", b"BADMIMETYPE=", b"GREETDELAY=20")),
            (b"192.168.0.20", None, None, (b"192.168.0.20", b"RELAYCLIENT=")),
            (b"192.168.0.21", None, None, (b"192.168.0.", b"DATABYTES=5000000")),
            (b"192.168.7.9", None, None, (b"192.168.7.9", b"RELAYCLIENT=@scans.example.org")),
            (b"203.0.113.66", b"x.dialup.example.net", None, (b"203.0.113.66", False)),
            (b"203.0.113.199", None, None, (b"", b"BADMIMETYPE=", b"GREETDELAY=20")),
            (b"203.0.113.255", None, None, (b"203.0.113.255", False)),
            (b"8.8.8.8", b"a.b.dialup.example.net", None, (b"=.dialup.example.net", b"RBLSMTPD=Use your provider")),
            (b"8.8.8.8", b"dialup.example.net", None, (b"", b"BADMIMETYPE=", b"GREETDELAY=20")),
            (b"8.8.8.8", b"mail.partner.example", None, (b"=mail.partner.example", b"RBLSMTPD=,")),
            (b"192.0.2.77", None, b"fred", (b"fred@192.0.2.77", b"RELAYCLIENT=")),
            (b"192.0.2.77", None, b"mary", (b"", b"BADMIMETYPE=", b"GREETDELAY=20")),
            (b"192.0.2.133", None, None, (b"192.0.2.133", b"RELAYCLIENT=", b"RBLSMTPD=")),
        ):  # fmt: skip
            verdict = rules.find(ip, name, info)
            found = (verdict.rule, *verdict.variables) if verdict.allow else (verdict.rule, False)
            self.assertEqual(found, wanted, (ip, name, info))
        self.assertTrue(rules.asks_name and rules.asks_ident)

    def test_networks(self) -> None:
        """§4.8: CIDR, among the prefixes by length; IPv6 as it is written by people."""
        rules = Rules(
            compile_rules(
                b"10.0.0.0/8:deny\n10.1.:allow\n10.1.2.3/24:allow,A='a'\n10.1.2.:allow,A='b'\n10.1.2.128/25:deny\n"
                b"2001:DB8::/32:deny\n2001:db8:0:1::7:allow\n2001:db8:5::allow\n0.0.0.0/0:allow,A='all'\n"
            )
        )
        for ip, rule, allow in (
            (b"10.2.3.4", b"10.0.0.0/8", False),
            (b"10.1.9.9", b"10.1.", True),
            (b"10.1.2.3", b"10.1.2.", True),
            (b"10.1.2.200", b"10.1.2.128/25", False),
            (b"2001:db8:0:1::7", b"2001:db8:0:1::7", True),
            (b"2001:db8:0:1::8", b"2001:db8::/32", False),
            (b"2001:db8:5::1", b"2001:db8:5:", True),
            (b"2001:db9::1", None, True),
            (b"8.8.8.8", b"0.0.0.0/0", True),
            (b"", None, True),
        ):
            verdict = rules.find(ip)
            self.assertEqual((verdict.rule, verdict.allow), (rule, allow), ip)
        for line in (b"10.0.0.0/33:deny", b"10.0.0/8:deny", b"x/8:allow"):
            self.assertRaises(RuleError, list, compile_rules(line))

    @given(st.ip_addresses(), st.integers(0, 128))
    def test_a_network_holds_what_lies_in_it(self, address: Any, bits: int) -> None:
        length = min(bits, address.max_prefixlen)
        rules = Rules(compile_rules(b"%b/%d:deny" % (str(address).encode(), length)))
        self.assertFalse(rules.find(str(address).encode()).allow)

    @given(st.lists(st.sampled_from([b"1.2.3.4", b"1.2.", b"=x.y", b"a@1.2.3.4", b"", b"=", b"1.2.3."]), max_size=4))
    def test_in_memory_as_in_the_database(self, keys: list[bytes]) -> None:
        text = b"".join(b"%b:allow,N='%d'\n" % (key, number) for number, key in enumerate(keys))
        records = list(compile_rules(text))
        first = dict(reversed(records))
        for name, info in ((None, None), (b"x.y", None), (b"x.y", b"a")):
            self.assertEqual(Rules(records).find(b"1.2.3.4", name, info), find_rule(first.get, b"1.2.3.4", name, info))


class RulesAtWork(PolicyCase):
    def connected(self, ip: str) -> Any:
        """What the rules make of a client: the answer, and its variables beside the usual ones."""
        one = session(ip)
        answer = TCPRules(self.surroundings()).connect(one)
        if isinstance(answer, Deferred) or hasattr(answer, "send"):
            answer = self.successResultOf(Deferred.fromCoroutine(answer))
        return answer, one.environment

    def test_denied_without_a_word(self) -> None:
        """§4.1: the connection is closed, as tcpserver does it, and the log says by which rule."""
        self.put("tcp.smtp", "203.0.113.:deny\n")
        factory = self.factory()
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        client = self.connect("203.0.113.5", factory)
        self.assertEqual((client.replies(), client.transport.disconnecting), ([], True))
        client.protocol.dataReceived(b"EHLO x\r\n")
        self.assertEqual(client.replies(), [])
        client.hang_up()
        self.assertEqual(factory.connections, set())
        [refused] = [event for event in events if event.get("rule") == "tcprules"]
        self.assertEqual(
            (refused["ip"], refused["reason"]),
            ("203.0.113.5", "the rule 203.0.113.:deny of control/tcp.smtp denies 203.0.113.5"),
        )
        self.assertEqual(codes(self.dialogue(host="203.0.114.5", factory=factory)), [220])

    def test_variables(self) -> None:
        """§4: RELAYCLIENT lets relay and is appended, DATABYTES bounds."""
        factory = self.factory()
        mail = (b"EHLO c.test", b"MAIL FROM:<a@b.test>", b"RCPT TO:<x@elsewhere.test>")
        self.put("tcp.smtp", b'10.1.:allow,RELAYCLIENT=""\n192.168.7.9:allow,RELAYCLIENT="@scans.test"\n')
        for host, code in (("10.1.2.3", 250), ("10.2.2.3", 553)):
            self.assertEqual(codes(self.dialogue(*mail, host=host, factory=factory))[-1], code)
        client = self.connect("192.168.7.9", factory)
        client.say(*mail)
        self.assertEqual(client.protocol.session.recipients[0].raw, b"x@elsewhere.test@scans.test")
        self.put("tcp.smtp", b':allow,DATABYTES="12"\n')
        answers = self.dialogue(b"EHLO c.test", host="192.0.2.1", factory=factory)
        self.assertIn(b"250 SIZE 12", answers)

    def test_reloaded_and_kept(self) -> None:
        """A change counts for the next connection; a file that is wrong changes nothing, and is told of once."""
        rules = TCPRules(self.surroundings())
        self.assertIsNone(rules.connect(session()))
        self.put("tcp.smtp", "192.0.2.:deny\n")
        self.assertIsInstance(rules.connect(session()), Drop)
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.put("tcp.smtp", "192.0.2.:deny\n192.0.3.:perhaps\n")
        for _ in range(3):
            self.assertIsInstance(rules.connect(session()), Drop)
        told = [str(event["error"]) for event in events if "error" in event]
        self.assertEqual(len(told), 1)
        self.assertIn("tcp.smtp, line 2: found '192.0.3.:perhaps', expected ADDRESS:allow or ADDRESS:deny", told[0])
        self.put("tcp.smtp", ":allow\n")
        self.assertIsNone(rules.connect(session()))

    def test_a_wrong_file_is_read_once(self) -> None:
        """However many connect meanwhile; whether it is unreadable or makes no sense."""
        rules = TCPRules(self.surroundings())
        self.put("tcp.smtp", "192.0.2.:deny\n")
        rules.connect(session())
        self.put("tcp.smtp", "rubbish:\n")
        with mock.patch("qtwist.policy.tcprules.read_rules", side_effect=read_rules) as reading:
            for _ in range(5):
                self.assertIsInstance(rules.connect(session()), Drop)
            self.assertEqual(reading.call_count, 1)
        os.remove(self.control.path("tcp.smtp"))
        os.mkdir(self.control.path("tcp.smtp"))
        self.assertIsInstance(rules.connect(session()), Drop)
        os.rmdir(self.control.path("tcp.smtp"))
        self.assertIsNone(rules.connect(session()))

    def test_roles_and_the_network(self) -> None:
        """doc/security.md: a server keeps the network only where something asks other hosts, or may come to."""
        self.assertFalse(asks_network(self.control))
        for name, text, asks in (
            ("tcp.smtp", ":allow\n", False), ("tcp.smtp", "=.x:deny\n", True), ("tcp.smtp", "a@1.2.3.4:deny\n", True),
            ("tcp.qmtp", "=:deny\n", True), ("tcp.pop3", "=:deny\n", True), ("tcp.qmqp", "a@1.2.3.4:deny\n", True),
            ("tcp.smtp", "rubbish:\n", True), ("dnsbllist", "bl.test\n", True),
            ("mfcheck", "1\n", True), ("mfcheck", "0\n", False), ("helocheck", "1\n", False),
            ("helocheck", "2\n", True),
            ("tcpremotehost", "3\n", True), ("tcpremoteinfo", "3\n", True), ("greylisting", "", False),
        ):  # fmt: skip
            self.put(name, text)
            self.assertEqual(asks_network(self.control), asks, (name, text))
            os.remove(self.control.path(name))

    def test_wrong_from_the_start(self) -> None:
        """§4.1: rules that cannot be read let nobody in. The daemon does not start with them either."""
        self.put("tcp.smtp", "1.2.3.4:maybe\n")
        answer = TCPRules(self.surroundings()).connect(session())
        assert isinstance(answer, Reply)
        self.assertEqual(answer.code, 421)
        [error] = self.control.check()
        self.assertEqual((error.line, os.path.basename(error.path)), (1, "tcp.smtp"))

    def test_database_before_text(self) -> None:
        self.put("tcp.smtp", "192.0.2.:deny\n")
        path = self.control.path("tcp.smtp.cdb")
        write_cdb(path, compile_rules(b"192.0.2.:allow,A='cdb'\n192.0.3.0/24:deny\n"))
        rules = TCPRules(self.surroundings())
        one = session()
        self.assertIsNone(rules.connect(one))
        self.assertEqual(one.environment[b"A"], b"cdb")
        self.assertIsInstance(rules.connect(session("192.0.3.4")), Drop)
        logged = Logged(self)
        self.put("tcp.smtp.cdb", b"rubbish")
        for times in (1, 2):
            for _ in range(3):
                self.assertIsNone(rules.connect(session()))
            self.assertEqual(len(logged.find("what was there before goes on counting")), times)
            os.remove(path)
            os.symlink(os.path.basename(path), path)  # a loop: it cannot be looked at at all
        os.remove(path)
        self.assertIsInstance(rules.connect(session()), Drop)

    def test_text_newer_than_the_database(self) -> None:
        """The database counts, and the log says what to do about it."""
        self.put("tcp.smtp", "192.0.2.:deny\n")
        write_cdb(self.control.path("tcp.smtp.cdb"), compile_rules(b":allow\n"))
        for age, warnings in ((10, 0), (-10, 1)):
            logged = Logged(self)
            seconds = os.stat(self.control.path("tcp.smtp.cdb")).st_mtime - age
            os.utime(self.control.path("tcp.smtp"), (seconds, seconds))
            self.assertIsNone(TCPRules(self.surroundings()).connect(session()))
            self.assertEqual(len(logged.find("control/tcp.smtp is newer than tcp.smtp.cdb")), warnings, age)

    def test_names_only_where_asked(self) -> None:
        """§4.1 -p: a name counts when it leads back to the address, which its owner cannot forge."""
        self.put("tcp.smtp", ":allow\n")
        self.connected("192.0.2.9")
        self.assertEqual(self.names.asked, [])
        self.put("tcp.smtp", '=.good.test:allow,RELAYCLIENT=""\n=:allow,A="named"\n:allow,A="nameless"\n')
        self.names.table = {
            ("ptr", "192.0.2.9"): [b"Mail.Good.test"],
            ("a", b"Mail.Good.test"): ["192.0.2.9", "192.0.2.10"],
            ("ptr", "192.0.2.66"): [b"forged.good.test"],
            ("a", b"forged.good.test"): ["192.0.2.9"],
            ("ptr", "192.0.2.67"): TROUBLE,
            ("ptr", "2001:db8::1"): [b"six.other.test"],
            ("a", b"six.other.test"): ["2001:db8::1"],
        }
        answer, known = self.connected("192.0.2.9")
        self.assertEqual((answer, known), (None, {b"TCPREMOTEHOST": b"mail.good.test", b"RELAYCLIENT": b""}))
        for ip in ("192.0.2.66", "192.0.2.67", "192.0.2.68"):
            self.assertEqual(self.connected(ip), (None, {b"A": b"nameless"}))
        self.assertEqual(self.connected("2001:db8::1")[1], {b"TCPREMOTEHOST": b"six.other.test", b"A": b"named"})

    def test_a_name_that_does_not_come(self) -> None:
        """Never in the way: after five seconds, or those of the control file, the client is nameless."""
        self.put("tcp.smtp", "=.x.test:deny\n")
        self.names.table[("ptr", "192.0.2.9")] = SILENT
        client = self.connect()
        self.assertEqual(client.replies(), [])
        self.clock.advance(5)
        self.assertEqual(codes(client.replies()), [220])
        os.remove(self.control.path("tcp.smtp"))
        self.put("tcpremotehost", "2\n")
        client = self.connect()
        self.clock.advance(1.9)
        self.assertEqual(client.replies(), [])
        self.clock.advance(0.1)
        self.assertEqual(codes(client.replies()), [220])


class Ident(TestCase):
    async def ask(self, answer: bytes | None, seconds: float = 5) -> bytes | None:
        heard: list[bytes] = []

        class Server(Protocol):
            def dataReceived(self, data: bytes) -> None:
                heard.append(data)
                if answer is not None:
                    self.transport.write(answer)  # type: ignore[union-attr]

        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory.forProtocol(Server))
        try:
            one = Session("x", remote_ip="127.0.0.1", remote_port=40000, local_ip="127.0.0.1", local_port=25)
            info = await remote_info(one, reactor, seconds, port.getHost().port)
        finally:
            await port.stopListening()
        self.assertEqual(heard, [b"40000 , 25\r\n"])
        return info

    async def test_answers(self) -> None:
        """§4.1: blanks dropped, what stands behind the third colon, 256 octets at most."""
        for answer, wanted in (
            (b"40000, 25 : USERID : UNIX : fred\r\n", b"fred"),
            (b"40000,25:USERID:UNIX:a:b c\n", b"a:bc"),
            (b"40000, 25 : ERROR : NO-USER\r\n", None),
            (b"1:2:3:" + b"x" * 300 + b"\r\n", b"x" * 256),
            (b"y" * 2000, None),
            (b"::: \r\n", None),
        ):
            self.assertEqual(await self.ask(answer), wanted, answer)

    async def test_silence_and_refusal(self) -> None:
        self.assertIsNone(await self.ask(None, 0.1))
        one = Session("x", remote_ip="127.0.0.1", remote_port=1, local_ip="127.0.0.1", local_port=25)
        self.assertIsNone(await remote_info(one, reactor, 5, 1))
        self.assertIsNone(await remote_info(Session("x"), reactor, 5))

    async def test_names_by_the_resolver(self) -> None:
        self.assertIsNone(await remote_name(Names(), "no address", reactor, 1))  # type: ignore[arg-type]


class Limits(PolicyCase):
    def test_at_once(self) -> None:
        """So many for one client, so many for a network; who leaves makes room."""
        self.put("maxconnip", "2\n")
        self.put("maxconnc", "3\n")
        factory = self.factory()
        clients = [self.connect(f"192.0.2.{host}", factory) for host in (1, 1, 1, 2, 3)]
        self.assertEqual([codes(client.replies()) for client in clients], [[220], [220], [421], [220], [421]])
        self.assertEqual(codes(self.connect("192.0.3.1", factory).replies()), [220])
        for client in clients[1:3]:
            client.hang_up()
        self.assertEqual(codes(self.connect("192.0.2.3", factory).replies()), [220])
        self.assertEqual(codes(self.connect("192.0.2.1", factory).replies()), [421])

    def test_ipv6_by_sixty_four_bits(self) -> None:
        self.put("maxconnc", "2\n")
        factory = self.factory()
        hosts = ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::3")
        self.assertEqual([codes(self.connect(host, factory).replies()) for host in hosts], [[220], [220], [421], [220]])

    def test_by_variable_and_exempt(self) -> None:
        """The variables of the limits patch; who may relay, and this host, are not bounded by the files."""
        self.put("maxconnip", "1\n")
        self.put("tcp.smtp", '192.0.2.1:allow,MAXCONNIP="2",DIEMSG="slowly"\n192.0.2.2:allow,RELAYCLIENT=""\n')
        factory = self.factory()
        answers = [self.connect("192.0.2.1", factory).replies() for _ in range(3)]
        self.assertEqual([codes(one) for one in answers], [[220], [220], [421]])
        self.assertEqual(answers[-1], [b"421 slowly (#4.7.0)"])
        for host in ("192.0.2.2", "127.0.0.1", "::1"):
            for _ in range(3):
                self.assertEqual(codes(self.connect(host, factory).replies()), [220])

    def test_rates(self) -> None:
        self.put("connrateip", "3\n")
        factory = self.factory()

        def come() -> list[int]:
            client = self.connect("192.0.2.1", factory)
            client.hang_up()
            return codes(client.replies())

        self.assertEqual([come() for _ in range(4)], [[220], [220], [220], [421]])
        self.clock.advance(61)
        self.assertEqual([come() for _ in range(2)], [[421], [421]])
        self.clock.advance(120)
        self.assertEqual(come(), [220])

    def test_rates_of_several_processes(self) -> None:
        """Exact: a client may come so often in all, wherever the kernel sends it, and before and after a process is
        killed; with one and a half windows between, half of them count."""
        self.put("connrateip", "5\n")
        factory = self.factory()
        factory.share = 2
        self.clock.advance(600)
        self.assertEqual(codes(self.connect("192.0.2.1", factory).replies()), [220])
        other = self.other(
            "from qtwist.policy.shared_counts import SharedRates\n"
            "rates = SharedRates(sys.argv[1])\n"
            "for key in 3 * ['192.0.2.1'] + 9 * ['192.0.2.7']: rates.add(key, 10)\n"
            "print(rates.others('192.0.2.1', 10), rates.others('192.0.2.2', 10), rates.others('192.0.2.1', 9))",
            "rates.smtp",
        )
        self.assertEqual(other, "1 0 0\n")
        come = lambda host: codes(self.connect(host, factory).replies())[0]  # noqa: E731
        self.assertEqual([come("192.0.2.1") for _ in range(2)], [220, 421])
        self.assertEqual(come("192.0.2.7"), 421)
        self.assertEqual([come("192.0.2.2") for _ in range(6)], [220, 220, 220, 220, 220, 421])
        self.clock.advance(90)  # of the six, half
        self.assertEqual([come("192.0.2.1") for _ in range(3)], [220, 220, 421])
        self.clock.advance(120)
        self.assertEqual(come("192.0.2.1"), 220)

    def test_windows(self) -> None:
        """Of each process the two latest windows are there; one that comes again is empty."""
        path = os.path.join(self.home, "greylist", "rates")
        os.mkdir(os.path.dirname(path))
        rates = SharedRates(path)
        self.addCleanup(rates.close)
        for window in (7, 8, 8, 9):
            rates.add("x", window)
        shown = self.other(
            "from qtwist.policy.shared_counts import SharedRates\n"
            "rates = SharedRates(sys.argv[1])\n"
            "print([rates.others('x', window) for window in (6, 7, 8, 9, 10)])",
            "rates",
        )
        self.assertEqual(shown, "[0, 0, 2, 1, 0]\n")
        for _ in range(70000):
            rates.add("x", 9)
        self.assertEqual(max(rates._counts[rates._places(rates._row, 9)[1] :]), 65535)

    def other(self, code: str, name: str) -> str:
        """What another process prints; it lives until the end of the test."""
        path = os.path.join(self.home, "greylist", name)
        process = subprocess.Popen(
            [sys.executable, "-c", f"import sys\n{code}\nsys.stdout.flush(); sys.stdin.read()", os.path.abspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        return process.stdout.readline()

    def test_processes_count_together(self) -> None:
        """What another process has counts here, as long as it lives; killed, it leaves nothing."""
        self.put("maxconnip", "5\n")
        factory = self.factory()
        factory.share = 2
        first = self.connect("192.0.2.1", factory)
        code = (
            "import sys; from qtwist.policy.shared_counts import SharedCounts\n"
            "counts = SharedCounts(sys.argv[1])\n"
            "for _ in range(3): counts.add('192.0.2.1')\n"
            "print(counts.others('192.0.2.1'), counts.others('192.0.2.2'), flush=True); sys.stdin.read()\n"
        )
        path = os.path.join(self.home, "greylist", "connections.smtp")
        other = subprocess.Popen(
            [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(other.communicate)
        self.addCleanup(other.kill)
        assert other.stdout is not None
        self.assertEqual(other.stdout.readline(), "1 0\n")
        self.assertEqual([codes(self.connect("192.0.2.1", factory).replies()) for _ in range(2)], [[220], [421]])
        self.assertEqual(codes(self.connect("192.0.2.2", factory).replies()), [220])
        first.hang_up()
        self.assertEqual([codes(self.connect("192.0.2.1", factory).replies()) for _ in range(2)], [[220], [421]])
        other.kill()
        other.wait()
        after = subprocess.run(
            [sys.executable, "-c", code, path], input="", capture_output=True, text=True, check=True, timeout=60
        )
        self.assertEqual(after.stdout, "2 1\n")

    def test_alone_where_there_are_no_counters(self) -> None:
        with open(os.path.join(self.home, "greylist"), "w", encoding="ascii"):
            pass
        self.put("maxconnip", "5\n")
        factory = self.factory()
        factory.share = 2
        self.assertEqual(sum(codes(self.connect("192.0.2.1", factory).replies()) == [220] for _ in range(9)), 3)

    def test_counters(self) -> None:
        path = os.path.join(self.home, "counts")
        counts = SharedCounts(path)
        self.addCleanup(counts.close)
        counts.remove("x")
        for _ in range(70000):
            counts.add("x")
        self.assertEqual((counts.others("x"), counts._counts[counts._base + counts._bucket("x")]), (0, 65535))
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_a_thousand_clients_from_one_network(self) -> None:
        """They get what one network gets, others are served, and nothing is left when they are gone."""
        factory = self.factory()
        crowd = []
        for number in range(1000):
            client = self.connect(f"198.51.100.{number % 250}", factory)
            if codes(client.replies()) == [220]:
                crowd.append(client)
            else:
                self.assertTrue(client.transport.disconnecting)
                client.hang_up()
        self.assertEqual(len(crowd), 100)
        self.assertEqual(codes(self.connect("192.0.2.1", factory).replies()), [220])
        for client in crowd:
            client.hang_up()
        [limits] = {hook.__self__ for hook in factory.hooks["end"] if isinstance(hook.__self__, ClientLimits)}
        self.assertEqual(limits.counts._here, {"192.0.2.1": 1, "192.0.2.0/24": 1})

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100)), max_size=50))
    def test_rate_counts_no_less_than_the_last_half_window(self, steps: list[tuple[str, float]]) -> None:
        rate, now, seen = Rate(), 0.0, []
        for key, pause in steps:
            now += pause
            seen.append((key, now))
            counted = rate.add(key, now)
            into = now % 60
            self.assertGreaterEqual(counted, sum(one == key and then >= now - into for one, then in seen))
            self.assertLessEqual(counted, sum(one == key and then >= now - into - 60 for one, then in seen))

    def test_rate_is_bounded(self) -> None:
        rate = Rate(most=10)
        for number in range(100):
            rate.add(str(number), 1.0)
        self.assertEqual(len(rate._counts), 10)


class Traces(PolicyCase):
    def traced(self, *steps: tuple[str, bytes]) -> list[str]:
        lines: list[str] = []
        tracer = Tracer(lambda direction, text: lines.append(f"{direction} {text}"))
        for direction, data in steps:
            (tracer.received if direction == "<" else tracer.sent)(data)
        tracer.end()
        return lines

    def test_dialogue(self) -> None:
        """§4.6, with the mark of a line that goes on."""
        lines = self.traced(
            (">", b"220 mx\r\n"), ("<", b"EH"), ("<", b"LO c\r\nNOOP\r\n"), (">", b"250-a\r\n250 b\r\n"),
            ("<", b"x" * 300 + b"\r\n\x07\xff")
        )  # fmt: skip
        self.assertEqual(
            lines,
            ["> 220 mx", "< EHLO c", "< NOOP", "> 250-a", "> 250 b", "< " + "x" * LINE + " +", "< " + "x" * 44,
             "< \\x07\\xff +", "< [EOF]"],
        )  # fmt: skip

    def test_secrets(self) -> None:
        lines = self.traced(
            ("<", b"AUTH PLAIN AHNlY3JldA==\r\n"), (">", b"235 ok\r\n"),
            ("<", b"auth login\r\n"), (">", b"334 VXNlcm5hbWU6\r\n"), ("<", b"c2Vj\r\n"), (">", b"334 x\r\n"),
            ("<", b"cmV0\r\n"), (">", b"535 no\r\n"), ("<", b"MAIL FROM:<a@b>\r\n"),
            ("<", b"PASS secret\r\n"), ("<", b"APOP joe secret\r\n"),
            ("<", b"AU"), ("<", b"TH PLAIN secret\r\nsecret\r\n"),
            (">", b"535 no\r\n"), ("<", b"PASS " + b"secret" * 500), ("<", b"secret\r\nNOOP\r\n"),
        )  # fmt: skip
        text = "\n".join(lines)
        for secret in ("secret", "AHNl", "c2Vj", "cmV0"):
            self.assertNotIn(secret, text)
        for kept in ("< AUTH PLAIN ***", "< auth login", "< MAIL FROM:<a@b>", "< PASS ***", "< APOP joe ***", "< NOOP"):
            self.assertIn(kept, lines)

    @given(st.lists(st.binary(max_size=40), max_size=20))
    def test_no_secret_in_any_pieces(self, pieces: list[bytes]) -> None:
        data = b"PASS " + b"".join(pieces).replace(b"\n", b"").replace(b"\r", b"") + b"s3cret\n"
        cuts = [("<", data[start : start + 7]) for start in range(0, len(data), 7)]
        self.assertEqual(self.traced(*cuts), ["< PASS ***", "< [EOF]"])

    def test_bounded(self) -> None:
        lines = self.traced(*[("<", b"x" * 65535 + b"\n")] * (MOST // 65536 + 9))
        self.assertLess(sum(map(len, lines)), MOST + 100_000)
        self.assertIn("< [the rest of this connection is not written]", lines)

    def test_switched_on_for_one_client(self) -> None:
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        factory = self.factory()
        self.dialogue(b"NOOP", factory=factory)
        self.put("trace", "192.0.2.0/28\n")
        self.dialogue(b"NOOP", host="192.0.2.99", factory=factory)
        self.assertEqual([event for event in events if event["log_namespace"] == "qtwist.trace"], [])
        self.dialogue(b"NOOP", factory=factory)
        told = [(event["direction"], event["line"]) for event in events if event["log_namespace"] == "qtwist.trace"]
        self.assertEqual(told, [(">", "220 mx.test ESMTP"), ("<", "NOOP"), (">", "250 ok"), ("<", "[EOF]")])
        self.put("trace", "rubbish\n")
        self.assertRaises(ControlError, factory.traces.listed)
        self.assertEqual(codes(self.dialogue(b"NOOP", factory=factory)), [220, 250])
