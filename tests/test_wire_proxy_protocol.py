"""HAProxy's PROXY protocol: what is a header, what is none, and what is still to come (its sections as PP)."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.proxy_protocol import MAX_V1, MAX_V2, Proxied, ProxyError, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
JOE = Proxied("192.0.2.7", 56324, "192.0.2.1", 25)
SIX = Proxied("2001:db8::7", 4321, "2001:db8::1", 465)
JOE_V2 = SIGNATURE + b"\x21\x11\0\x0c" + bytes((192, 0, 2, 7, 192, 0, 2, 1)) + b"\xdc\x04\0\x19"
SIX_V2 = (
    SIGNATURE + b"\x21\x21\0\x24" + bytes.fromhex("20010db8000000000000000000000007 20010db8000000000000000000000001")
    + b"\x10\xe1\x01\xd1"
)  # fmt: skip


def with_more(header: bytes, more: bytes) -> bytes:
    """A header of version 2 with something behind its addresses."""
    length = int.from_bytes(header[14:16], "big") + len(more)
    return header[:14] + length.to_bytes(2, "big") + header[16:] + more


class Headers(SynchronousTestCase):
    def test_good(self) -> None:
        """PP 2.1, 2.2: both versions and families, LOCAL, UNKNOWN, UNSPEC, UNIX; TLVs are passed over."""
        for header, who in (
            (b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 25\r\n", JOE),
            (b"PROXY TCP6 2001:db8::7 2001:DB8:0::1 4321 465\r\n", SIX),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2 \xff\r\n", ProxyError),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
            (JOE_V2, JOE),
            (SIX_V2, SIX),
            (SIGNATURE + b"\x20\0\0\0", None),
            (with_more(JOE_V2.replace(b"\x21\x11", b"\x20\x11"), b"anything"), None),
            (SIGNATURE + b"\x21\0\0\x03abc", None),
            (SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), None),
            (with_more(JOE_V2, b"\x04\0\0" + b"\x20\0\x05hello" + b"\x01\0\x02h2"), JOE),
            (with_more(JOE_V2, b"\x05\1\2" + bytes(258) + b"\x01\0\x02h2"), JOE),
        ):
            with self.subTest(header=header):
                if who is ProxyError:
                    self.assertRaises(ProxyError, parse, header)
                    continue
                for rest in (b"", b"EHLO x\r\n", b"PROXY TCP4 9.9.9.9 1.1.1.1 1 1\r\n"):
                    self.assertEqual(parse(header + rest), (who, len(header)))
                for end in range(len(header)):
                    self.assertIsNone(parse(header[:end]), header[:end])

    def test_bad(self) -> None:
        for data in (
            b"EHLO x\r\n",
            b"E",
            b"proxy TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXYTCP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2\n",
            b"PROXY UNKNOWN\n",
            b"PROXY \r\n",
            b"PROXY TCP4\r\n",
            b"PROXY  TCP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7  192.0.2.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 \r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 65536\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 02\r\n",
            b"PROXY TCP4 192.0.2.7 192.0.2.1 1 +2\r\n",
            b"PROXY TCP4 192.0.2.007 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP6 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
            b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n",
            b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n",
            b"PROXY UNKNOWN " + b"x" * 100,
            b"\r\n\r\n\0\r\nQUIX",
            JOE_V2.replace(b"\x21\x11", b"\x11\x11"),
            JOE_V2.replace(b"\x21\x11", b"\x22\x11"),
            JOE_V2.replace(b"\x21\x11", b"\x21\x12"),
            JOE_V2.replace(b"\x21\x11", b"\x21\x41"),
            SIGNATURE + b"\x21\x11\0\x0b" + bytes(11),
            SIGNATURE + b"\x21\x21\0\x0c" + bytes(12),
            SIGNATURE + b"\x21\x11\xff\xff",
            with_more(JOE_V2, b"\x04"),
            with_more(JOE_V2, b"\x04\0"),
            with_more(JOE_V2, b"\x04\0\x05abc"),
            with_more(JOE_V2, b"\x05\1\2" + bytes(257)),
        ):
            with self.subTest(data=data):
                self.assertRaises(ProxyError, parse, data)

    def test_never_more_than_this_is_waited_for(self) -> None:
        self.assertRaises(ProxyError, parse, b"PROXY TCP4 " + b"1" * (MAX_V1 - 11))
        self.assertRaises(ProxyError, parse, SIGNATURE + b"\x20\0" + (MAX_V2 - 15).to_bytes(2, "big"))
        self.assertIsNone(parse(SIGNATURE + b"\x20\0" + (MAX_V2 - 16).to_bytes(2, "big")))

    @given(
        st.one_of(st.binary(), st.binary().map(lambda x: SIGNATURE + x), st.binary().map(lambda x: b"PROXY TCP4 " + x))
    )
    def test_anything(self, data: bytes) -> None:
        """A header is found in the same place however much has come, or an error; nothing else is raised."""
        with contextlib.suppress(ProxyError):
            found = parse(data)
            if found is not None:
                self.assertLessEqual(found[1], len(data))
                self.assertEqual(parse(data[: found[1]]), found)
