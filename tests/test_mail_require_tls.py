"""What a header says of TLS on the message's way (RFC 8689)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.mail.envelope import Origin
from qtwist.mail.received import queue_received
from qtwist.mail.require_tls import MARK, demands_tls, waives_tls

MARKED = b"Received: from a (HELO b) (192.0.2.1)\n  by c with ESMTPS (TLS_X encrypted, REQUIRETLS); 1 Jan 2026\n"


class HeaderTests(SynchronousTestCase):
    def test_demands(self) -> None:
        """In a Received field of the header, as the end of a comment: ours, at any hop."""
        self.assertTrue(demands_tls(MARKED + b"Subject: x\n\nbody"))
        self.assertTrue(demands_tls(b"Received: (qmail 1 invoked from network); x\n" + MARKED + b"\n"))
        self.assertTrue(demands_tls(queue_received(7, Origin.bounce(1, MARK).how, 0) + b"\n"))
        for head in (
            b"Subject: x, REQUIRETLS)\n\n",
            b"Subject: x\n\n" + MARKED,
            b"Received: from x\nSubject: y, REQUIRETLS)\n\n",
            MARKED.replace(b"\n  by", b"\nBy"),
            b"",
        ):
            self.assertFalse(demands_tls(head), head)

    def test_waives(self) -> None:
        """§5: TLS-Required has one value; what demands TLS is not waived by it."""
        self.assertTrue(waives_tls(b"Subject: x\nTLS-Required: No\n\n"))
        self.assertTrue(waives_tls(b"tls-required:no \n\n"))
        for head in (
            b"TLS-Required: Yes\n\n",
            b"TLS-Required: not\n\n",
            b"Subject: x\n\nTLS-Required: No\n",
            b"X-TLS-Required: No\n\n",
            MARKED + b"TLS-Required: No\n\n",
        ):
            self.assertFalse(waives_tls(head), head)

    @given(st.binary(max_size=200), st.binary(max_size=200))
    def test_any_bytes(self, before: bytes, after: bytes) -> None:
        """Whatever stands around it, in the header the mark counts and behind it it does not."""
        fields = before.replace(b"\n", b" ")
        self.assertTrue(demands_tls(b"X: " + fields + b"\n" + MARKED + b"Y: " + after.replace(b"\n", b" ") + b"\n\n"))
        if MARK not in before:
            self.assertFalse(demands_tls(b"X: " + fields + b"\n\n" + MARKED + after))
        self.assertFalse(demands_tls(before) and waives_tls(before))
