"""The header of what is submitted, made whole as it streams by (spec/qmail.md §19, spec/related.md §9.1)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.inject.addresses import Completion
from qtwist.inject.submitted import HEADER_LIMIT, HeaderTooLong, Naming, Submitted, completed

COMPLETE = Completion(b"mx.test", b"test", b"plus.test")
WHOLE = b"Date: x\nMessage-ID: <1@a>\nFrom: a@b.c\nTo: d@e.f\n"


def naming(name: bytes | None = None, sender: bytes = b"tim@mx.test") -> Naming:
    return Naming(COMPLETE, sender, 1792983845.5, b"<20261025222405.1.9.qmail@mx.test>", name)


def submit(message: bytes, name: bytes | None = None, cuts: tuple[int, ...] = ()) -> bytes:
    submitted = Submitted(naming(name))
    places = [0, *sorted(cut % (len(message) + 1) for cut in cuts), len(message)]
    parts = [submitted.feed(message[start:end]) for start, end in pairwise(places)]
    return b"".join(parts) + submitted.finish()


class HeaderTests(SynchronousTestCase):
    def test_nothing_to_do(self) -> None:
        """What is complete stays octet for octet: order, folding, spaces, and the body."""
        for message in (
            WHOLE + b"\nbody\n.\n\nFrom: x\n",
            b"X-Odd:  two\n\tthree\n" + WHOLE.replace(b"a@b.c", b" Ann  A.\n <a@b.c> ,x@y.z") + b"\n",
            WHOLE + b"Cc: undisclosed-recipients:;\n\nbody",
        ):
            self.assertEqual(submit(message), message)

    def test_added(self) -> None:
        self.assertEqual(
            submit(b"Subject: x\n\nhello\n"),
            b"Date: 26 Oct 2026 03:04:05 -0000\nMessage-ID: <20261025222405.1.9.qmail@mx.test>\n"
            b"From: <tim@mx.test>\nCc: recipient list not shown: ;\nSubject: x\n\nhello\n",
        )

    def test_removed(self) -> None:
        """Bcc above all."""
        message = WHOLE + b"Bcc: secret@x.test,\n other@x.test\nReturn-Path: <x@y.z>\nContent-Length: 5\nbCC : y\n\nb\n"
        self.assertEqual(submit(message), WHOLE + b"\nb\n")

    def test_completed(self) -> None:
        """Addresses without a domain get one (§19.7); what cannot be read stays."""
        self.assertEqual(
            submit(WHOLE.replace(b"d@e.f", b"joe, Ann <ann@host>, x@y+") + b"\n"),
            WHOLE.replace(b"d@e.f", b"joe@mx.test, Ann <ann@host.test>, x@y.plus.test") + b"\n",
        )
        odd = WHOLE.replace(b"d@e.f", b'"never closed <joe>')
        self.assertEqual(submit(odd + b"\n"), odd + b"\n")

    def test_name(self) -> None:
        """The name database: every From goes, and one comes (spec/related.md §9.1)."""
        self.assertEqual(
            submit(b"From: x@y.z\nFrom: a@b.c\n" + WHOLE + b"\nb\n", b'Tim "T" \r\nX: y'),
            b'From: "Tim \\"T\\" X: y" <tim@mx.test>\n' + WHOLE.replace(b"From: a@b.c\n", b"") + b"\nb\n",
        )

    def test_no_header(self) -> None:
        """The first line that is no field begins the body (§19.2)."""
        added = submit(b"")
        self.assertTrue(added.startswith(b"Date: ") and added.endswith(b": ;\n"))
        self.assertEqual(submit(b"hello world\nno: field\n"), added + b"\nhello world\nno: field\n")
        self.assertEqual(submit(b"\nhello\n"), added + b"\nhello\n")
        self.assertEqual(submit(b"From joe today\n" + WHOLE + b"\n"), b"MBOX-Line: From joe today\n" + WHOLE + b"\n")

    def test_ends_in_the_header(self) -> None:
        self.assertEqual(submit(WHOLE), WHOLE)
        self.assertEqual(submit(WHOLE + b"Bcc: x"), WHOLE)

    def test_authors(self) -> None:
        submitted = Submitted(naming())
        submitted.feed(WHOLE.replace(b"a@b.c", b"Ann <ann@x>, (comment) bob") + b"\n")
        self.assertEqual(sorted(submitted.authors), [b"ann@x.test", b"bob@mx.test"])
        submitted = Submitted(naming(b"Tim"))
        submitted.feed(WHOLE + b"\n")
        self.assertEqual(submitted.authors, [b"tim@mx.test"])

    def test_too_long(self) -> None:
        submitted = Submitted(naming())
        with self.assertRaises(HeaderTooLong):
            for _ in range(HEADER_LIMIT // 1000 + 2):
                submitted.feed(b"X-Y: " + b"z" * 1000 + b"\n")
        submitted = Submitted(naming())
        with self.assertRaises(HeaderTooLong):
            submitted.feed(b"X" * (HEADER_LIMIT + 1))

    def test_body_is_not_held(self) -> None:
        submitted = Submitted(naming())
        self.assertTrue(submitted.feed(WHOLE + b"\nbody"))
        for _ in range(3):
            self.assertEqual(submitted.feed(b"x" * 65536), b"x" * 65536)
        self.assertEqual(submitted.finish(), b"")

    @given(
        st.lists(st.sampled_from([WHOLE, b"Bcc: a\n", b"\n", b" x\n", b"a b\n", b"From: joe\n", b"x"])),
        st.lists(st.integers(0, 500)),
    )
    def test_cuts(self, parts: list[bytes], cuts: list[int]) -> None:
        """It does not matter how the message is cut."""
        message = b"".join(parts)
        self.assertEqual(submit(message, cuts=tuple(cuts)), submit(message))

    @given(st.binary(max_size=300))
    def test_any_bytes(self, message: bytes) -> None:
        """Whatever comes, no header of the result has a Bcc, and the body is there."""
        result = submit(message)
        header = result.partition(b"\n\n")[0]
        self.assertNotIn(b"\nbcc:", b"\n" + header.lower())


class EnvelopeTests(SynchronousTestCase):
    def test_completed(self) -> None:
        for address, wanted in (
            (b"", b""),
            (b"joe", b"joe@mx.test"),
            (b"joe@host", b"joe@host.test"),
            (b"joe@host+", b"joe@host.plus.test"),
            (b"joe@x.y", b"joe@x.y"),
            (b"joe@[192.0.2.1]", b"joe@[192.0.2.1]"),
            (b"a b@x.y", b"a b@x.y"),
            (b"(x)@x.y", b"(x)@x.y"),
        ):
            self.assertEqual(completed(COMPLETE, address), wanted)
