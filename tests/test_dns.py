"""qtwist.dns without sockets: names, messages, servers, the stub's schedule and the cache, with a clock of our own.

Sources: spec/qmail.md §15.3, §15.8, §26.6; spec/related.md §4.10, §12.5; RFC 1035, 2181, 2308, 6840, 6891, 7505.
"""

from __future__ import annotations

import os
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.names import dns
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qtwist.dns import message, names
from qtwist.dns.answers import MAX_ALIASES, Alias, conclude
from qtwist.dns.cache import LARGEST, LONGEST, LONGEST_NEGATIVE, Cache
from qtwist.dns.config import LOCAL, ResolvConf, Server, fixed, parse_resolv_conf, parse_server, parse_servers
from qtwist.dns.exchange import ServerFailure
from qtwist.dns.message import MalformedReply, Question, Record, Reply, decode_reply, encode_query
from qtwist.dns.resolver import PATIENCE, Resolver
from qtwist.dns.stub import SILENCE_REMEMBERED, StubResolver
from qtwist.interfaces import Answer, DNSTemporaryError, IResolver


class Names(SynchronousTestCase):
    def test_canonical(self) -> None:
        for name, expected in [
            (b"Example.ORG", b"example.org"),
            (b"example.org.", b"example.org"),
            (b"_25._tcp.mx.test", b"_25._tcp.mx.test"),
            (b"\xffa b", b"\xffa b"),
            (b"a" * 63, b"a" * 63),
            (b"a" * 64, None),
            (b".".join([b"a" * 49] * 5 + [b"abc"]), b".".join([b"a" * 49] * 5 + [b"abc"])),  # 253 octets
            (b".".join([b"a" * 49] * 5 + [b"abcd"]), None),
            (b"", None),
            (b".", None),
            (b"a..b", None),
            (b".a", None),
            (b"a..", None),
        ]:
            self.assertEqual(names.canonical(name), expected, name)

    def test_reverse(self) -> None:
        """RFC 1035 §3.5, RFC 3596 §2.5."""
        self.assertEqual(names.reverse("192.0.2.1"), b"1.2.0.192.in-addr.arpa")
        self.assertEqual(names.reverse("::ffff:192.0.2.1"), b"1.2.0.192.in-addr.arpa")
        self.assertEqual(names.reverse("2001:db8::1"), b"1." + b"0." * 23 + b"8.b.d.0.1.0.0.2.ip6.arpa")
        self.assertEqual(names.reverse("fe80::1%eth0"), names.reverse("fe80::1"))
        self.assertRaises(ValueError, names.reverse, "mx.test")

    @given(st.binary(max_size=300))
    def test_whatever_can_be_asked_survives_the_wire(self, name: bytes) -> None:
        canonical = names.canonical(name)
        if canonical is not None:
            query = dns.Message()
            query.fromStr(encode_query(Question(canonical, message.MX), 7, edns=True))
            self.assertEqual(query.queries[0].name.name, canonical)


QUESTION = Question(b"example.test", message.MX)


def wire_reply(
    question: Question = QUESTION,
    number: int = 7,
    answers: tuple[dns.RRHeader, ...] = (),
    authority: tuple[dns.RRHeader, ...] = (),
    rcode: int = 0,
    **flags: Any,
) -> bytes:
    reply = dns.Message(id=number, answer=1, recAv=flags.pop("recAv", 1), rCode=rcode, maxSize=65535, **flags)
    reply.queries = [dns.Query(question.name, question.type)]
    reply.answers = list(answers)
    reply.authority = list(authority)
    return reply.toStr()


def rr(name: bytes, payload: Any, ttl: int = 300, kind: int | None = None) -> dns.RRHeader:
    return dns.RRHeader(name, kind or payload.TYPE, ttl=ttl, payload=payload)


def mx_records() -> tuple[dns.RRHeader, ...]:
    return (
        rr(b"example.test", dns.Record_MX(10, b"mx1.example.test"), 300),
        rr(b"example.test", dns.Record_MX(20, b"mx2.example.test"), 200),
    )


SOA = rr(b"test", dns.Record_SOA(b"ns.test", b"root.test", minimum=60), 3600)


class Messages(SynchronousTestCase):
    def test_query(self) -> None:
        """RD and AD are set, the OPT record allows 1232 octets, and DO is not set (RFC 6891, RFC 6840 §5.7)."""
        query = dns.Message()
        query.fromStr(encode_query(QUESTION, 0xBEEF, edns=True))
        self.assertEqual((query.id, query.answer, query.recDes, query.authenticData), (0xBEEF, 0, 1, 1))
        self.assertEqual((query.queries[0].type, query.queries[0].cls), (dns.MX, dns.IN))
        [opt] = query.additional
        self.assertEqual((opt.type, opt.cls, opt.ttl), (dns.OPT, 1232, 0))
        query = dns.Message()
        query.fromStr(encode_query(QUESTION, 1, edns=False))
        self.assertEqual(query.additional, [])

    def test_reply(self) -> None:
        reply = decode_reply(wire_reply(answers=mx_records(), authenticData=1), QUESTION, 7)
        self.assertEqual(
            reply,
            Reply(
                0,
                False,
                True,
                False,
                True,
                (
                    Record(b"example.test", message.MX, 300, (10, b"mx1.example.test")),
                    Record(b"example.test", message.MX, 200, (20, b"mx2.example.test")),
                ),
            ),
        )

    def test_every_type(self) -> None:
        """TXT strings are joined (RFC 7208 §3.3), TLSA is taken apart (RFC 6698 §2.1), other types are left out."""
        answers = (
            rr(b"A.test", dns.Record_A("192.0.2.1")),
            rr(b"a.test", dns.Record_AAAA("2001:db8::1")),
            rr(b"a.test", dns.Record_CNAME(b"B.test")),
            rr(b"a.test", dns.Record_PTR(b"b.test")),
            rr(b"a.test", dns.Record_TXT(b"v=spf1", b"", b" -all")),
            rr(b"a.test", dns.UnknownRecord(b"\3\1\1\xab"), kind=message.TLSA),
            rr(b"a.test", dns.UnknownRecord(b"signature"), kind=46),
            rr(b"a.test", dns.Record_MX(0, b"")),
        )
        reply = decode_reply(wire_reply(answers=answers), QUESTION, 7)
        assert reply is not None
        self.assertEqual(
            [record.value for record in reply.answers],
            ["192.0.2.1", "2001:db8::1", b"B.test", b"b.test", b"v=spf1 -all", (3, 1, 1, b"\xab"), (0, b"")],
        )
        self.assertEqual(reply.answers[0].name, b"a.test")

    def test_not_ours(self) -> None:
        """Wrong id, wrong name, type or class, a query, two questions: not a reply to us."""
        good = wire_reply(answers=mx_records())
        self.assertIsNotNone(decode_reply(good, QUESTION, 7))
        self.assertIsNone(decode_reply(good, QUESTION, 8))
        self.assertIsNone(decode_reply(good, Question(b"other.test", message.MX), 7))
        self.assertIsNone(decode_reply(good, Question(b"example.test", message.A), 7))
        self.assertIsNone(decode_reply(good[:2] + b"\x01" + good[3:], QUESTION, 7))
        chaos = dns.Message(id=7, answer=1)
        chaos.queries = [dns.Query(b"example.test", dns.MX, dns.CH)]
        self.assertIsNone(decode_reply(chaos.toStr(), QUESTION, 7))
        chaos.queries = [dns.Query(b"example.test", dns.MX)] * 2
        self.assertIsNone(decode_reply(chaos.toStr(), QUESTION, 7))
        for short in range(12):
            self.assertIsNone(decode_reply(good[:short], QUESTION, 7))

    def test_names_compare_without_case(self) -> None:
        reply = decode_reply(wire_reply(Question(b"EXAMPLE.Test", message.MX)), QUESTION, 7)
        self.assertIsNotNone(reply)

    def test_formerr_without_question(self) -> None:
        """RFC 1035 §4.1.1: a server that cannot read the query has no question to send back."""
        bare = b"\0\7\x80\x01" + bytes(8)
        reply = decode_reply(bare, QUESTION, 7)
        assert reply is not None
        self.assertEqual(reply.rcode_name, "FORMERR")
        self.assertIsNone(decode_reply(b"\0\7\x80\x02" + bytes(8), QUESTION, 7))

    def test_other_classes(self) -> None:
        """Records of another class than IN do not count, in no section."""
        record, soa = mx_records()[0], rr(b"test", dns.Record_SOA(b"ns.test", b"root.test", minimum=60), 3600)
        record.cls = soa.cls = dns.CH
        reply = decode_reply(wire_reply(answers=(record,), authority=(soa,)), QUESTION, 7)
        assert reply is not None
        self.assertEqual((reply.answers, reply.negative_ttl), ((), None))

    def test_cut_off(self) -> None:
        """No prefix of a reply passes for a shorter reply."""
        good = wire_reply(answers=mx_records(), authority=(SOA,))
        for end in range(len(good)):
            try:
                reply = decode_reply(good[:end], QUESTION, 7)
            except MalformedReply:
                continue
            self.assertIsNone(reply, end)

    def test_truncated(self) -> None:
        """TC: no record counts, wherever the reply ends (RFC 2181 §9)."""
        good = wire_reply(answers=mx_records(), trunc=1)
        for end in range(len(good) - 10, len(good)):
            reply = decode_reply(good[:end], QUESTION, 7)
            assert reply is not None
            self.assertTrue(reply.truncated)
            self.assertEqual(reply.answers, ())

    def test_wrong_lengths(self) -> None:
        for kind, data in [
            (message.A, b"12345"),
            (message.A, b"123"),
            (message.AAAA, bytes(17)),
            (message.MX, b"\0\1\0x"),
            (message.TXT, b"\5abc"),
            (message.TLSA, b"\3\1"),
            (message.CNAME, b"\xc0\x0c\0"),
        ]:
            wire = wire_reply(answers=(rr(b"example.test", dns.UnknownRecord(data), kind=kind),))
            self.assertRaises(MalformedReply, decode_reply, wire, QUESTION, 7)

    def test_compression_loop(self) -> None:
        head = wire_reply()
        looping = head[:6] + b"\0\1" + head[8:] + b"\xc0" + bytes([len(head)]) + b"\0\1\0\1" + bytes(4) + b"\0\4abcd"
        self.assertRaises(MalformedReply, decode_reply, looping, QUESTION, 7)

    def test_extended_rcode(self) -> None:
        """RFC 6891 §6.1.3: BADVERS is 16, its upper bits are in the OPT record."""
        reply = dns.Message(id=7, answer=1)
        reply.queries = [dns.Query(QUESTION.name, QUESTION.type)]
        reply.additional = [dns.RRHeader(type=dns.OPT, cls=512, ttl=1 << 24, payload=dns.UnknownRecord(b""))]
        decoded = decode_reply(reply.toStr(), QUESTION, 7)
        assert decoded is not None
        self.assertEqual(decoded.rcode, message.BADVERS)
        reply.additional[0].type = dns.TXT  # no other record's time to live has a say in it
        decoded = decode_reply(reply.toStr(), QUESTION, 7)
        assert decoded is not None
        self.assertEqual(decoded.rcode, 0)

    def test_ttls(self) -> None:
        """RFC 2308 §5: the smaller of the SOA's TTL and its minimum; RFC 2181 §8: no negative TTLs."""

        def decoded(**sections: Any) -> Reply:
            reply = decode_reply(wire_reply(**sections), QUESTION, 7)
            assert reply is not None
            return reply

        self.assertEqual(decoded(authority=(SOA,)).negative_ttl, 60)
        brief = rr(b"test", dns.Record_SOA(b"ns.test", b"root.test", minimum=60), 5)
        self.assertEqual(decoded(authority=(brief,)).negative_ttl, 5)
        self.assertIsNone(decoded().negative_ttl)
        [record] = decoded(answers=(rr(b"example.test", dns.Record_MX(1, b"m.test"), 1 << 31),)).answers
        self.assertEqual(record.ttl, 0)

    @given(st.binary(max_size=120), st.integers(0, 3), st.integers(0, 2))
    def test_any_octets(self, tail: bytes, answers: int, authority: int) -> None:
        """Whatever follows a true header and question decodes, is malformed, or is not ours; nothing else happens."""
        head = wire_reply()
        wire = head[:6] + answers.to_bytes(2, "big") + authority.to_bytes(2, "big") + bytes(2) + head[12:] + tail
        try:
            reply = decode_reply(wire, QUESTION, 7)
        except MalformedReply:
            return
        assert reply is not None
        self.assertTrue(len(reply.answers) <= answers)

    @given(st.data())
    def test_damaged(self, data: Any) -> None:
        wire = bytearray(wire_reply(answers=mx_records(), authority=(SOA,)))
        for _ in range(data.draw(st.integers(1, 4))):
            wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
        try:
            reply = decode_reply(bytes(wire), QUESTION, 7)
        except MalformedReply:
            return
        self.assertTrue(reply is None or isinstance(reply, Reply))


def reply(*records: Record, rcode: int = 0, negative_ttl: int | None = None, authenticated: bool = False) -> Reply:
    return Reply(rcode, False, authenticated, False, True, records, negative_ttl)


def cname(name: bytes, target: bytes, ttl: int = 300) -> Record:
    return Record(name, message.CNAME, ttl, target)


def a(name: bytes, address: str = "192.0.2.1", ttl: int = 300) -> Record:
    return Record(name, message.A, ttl, address)


class Conclusions(SynchronousTestCase):
    question = Question(b"a.test", message.A)

    def test_records(self) -> None:
        answer = conclude(
            reply(a(b"a.test", "192.0.2.1", 50), a(b"a.test", "192.0.2.2", 40), a(b"b.test"), authenticated=True),
            self.question,
        )
        self.assertEqual(answer, Answer("ok", ("192.0.2.1", "192.0.2.2"), True, 40))

    def test_nothing(self) -> None:
        """NXDOMAIN and NODATA differ: a host that does not exist bounces otherwise (spec/qmail.md §15.3)."""
        self.assertEqual(conclude(reply(negative_ttl=60), self.question), Answer("nodata", (), False, 60))
        self.assertEqual(conclude(reply(), self.question), Answer("nodata", (), False, 0))
        self.assertEqual(
            conclude(reply(rcode=message.NXDOMAIN, negative_ttl=9), self.question), Answer("nxdomain", (), False, 9)
        )

    def test_chain(self) -> None:
        """In any order of records; the smallest TTL counts; targets compare without case."""
        answer = conclude(
            reply(a(b"c.test", ttl=100), cname(b"b.test", b"C.test", 20), cname(b"a.test", b"b.test", 30)),
            self.question,
        )
        self.assertEqual(answer, Answer("ok", ("192.0.2.1",), False, 20))

    def test_chain_to_nothing(self) -> None:
        chain = (cname(b"a.test", b"b.test", 30),)
        self.assertEqual(conclude(reply(*chain, negative_ttl=60), self.question), Answer("nodata", (), False, 30))
        self.assertEqual(
            conclude(reply(*chain, rcode=message.NXDOMAIN, negative_ttl=10), self.question),
            Answer("nxdomain", (), False, 10),
        )
        self.assertEqual(
            conclude(reply(*chain, rcode=message.NXDOMAIN), self.question), Answer("nxdomain", (), False, 0)
        )

    def test_incomplete(self) -> None:
        outcome = conclude(reply(cname(b"a.test", b"b.test", 30), authenticated=True), self.question, 2)
        self.assertEqual(outcome, Alias(b"b.test", 30, True, 3))

    def test_bounded(self) -> None:
        chain = [cname(b"%d.test" % n, b"%d.test" % (n + 1)) for n in range(MAX_ALIASES)]
        question = Question(b"0.test", message.A)
        answer = conclude(reply(*chain, a(b"%d.test" % MAX_ALIASES)), question)
        self.assertEqual(answer.ttl, 300)
        self.assertIsInstance(answer, Answer)
        self.assertRaises(DNSTemporaryError, conclude, reply(*chain, a(b"16.test")), question, 1)
        loop = reply(cname(b"a.test", b"b.test"), cname(b"b.test", b"a.test"))
        self.assertRaises(DNSTemporaryError, conclude, loop, self.question)


class Configuration(SynchronousTestCase):
    def test_server(self) -> None:
        for text, expected in [
            ("192.0.2.1", Server("192.0.2.1", 53)),
            ("192.0.2.1:5353", Server("192.0.2.1", 5353)),
            ("[2001:DB8::0001]:5353", Server("2001:db8::1", 5353)),
            ("[::1]", Server("::1", 53)),
            ("2001:db8::1", Server("2001:db8::1", 53)),
            ("fe80::1%lo", Server("fe80::1%lo", 53)),
            ("0.0.0.0", LOCAL),
            ("[::]:54", Server("::1", 54)),
            ("::ffff:192.0.2.1", Server("192.0.2.1")),
        ]:
            self.assertEqual(parse_server(text), expected)
        bad = [
            "",
            "ns.test",
            "192.0.2",
            "192.0.2.1:",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:x",
            "[::1",
            "[::1]5",
        ]
        for text in [*bad, "[192.0.2.1]:53", "[::1]:", "192.0.2.1:\N{SUPERSCRIPT TWO}", "1.2.3.4:9999999999"]:
            self.assertRaises(ValueError, parse_server, text)

    def test_text_form(self) -> None:
        for text in ["192.0.2.1", "192.0.2.1:5353", "::1", "[::1]:5353"]:
            self.assertEqual(str(parse_server(text)), text)

    def test_servers(self) -> None:
        """Bounded to 16 (spec/related.md §4.10), none twice, none at all is this host."""
        self.assertEqual(parse_servers([]), (LOCAL,))
        self.assertEqual(parse_servers(["192.0.2.1", "192.0.2.1"]), (Server("192.0.2.1"),))
        self.assertEqual(len(parse_servers(f"192.0.2.{n}" for n in range(40))), 16)

    def test_resolv_conf(self) -> None:
        data = (
            b"# nameserver 192.0.2.9\n;nameserver 192.0.2.9\nsearch example.org\nnameserver\t192.0.2.1  # first\r\n"
            b"nameserver\nnameserver what.ever\nnameserver \xff\n  nameserver 2001:db8::2\nnameservers 192.0.2.3\n"
            b"options ndots:5\nnameserver 0.0.0.0"
        )
        self.assertEqual(parse_resolv_conf(data), (Server("192.0.2.1"), Server("2001:db8::2"), LOCAL))
        self.assertEqual(parse_resolv_conf(b"search a\n"), (LOCAL,))

    @given(st.binary(max_size=200))
    def test_any_resolv_conf(self, data: bytes) -> None:
        servers = parse_resolv_conf(b"nameserver " + data)
        self.assertTrue(1 <= len(servers) <= 16)

    @given(st.text(max_size=30))
    def test_any_server(self, text: str) -> None:
        try:
            server = parse_server(text)
        except ValueError:
            return
        self.assertEqual(parse_server(str(server)), server)

    def test_changed_file(self) -> None:
        path = self.mktemp()
        source = ResolvConf(path)
        self.assertEqual(source(), (LOCAL,))
        for number, address in enumerate(["192.0.2.1", "192.0.2.2"]):
            with open(path, "w") as file:
                file.write(f"nameserver {address}\n")
            os.utime(path, (number, number))
            self.assertEqual(source(), (Server(address),))
        os.unlink(path)
        self.assertEqual(source(), (Server("192.0.2.2"),))


@attrs.define
class Call:
    server: Server
    wire: bytes
    accept: Any
    result: Deferred[Reply]
    cancelled: bool = False

    @property
    def query(self) -> dns.Message:
        query = dns.Message()
        query.fromStr(self.wire)
        return query

    def answer(self, **sections: Any) -> None:
        """Give the server's reply, in wire form, to whoever waits for it."""
        asked = self.query.queries[0]
        wire = wire_reply(Question(asked.name.name, asked.type), self.query.id, **sections)
        reply = self.accept(wire)
        assert reply is not None
        self.result.callback(reply)


class FakeAsk:
    """Sends nothing; the test answers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __call__(self, server: Server, wire: bytes, accept: Any) -> Deferred[Reply]:
        def cancelled(_: object) -> None:
            call.cancelled = True

        call = Call(server, wire, accept, Deferred(cancelled))
        self.calls.append(call)
        return call.result

    @property
    def last(self) -> Call:
        return self.calls[-1]


ONE = Server("192.0.2.1")
TWO = Server("192.0.2.2")


class Stub(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.udp = FakeAsk()
        self.tcp = FakeAsk()

    def stub(self, *servers: Server, **options: Any) -> StubResolver:
        return StubResolver(fixed(servers or (ONE,)), self.clock, self.udp, self.tcp, **options)

    def assertTemporary(self, d: Deferred[Answer], text: str) -> None:
        self.assertIn(text, self.failureResultOf(d, DNSTemporaryError).value.args[0])

    def test_answer(self) -> None:
        d = self.stub().lookup(b"A.Test", message.A)
        self.udp.last.answer(answers=(rr(b"a.test", dns.Record_A("192.0.2.9"), 77),), authenticData=1)
        self.assertEqual(self.successResultOf(d), Answer("ok", ("192.0.2.9",), True, 77))
        self.assertEqual(self.udp.last.query.queries[0].name.name, b"a.test")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_impossible_names_are_not_asked(self) -> None:
        for name in (b"", b"a" * 64 + b".test", b"a..test", b"a." * 128):
            d = self.stub().lookup(name, message.A)
            self.assertEqual(self.successResultOf(d), Answer("nxdomain", ()))
        self.assertEqual(self.udp.calls, [])

    def test_numbers_are_random(self) -> None:
        stub = self.stub()
        for _ in range(20):
            stub.lookup(b"a.test", message.A)
        self.assertTrue(len({call.query.id for call in self.udp.calls}) > 15)

    def test_schedule(self) -> None:
        """1, 3, 11, then 15 seconds for a single server (spec/related.md §4.10 has 45 for the last)."""
        d = self.stub().lookup(b"a.test", message.A)
        for count, seconds in enumerate((1, 3, 11, 15), 1):
            self.assertEqual(len(self.udp.calls), count)
            self.clock.advance(seconds - 0.01)
            self.assertFalse(self.udp.last.cancelled)
            call = self.udp.last
            self.clock.advance(0.01)
            self.assertTrue(call.cancelled)
        self.assertTemporary(d, "timed out")
        self.assertEqual(len(self.udp.calls), 4)

    def test_rounds(self) -> None:
        """Every server in turn, then again with more patience; never longer than the deadline."""
        d = self.stub(ONE, TWO).lookup(b"a.test", message.A)
        self.clock.pump([1, 1, 3, 3, 11, 11, 14.9])
        self.assertEqual([call.server for call in self.udp.calls], [ONE, TWO, ONE, TWO, ONE, TWO, ONE])
        self.assertNoResult(d)
        self.clock.advance(0.2)
        self.assertTemporary(d, "timed out")
        self.assertEqual(len(self.udp.calls), 7)

    def test_many_servers(self) -> None:
        d = self.stub(*(Server(f"192.0.2.{n}") for n in range(1, 17))).lookup(b"a.test", message.A)
        self.clock.pump([1] * 16 + [3] * 9 + [1.9])
        self.assertNoResult(d)
        self.clock.advance(0.1)
        self.assertTemporary(d, "timed out")
        self.assertEqual(self.clock.seconds(), 45.0)

    def test_other_server(self) -> None:
        """SERVFAIL and REFUSED: the next one at once, and that one not again; all of them: temporary (§12.5)."""
        d = self.stub(ONE, TWO).lookup(b"a.test", message.A)
        self.udp.last.answer(rcode=message.SERVFAIL)
        self.assertEqual(self.udp.last.server, TWO)
        self.clock.advance(1)
        self.assertEqual(self.udp.last.server, TWO)
        self.udp.last.answer(rcode=message.REFUSED)
        self.assertTemporary(d, "DNS server 192.0.2.2: REFUSED")
        self.assertEqual(len(self.udp.calls), 3)

    def test_broken_server(self) -> None:
        d = self.stub(ONE, TWO).lookup(b"a.test", message.A)
        self.udp.last.result.errback(ServerFailure("malformed reply (x)"))
        self.udp.last.answer(answers=(rr(b"a.test", dns.Record_A("192.0.2.9")),))
        self.assertEqual(self.successResultOf(d).status, "ok")
        d = self.stub().lookup(b"a.test", message.A)
        self.udp.last.result.errback(ServerFailure("malformed reply (x)"))
        self.assertTemporary(d, "malformed")

    def test_silent_server_comes_last(self) -> None:
        stub = self.stub(ONE, TWO)
        stub.lookup(b"a.test", message.A)
        self.clock.advance(1)
        self.udp.last.answer(rcode=message.NXDOMAIN)
        stub.lookup(b"b.test", message.A)
        self.assertEqual(self.udp.last.server, TWO)
        self.udp.last.answer(rcode=message.NXDOMAIN)
        self.clock.advance(SILENCE_REMEMBERED)
        self.udp.calls.clear()
        stub.lookup(b"c.test", message.A)
        self.assertEqual(self.udp.last.server, ONE)

    def test_a_server_that_answers_again_is_not_silent(self) -> None:
        stub = self.stub(ONE, TWO)
        stub.lookup(b"a.test", message.A)
        self.clock.pump([1, 1, 3])
        self.assertEqual(self.udp.last.server, TWO)
        self.udp.last.answer(rcode=message.NXDOMAIN)
        stub.lookup(b"b.test", message.A)
        self.assertEqual(self.udp.last.server, TWO)

    def test_referral_is_not_an_answer(self) -> None:
        d = self.stub().lookup(b"a.test", message.A)
        self.udp.last.answer(recAv=0)
        self.assertTemporary(d, "neither knows")
        d = self.stub().lookup(b"a.test", message.A)
        self.udp.last.answer(recAv=0, auth=True)
        self.assertEqual(self.successResultOf(d).status, "nodata")

    def test_without_edns(self) -> None:
        """RFC 6891 §6.2.2: FORMERR to a query with OPT: once more without, over TCP as well."""
        for rcode in (message.FORMERR, message.NOTIMP):
            self.udp.calls.clear()
            self.tcp.calls.clear()
            d = self.stub().lookup(b"a.test", message.A)
            self.assertEqual(len(self.udp.last.query.additional), 1)
            self.udp.last.answer(rcode=rcode)
            self.assertEqual(self.udp.last.query.additional, [])
            self.udp.last.answer(trunc=1)
            self.assertEqual(self.tcp.last.query.additional, [])
            self.tcp.last.answer(rcode=rcode)
            self.assertTemporary(d, self.tcp.last.accept(wire_reply(Question(b"a.test", 1), self.tcp.last.query.id,
                                                                    rcode=rcode)).rcode_name)  # fmt: skip
            self.assertEqual(len(self.udp.calls), 2)

    def test_truncated(self) -> None:
        """spec/qmail.md §15.8: truncation leads to TCP."""
        d = self.stub().lookup(b"a.test", message.TXT)
        self.udp.last.answer(trunc=1, answers=(rr(b"a.test", dns.Record_TXT(b"part")),))
        self.assertEqual(self.tcp.last.server, ONE)
        self.tcp.last.answer(answers=(rr(b"a.test", dns.Record_TXT(b"whole")),))
        self.assertEqual(self.successResultOf(d).records, (b"whole",))

    def test_truncated_without_end(self) -> None:
        d = self.stub(ONE, TWO).lookup(b"a.test", message.TXT)
        self.udp.last.answer(trunc=1)
        self.tcp.last.answer(trunc=1)
        self.assertEqual(self.udp.last.server, TWO)
        self.udp.last.answer(trunc=1)
        self.tcp.last.result.errback(ServerFailure("no TCP connection"))
        self.assertTemporary(d, "no TCP connection")

    def test_silent_over_tcp(self) -> None:
        """10 seconds for TCP (spec/related.md §4.10)."""
        self.stub(ONE, TWO).lookup(b"a.test", message.TXT)
        self.udp.last.answer(trunc=1)
        self.clock.advance(9.9)
        self.assertEqual(self.udp.last.server, ONE)
        self.clock.advance(0.1)
        self.assertTrue(self.tcp.last.cancelled)
        self.assertEqual(self.udp.last.server, TWO)

    def test_alias_is_asked(self) -> None:
        """An incomplete CNAME chain goes on with a query; AD only when every part has it, the smallest TTL counts."""
        for first, second in [(1, 0), (0, 1), (1, 1)]:
            d = self.stub().lookup(b"a.test", message.A)
            self.udp.last.answer(answers=(rr(b"a.test", dns.Record_CNAME(b"B.test"), 20),), authenticData=first)
            self.assertEqual(self.udp.last.query.queries[0].name.name, b"b.test")
            self.udp.last.answer(answers=(rr(b"b.test", dns.Record_A("192.0.2.9"), 90),), authenticData=second)
            self.assertEqual(self.successResultOf(d), Answer("ok", ("192.0.2.9",), bool(first and second), 20))

    def test_alias_without_end(self) -> None:
        d = self.stub().lookup(b"0.test", message.A)
        for n in range(MAX_ALIASES + 1):
            self.udp.last.answer(answers=(rr(b"%d.test" % n, dns.Record_CNAME(b"%d.test" % (n + 1))),))
        self.assertTemporary(d, "too long")

    def test_alias_to_the_root(self) -> None:
        d = self.stub().lookup(b"a.test", message.A)
        self.udp.last.answer(answers=(rr(b"a.test", dns.Record_CNAME(b"")),))
        self.assertEqual(self.successResultOf(d).status, "nxdomain")

    def test_outstanding(self) -> None:
        stub = self.stub(outstanding=2, waiting=1)
        results = [stub.lookup(b"%d.test" % n, message.A) for n in range(4)]
        self.assertEqual(len(self.udp.calls), 2)
        self.assertTemporary(results[3], "too many")
        self.udp.calls[0].answer(rcode=message.NXDOMAIN)
        self.assertEqual(self.udp.last.query.queries[0].name.name, b"2.test")
        for call in self.udp.calls[1:]:
            call.answer(rcode=message.NXDOMAIN)
        self.assertEqual([self.successResultOf(d).status for d in results[:3]], ["nxdomain"] * 3)

    def test_the_next_in_line_has_its_own_deadline(self) -> None:
        stub = self.stub(outstanding=1, schedule=(100,), deadline=5)
        first = stub.lookup(b"a.test", message.A)
        self.clock.advance(1)
        second = stub.lookup(b"b.test", message.A)
        self.clock.advance(4)
        self.assertTemporary(first, "timed out")
        self.assertEqual(self.udp.last.query.queries[0].name.name, b"b.test")
        self.clock.advance(0.9)
        self.assertNoResult(second)
        self.clock.advance(0.1)
        self.assertTemporary(second, "timed out")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_line_until_the_deadline(self) -> None:
        """A lookup that has to ask a second time lines up again, and waits there no longer than its time."""
        stub = self.stub(outstanding=1, schedule=(100,), deadline=5)
        first = stub.lookup(b"a.test", message.A)
        self.clock.advance(3)
        second = stub.lookup(b"b.test", message.A)
        self.udp.last.answer(answers=(rr(b"a.test", dns.Record_CNAME(b"c.test")),))
        self.assertEqual(self.udp.last.query.queries[0].name.name, b"b.test")
        self.clock.advance(2)
        self.assertTemporary(first, "too many")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(len(self.udp.calls), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel_in_line(self) -> None:
        stub = self.stub(outstanding=1)
        first, second, third = (stub.lookup(name, message.A) for name in (b"a.test", b"b.test", b"c.test"))
        for d in (second, first):
            d.cancel()
            self.failureResultOf(d, CancelledError)
        self.assertEqual([call.query.queries[0].name.name for call in self.udp.calls], [b"a.test", b"c.test"])
        self.udp.last.answer(rcode=message.NXDOMAIN)
        self.assertEqual(self.successResultOf(third).status, "nxdomain")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel(self) -> None:
        d = self.stub(ONE, TWO).lookup(b"a.test", message.A)
        d.cancel()
        self.failureResultOf(d, CancelledError)
        self.assertTrue(self.udp.last.cancelled)
        self.assertEqual(len(self.udp.calls), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FakeLookup:
    def __init__(self) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self.pending: list[Deferred[Answer]] = []
        self.cancelled = 0

    def __call__(self, name: bytes, type: int) -> Deferred[Answer]:
        def cancelled(_: object) -> None:
            self.cancelled += 1

        self.asked.append((name, type))
        self.pending.append(Deferred(cancelled))
        return self.pending[-1]


class Caching(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.source = FakeLookup()
        self.cache = Cache(self.clock, self.source, entries=3)

    def fill(self, name: bytes, answer: Answer) -> None:
        d = self.cache.lookup(name, message.A)
        self.source.pending[-1].callback(answer)
        self.successResultOf(d)

    def test_ttl(self) -> None:
        self.fill(b"a.test", Answer("ok", ("192.0.2.1",), True, 100))
        self.clock.advance(40.5)
        d = self.cache.lookup(b"A.TEST.", message.A)
        self.assertEqual(self.successResultOf(d), Answer("ok", ("192.0.2.1",), True, 59))
        self.clock.advance(59.5)
        self.assertNoResult(self.cache.lookup(b"a.test", message.A))
        self.assertEqual(len(self.source.asked), 2)

    def test_types_are_apart(self) -> None:
        self.fill(b"a.test", Answer("ok", ("192.0.2.1",), True, 100))
        self.assertNoResult(self.cache.lookup(b"a.test", message.AAAA))

    def test_longest(self) -> None:
        """At most a day for records; RFC 2308 answers at most five minutes."""
        self.fill(b"a.test", Answer("ok", ("192.0.2.1",), False, 10**6))
        self.fill(b"b.test", Answer("nxdomain", (), False, 10**6))
        self.fill(b"c.test", Answer("nodata", (), True, 10**6))
        self.clock.advance(LONGEST_NEGATIVE - 1)
        self.assertEqual(self.successResultOf(self.cache.lookup(b"b.test", 1)), Answer("nxdomain", (), False, 1))
        self.assertEqual(self.successResultOf(self.cache.lookup(b"c.test", 1)), Answer("nodata", (), True, 1))
        self.clock.advance(1)
        self.assertNoResult(self.cache.lookup(b"b.test", 1))
        self.assertNoResult(self.cache.lookup(b"c.test", 1))
        self.clock.advance(LONGEST - LONGEST_NEGATIVE - 1)
        self.assertEqual(self.successResultOf(self.cache.lookup(b"a.test", 1)).ttl, 1)
        self.clock.advance(1)
        self.assertNoResult(self.cache.lookup(b"a.test", 1))

    def test_not_kept(self) -> None:
        """TTL 0, and answers so large that many of them would fill the memory."""
        self.fill(b"a.test", Answer("ok", ("192.0.2.1",), False, 0))
        self.fill(b"b.test", Answer("ok", (b"x" * LARGEST,), False, 100))
        self.fill(b"c.test", Answer("ok", ((1, b"x" * LARGEST),), False, 100))
        self.assertEqual(len(self.cache), 0)

    def test_least_recently_used_goes(self) -> None:
        for name in (b"a", b"b", b"c"):
            self.fill(name, Answer("ok", ("192.0.2.1",), False, 100))
        self.successResultOf(self.cache.lookup(b"a", message.A))
        self.fill(b"d", Answer("ok", ("192.0.2.1",), False, 100))
        self.assertEqual(len(self.cache), 3)
        self.successResultOf(self.cache.lookup(b"a", message.A))
        self.assertNoResult(self.cache.lookup(b"b", message.A))

    def test_shared(self) -> None:
        both = [self.cache.lookup(name, message.A) for name in (b"a.test", b"A.test")]
        self.assertEqual(len(self.source.asked), 1)
        self.source.pending[0].callback(Answer("ok", ("192.0.2.1",), False, 0))
        self.assertEqual([self.successResultOf(d).records for d in both], [("192.0.2.1",)] * 2)
        self.assertNoResult(self.cache.lookup(b"a.test", message.A))

    def test_failures_are_shared_and_forgotten(self) -> None:
        both = [self.cache.lookup(b"a.test", message.A) for _ in range(2)]
        self.source.pending[0].errback(DNSTemporaryError("SERVFAIL"))
        for d in both:
            self.failureResultOf(d, DNSTemporaryError)
        self.assertNoResult(self.cache.lookup(b"a.test", message.A))
        self.assertEqual(len(self.source.asked), 2)

    def test_answer_at_once(self) -> None:
        cache = Cache(self.clock, lambda name, type: succeed(Answer("nxdomain", ())))
        self.assertEqual(self.successResultOf(cache.lookup(b"", message.A)).status, "nxdomain")
        self.assertEqual(self.successResultOf(cache.lookup(b"", message.A)).status, "nxdomain")

    def test_cancel(self) -> None:
        """One who gives up does not spoil it for the others; the last one ends the query."""
        first, second = (self.cache.lookup(b"a.test", message.A) for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.source.cancelled, 0)
        self.assertNoResult(second)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.source.cancelled, 1)
        third = self.cache.lookup(b"a.test", message.A)
        self.source.pending[-1].callback(Answer("nodata", ()))
        self.assertEqual(self.successResultOf(third).status, "nodata")


V4 = Answer("ok", ("192.0.2.1",), True, 50)
V6 = Answer("ok", ("2001:db8::1",), True, 40)


class Addresses(SynchronousTestCase):
    """IResolver.addresses: A and AAAA asked together."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.source = FakeLookup()
        self.resolver = Resolver(self.clock, self.source)

    def test_interface(self) -> None:
        verifyObject(IResolver, self.resolver)

    def merged(self, four: Answer | Exception, six: Answer | Exception) -> Deferred[Answer]:
        def lookup(name: bytes, type: int) -> Deferred[Answer]:
            result = four if type == message.A else six
            return fail(result) if isinstance(result, Exception) else succeed(result)

        return Resolver(self.clock, lookup).addresses(b"a.test")

    def test_both(self) -> None:
        answer = Answer("ok", ("192.0.2.1", "2001:db8::1"), True, 40)
        self.assertEqual(self.successResultOf(self.merged(V4, V6)), answer)
        d = self.resolver.addresses(b"a.test")
        self.assertEqual(self.source.asked, [(b"a.test", message.A), (b"a.test", message.AAAA)])
        self.source.pending[1].callback(V6)
        self.source.pending[0].callback(V4)
        self.assertEqual(self.successResultOf(d), answer)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_is_enough(self) -> None:
        none, broken = Answer("nodata", (), True, 9), DNSTemporaryError("SERVFAIL")
        for other in (none, broken):
            self.assertEqual(self.successResultOf(self.merged(V4, other)), V4)
            self.assertEqual(self.successResultOf(self.merged(other, V6)), V6)
        unsigned = attrs.evolve(none, authenticated=False)
        self.assertFalse(self.successResultOf(self.merged(V4, unsigned)).authenticated)

    def test_none(self) -> None:
        none, gone, broken = Answer("nodata", (), False, 9), Answer("nxdomain", (), False, 5), DNSTemporaryError("x")
        self.assertEqual(self.successResultOf(self.merged(gone, gone)), gone)
        self.assertEqual(self.successResultOf(self.merged(none, none)), none)
        self.assertEqual(self.successResultOf(self.merged(none, gone)).status, "nodata")
        for pair in [(none, broken), (broken, gone), (broken, broken)]:
            self.failureResultOf(self.merged(*pair), DNSTemporaryError)

    def test_defects_are_not_hidden(self) -> None:
        self.failureResultOf(self.merged(V4, ZeroDivisionError()), ZeroDivisionError)

    def test_patience(self) -> None:
        """A family that gets no answer holds up nobody for longer than three seconds."""
        for quick, slow, answer in [(0, 1, V4), (1, 0, V6)]:
            self.source.pending.clear()
            d = self.resolver.addresses(b"a.test")
            self.clock.advance(10)
            self.source.pending[quick].callback(answer)
            self.clock.advance(PATIENCE - 0.1)
            self.assertNoResult(d)
            self.clock.advance(0.1)
            self.assertEqual(self.successResultOf(d), answer)
            self.assertTrue(self.source.pending[slow].called)

    def test_no_haste_without_addresses(self) -> None:
        d = self.resolver.addresses(b"a.test")
        self.source.pending[0].callback(Answer("nodata", ()))
        self.clock.advance(20)
        self.assertNoResult(d)
        self.source.pending[1].callback(V6)
        self.assertEqual(self.successResultOf(d).records, V6.records)

    def test_cancel(self) -> None:
        d = self.resolver.addresses(b"a.test")
        d.cancel()
        self.failureResultOf(d, CancelledError)
        self.assertEqual(self.source.cancelled, 2)

    def test_ptr_name(self) -> None:
        self.resolver.ptr("192.0.2.1")
        self.assertEqual(self.source.asked, [(b"1.2.0.192.in-addr.arpa", message.PTR)])
        self.assertRaises(ValueError, self.resolver.ptr, "mx.test")
