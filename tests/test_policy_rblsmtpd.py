"""Lists of addresses in the DNS (spec/related.md §4.7, §14.3; issue 8 item 2)."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from qtwist.control import Control
from qtwist.dns.resolver import make_resolver
from qtwist.mail.address import Address
from qtwist.policy import Reply
from qtwist.policy.rblsmtpd import Entry, RBLSMTPd, query_name
from qtwist.policy.surroundings import Surroundings
from tests.dns_server import DNSServer, Zone
from tests.policy_tools import SILENT, TROUBLE, PolicyCase, codes, session

RCPT = (b"MAIL FROM:<a@b.test>", b"RCPT TO:<a@mx.test>")


class Lines(SynchronousTestCase):
    def test_entries(self) -> None:
        for line, entry in (
            (b"bl.test", Entry(b"bl.test")),
            (b"-BL.test", Entry(b"bl.test", "-")),
            (b"+wl.test", Entry(b"wl.test", "+")),
            (b"=note.test", Entry(b"note.test", "=")),
            (b"bl.test:go away, %IP%: now", Entry(b"bl.test", "", b"go away, %IP%: now")),
        ):
            self.assertEqual(Entry.parse(line), entry)
        for line in (b"", b"-", b":x", b"a..b", b"two words", b"x" * 300):
            self.assertRaises(ValueError, Entry.parse, line)

    def test_names(self) -> None:
        self.assertEqual(query_name("192.0.2.9"), b"9.2.0.192.")
        self.assertEqual(query_name("2001:db8::1"), b"1." + b"0." * 23 + b"8.b.d.0.1.0.0.2.")
        self.assertRaises(ValueError, query_name, "unix")

    @given(st.binary(max_size=40))
    def test_any_line(self, line: bytes) -> None:
        try:
            Entry.parse(line)
        except ValueError as error:
            self.assertTrue(str(error))


class Listed(PolicyCase):
    def listed(self, zone: bytes, *records: str, text: bytes | None = None) -> None:
        self.names.table[("a", b"9.2.0.192." + zone)] = list(records) or ["127.0.0.2"]
        if text is not None:
            self.names.table[("txt", b"9.2.0.192." + zone)] = [text]

    def answer(self, rule: str = "") -> bytes:
        self.put("tcp.smtp", f":allow{rule}\n")
        return self.dialogue(*RCPT)[-1]

    def test_text_and_codes(self) -> None:
        """§4.7: TXT, 451; with - 553; a message of ours by A; at most 200 octets, nothing unprintable."""
        self.listed(b"bl.test", text=b"see http://bl.test/\xff" + b"x" * 300)
        self.put("dnsbllist", "bl.test\n")
        self.assertEqual(self.answer(), b"451 see http://bl.test/?" + b"x" * 180)
        self.put("dnsbllist", "-bl.test\n")
        self.assertTrue(self.answer().startswith(b"553 see"))
        self.put("dnsbllist", "-bl.test:%IP% is not welcome\n")
        self.assertEqual(self.answer(), b"553 192.0.2.9 is not welcome")
        self.put("dnsbllist", "other.test\n")
        self.assertEqual(self.answer(), b"250 ok")

    def test_an_a_record_alone(self) -> None:
        """Without a message, the TXT record is what counts (§4.7)."""
        self.listed(b"bl.test")
        self.put("dnsbllist", "bl.test\n")
        self.assertEqual(self.answer(), b"250 ok")

    def test_a_text_alone(self) -> None:
        """A list may have nothing but TXT records, which is all that rblsmtpd asks for (§4.7)."""
        self.names.table[("txt", b"9.2.0.192.bl.test")] = [b"by text~\x7f"]
        self.put("dnsbllist", "bl.test\n")
        self.assertEqual(self.answer(), b"451 by text~?")

    def test_good_ones_first(self) -> None:
        """§4.7: the first that decides ends the search, in the order of the file."""
        self.listed(b"bl.test", text=b"no")
        self.listed(b"wl.test")
        self.put("dnsbllist", "+wl.test\nbl.test\n")
        self.assertEqual(self.answer(), b"250 ok")
        self.put("dnsbllist", "bl.test\n+wl.test\n")
        self.assertEqual(self.answer(), b"451 no")

    def test_noted_only(self) -> None:
        self.listed(b"note.test")
        self.put("dnsbllist", "=note.test\n")
        client = self.connect()
        self.assertEqual(codes(client.say(*RCPT))[-1], 250)
        self.assertEqual(client.protocol.session.environment[b"RBLRESULT"], b"note.test")

    def test_the_variable(self) -> None:
        """§4.7: RBLSMTPD decides without any list."""
        self.put("dnsbllist", "bl.test\n")
        self.listed(b"bl.test", text=b"listed")
        for rule, answer in (
            (',RBLSMTPD=""', b"250 ok"),
            (',RBLSMTPD="go away"', b"451 go away"),
            (',RBLSMTPD="-go away"', b"553 go away"),
            (',DNSBLSKIP=""', b"250 ok"),
            (',RELAYCLIENT=""', b"250 ok"),
            ("", b"451 listed"),
        ):
            self.names.asked.clear()
            self.assertEqual(self.answer(rule), answer, rule)
            self.assertEqual(bool(self.names.asked), not rule, rule)

    def test_trouble_is_passed_over(self) -> None:
        """§4.7 -C: a list without an answer is no list; a list of the good without one lets in. Then all is 451."""
        self.names.table[("a", b"9.2.0.192.bad.test")] = TROUBLE
        self.listed(b"bl.test", text=b"no")
        for lists, answer in (
            ("bad.test\n", b"250 ok"),
            ("bad.test\n-bl.test\n", b"451 no"),
            ("+bad.test\nbl.test\n", b"250 ok"),
        ):
            self.put("dnsbllist", lists)
            self.assertEqual(self.answer(), answer, lists)

    def test_failing_closed(self) -> None:
        """§4.7 -c."""
        self.names.table[("a", b"9.2.0.192.bad.test")] = TROUBLE
        self.put("dnsbllist", "bad.test\n")
        self.assertEqual(self.answer(',DNSBLFAILCLOSED=""')[:3], b"451")
        self.put("dnsbllist", "+bad.test\n")
        self.assertEqual(self.answer(',DNSBLFAILCLOSED=""'), b"250 ok")

    def test_answers_that_mean_nothing(self) -> None:
        """Lists that do not serve our resolver say so by 127.255.255.x, with a TXT; dead domains answer anything."""
        self.put("dnsbllist", "bl.test\n")
        for address, answer in (("127.255.255.254", 250), ("203.0.113.7", 250), ("127.0.0.2", 451)):
            self.listed(b"bl.test", address, text=b"some text")
            self.assertEqual(int(self.answer()[:3]), answer, address)
            self.put("dnsbllist", "bl.test:listed\n")
            self.assertEqual(int(self.answer()[:3]), answer, address)
            self.put("dnsbllist", "bl.test\n")

    def test_asked_at_once_and_for_a_bounded_time(self) -> None:
        """All questions leave at connect; a list that never answers costs dnsbltimeout once, not for each recipient."""
        for number in range(5):
            self.names.table[("a", b"9.2.0.192.l%d.test" % number)] = SILENT
        self.listed(b"bl.test", text=b"no")
        self.put("dnsbllist", "".join(f"l{number}.test\n" for number in range(5)) + "bl.test\n")
        client = self.connect()
        self.assertEqual(len([one for one in self.names.asked if one[0] == "a"]), 6)
        self.assertEqual(codes(client.say(*RCPT)), [220, 250])
        self.clock.advance(10)
        self.assertEqual(client.replies(), [b"451 no"])
        self.assertEqual(client.say(RCPT[1]), [b"451 no"])

    def test_a_client_that_leaves(self) -> None:
        self.names.table[("a", b"9.2.0.192.l.test")] = SILENT
        self.put("dnsbllist", "l.test\n")
        self.connect().hang_up()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OverTheWire(TestCase):
    """The same against a name server that answers late, wrongly or never."""

    def files(self, **texts: str) -> str:
        directory = self.mktemp()
        os.mkdir(directory)
        for name, text in texts.items():
            with open(os.path.join(directory, name), "w", encoding="ascii") as file:
                file.write(text)
        return directory

    async def ask(self, zone: str, lists: str, seconds: str = "1") -> Any:
        server = DNSServer(reactor, Zone.parse(zone))
        await server.start()
        self.addCleanup(server.stop)
        control = Control(self.files(dnsbllist=lists, dnsbltimeout=seconds))
        resolver = make_resolver(reactor, [f"127.0.0.1:{server.port}"])
        policy = RBLSMTPd(Surroundings(control, reactor, make=lambda: resolver))
        one = session()
        policy.connect(one)
        answer = policy.rcpt(one, Address(b"a@mx.test"))
        opinion = await Deferred.fromCoroutine(answer)  # type: ignore[arg-type]
        policy.end(one)
        return opinion

    async def test_late_never_and_broken(self) -> None:
        records = 'A 127.0.0.2\n9.2.0.192.bl.test TXT "listed"\n'
        listed = f"9.2.0.192.bl.test {records}9.2.0.192.bl.test !delay 0.2\n"
        opinion = await self.ask(
            listed + "9.2.0.192.never.test A 127.0.0.2\n9.2.0.192.never.test !drop\n9.2.0.192.ill.test !servfail\n",
            "never.test\nill.test\nbl.test\n",
        )
        assert isinstance(opinion, Reply)
        self.assertEqual((opinion.code, opinion.text), (451, b"listed"))
        self.assertIsNone(await self.ask("x.test A 127.0.0.1\n", "bl.test\n"))
