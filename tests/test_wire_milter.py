"""The milter protocol, the mail server's side (Sendmail's libmilter/mfdef.h)."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import milter as wire
from qtwist.wire.milter import Milter, MilterError, Packet


def negotiated(version: int = 6, actions: int = 0, protocol: int = 0) -> Milter:
    milter = Milter()
    milter.negotiated(Packet(b"O", struct.pack(">LLL", version, actions, protocol)))
    return milter


class PacketTests(SynchronousTestCase):
    def test_octets(self) -> None:
        """Four octets of length, which count the letter, too."""
        self.assertEqual(wire.packet(b"T"), b"\0\0\0\1T")
        self.assertEqual(wire.texts(b"H", b"a\0b"), b"\0\0\0\4Hab\0")
        self.assertEqual(wire.connect(b"mx.test", "192.0.2.1", 25)[4:], b"Cmx.test\x004\x00\x19192.0.2.1\0")
        self.assertEqual(wire.connect(b"mx.test", "2001:db8::1", 25)[4:], b"Cmx.test\x006\x00\x19IPv6:2001:db8::1\0")
        self.assertEqual(wire.connect(b"mx.test", "", 0)[4:], b"Cmx.test\0U")
        self.assertEqual(wire.macros(b"C", ((b"j", b"me"), (b"{x}", b""))), b"\0\0\0\x0cDCj\0me\0{x}\0\0")
        self.assertEqual(wire.macros(b"C", ()), b"")

    @given(st.lists(st.tuples(st.sampled_from([b"c", b"+", b"y"]), st.binary(max_size=50))), st.integers(1, 9))
    def test_any_cut(self, packets: list[tuple[bytes, bytes]], size: int) -> None:
        octets = b"".join(wire.packet(letter, rest) for letter, rest in packets)
        milter, found = Milter(), []
        for start in range(0, len(octets), size):
            found += milter.receive(octets[start : start + size])
        self.assertEqual([(one.letter, one.rest) for one in found], packets)

    @given(st.binary(max_size=200))
    def test_any_octets(self, octets: bytes) -> None:
        try:
            for one in Milter().receive(octets):
                self.assertEqual(len(one.letter), 1)
                one.texts(1)
                one.numbered()
        except MilterError:
            pass

    def test_bounds(self) -> None:
        for length in (0, wire.LARGEST_PACKET + 1, 0xFFFFFFFF):
            self.assertRaises(MilterError, Milter().receive, struct.pack(">L", length) + b"c")

    def test_parts(self) -> None:
        self.assertEqual(Packet(b"h", b"A\0b\0").texts(2), [b"A", b"b"])
        self.assertEqual(Packet(b"i", b"\0\0\0\2A\0b\0").numbered(), (2, b"A", b"b"))
        self.assertRaises(MilterError, Packet(b"h", b"A\0b").texts, 2)
        self.assertRaises(MilterError, Packet(b"i", b"\0\0").numbered)


class NegotiationTests(SynchronousTestCase):
    def test_offer(self) -> None:
        offer = Milter().negotiate()
        length, letter, version, actions, protocol = struct.unpack(">LcLLL", offer)
        self.assertEqual((length, letter, version, actions), (13, b"O", 6, 0xDF))
        self.assertEqual(
            protocol, 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x200 | 0x400 | 0xF000 | 0x1D0000
        )

    def test_what_it_wants(self) -> None:
        everything = negotiated()
        for letter in (wire.CONNECT, wire.HELO, wire.MAIL, wire.RCPT, wire.DATA, wire.HEADER, wire.BODY):
            self.assertTrue(everything.wants(letter) and everything.answers(letter))
        little = negotiated(protocol=0x1 | 0x10 | 0x80 | 0x8000)
        self.assertEqual(
            [little.wants(letter) for letter in (wire.CONNECT, wire.HELO, wire.BODY, wire.HEADER, wire.DATA)],
            [False, True, False, True, True],
        )
        self.assertEqual(
            [little.answers(letter) for letter in (wire.HEADER, wire.RCPT, wire.MAIL)], [False, False, True]
        )
        self.assertFalse(negotiated(version=2).wants(wire.DATA))
        self.assertTrue(negotiated(protocol=0x100000).leading_space)
        self.assertTrue(negotiated(protocol=0x400).may_skip)

    def test_refused(self) -> None:
        for letter, rest, why in (
            (b"c", b"", "does not negotiate"),
            (b"O", bytes(11), "does not negotiate"),
            (b"O", struct.pack(">LLL", 1, 0, 0), "speaks version 1; expected 2 to 6"),
            (b"O", struct.pack(">LLL", 7, 0, 0), "speaks version 7"),
            (b"O", struct.pack(">LLL", 6, 0x20, 0), "actions 0x20"),
            (b"O", struct.pack(">LLL", 6, 0, 0x100), "not offered"),
        ):
            self.assertIn(why, str(self.assertRaises(MilterError, Milter().negotiated, Packet(letter, rest))))
