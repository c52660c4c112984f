"""Records of todo, info, local and remote (spec/qmail.md §5.2, §6.2)."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.interfaces import RecipientRecord
from qtwist.mail.envelope import Envelope
from qtwist.queue.records import (
    RECORD_LIMIT,
    AddressTooLong,
    EnvelopeHead,
    UnknownRecord,
    format_envelope,
    format_info,
    format_recipients,
    parse_envelope,
    parse_info,
    parse_recipients,
    split_records,
)

addresses = st.binary(max_size=1002).map(lambda address: address.replace(b"\0", b"@"))
envelopes = st.builds(Envelope, addresses, st.lists(addresses, max_size=8).map(tuple))


def chop(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def parse(data: bytes, size: int = 65536) -> tuple[EnvelopeHead, list[bytes]]:
    recipients: list[bytes] = []
    return parse_envelope(chop(data, size), "todo/5", recipients.extend), recipients


class EnvelopeTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """§28.1."""
        data = format_envelope(0, 28188, Envelope(b"a@b", (b"joe@x",)))
        self.assertEqual(data, b"u0\0p28188\0Fa@b\0Tjoe@x\0")
        self.assertEqual(parse(data), (EnvelopeHead(0, 28188, b"a@b"), [b"joe@x"]))

    def test_two_senders(self) -> None:
        """§5.2: one, also when it is the empty one."""
        for first in (b"", b"a@b"):
            self.assertRaises(ValueError, parse, b"u1\0p2\0F%b\0Fx@y\0Tjoe@x\0" % first)

    def test_no_recipients(self) -> None:
        """§6.1: accepted. §28.19: the empty sender, too."""
        self.assertEqual(format_envelope(7, 8, Envelope(b"", ())), b"u7\0p8\0F\0")

    def test_longest_address(self) -> None:
        """§28.19: 1002 octets, and not one more."""
        format_envelope(1, 1, Envelope(b"s" * 1002, (b"r" * 1002,)))
        self.assertRaises(AddressTooLong, format_envelope, 1, 1, Envelope(b"s" * 1003, ()))
        self.assertRaises(AddressTooLong, format_envelope, 1, 1, Envelope(b"s", (b"r", b"r" * 1003)))

    def test_nul(self) -> None:
        self.assertRaises(ValueError, format_envelope, 1, 1, Envelope(b"a\0Tb", ()))
        self.assertRaises(ValueError, format_envelope, 1, 1, Envelope(b"a", (b"b\0Tc",)))

    @given(st.integers(0, 2**32), st.integers(0, 2**64 - 1), envelopes, st.integers(1, 3000))
    def test_round_trip(self, uid: int, qp: int, envelope: Envelope, size: int) -> None:
        """However the file is cut into blocks."""
        data = format_envelope(uid, qp, envelope)
        self.assertEqual(parse(data, size), (EnvelopeHead(uid, qp, envelope.sender), list(envelope.recipients)))

    @given(
        st.binary(max_size=300) | st.lists(st.sampled_from([b"u", b"p", b"F", b"T", b"1", b"x", b"\0"])).map(b"".join)
    )
    def test_garbage(self, data: bytes) -> None:
        """Any bytes are an envelope, or a ValueError that says where."""
        try:
            head, recipients = parse(data)
        except ValueError as error:
            self.assertTrue(str(error).startswith("todo/5: "))
        else:
            records = data.split(b"\0")
            self.assertEqual(records.pop(), b"")
            self.assertEqual([record[1:] for record in records if record.startswith(b"T")], recipients)
            self.assertIn(b"F" + head.sender, records)

    def test_damage(self) -> None:
        for data in (b"", b"u1\0p1\0", b"Fa\0Tb", b"Fa\0Fb\0", b"ux\0Fa\0", b"u\0Fa\0", b"p" + b"1" * 30 + b"\0Fa\0"):
            self.assertNotIsInstance(self.assertRaises(ValueError, parse, data), UnknownRecord)
        for data in (b"Fa\0Xb\0", b"Fa\0\0Tb\0"):
            self.assertRaises(UnknownRecord, parse, data)

    def test_records_without_uid_and_pid(self) -> None:
        """qmail-send takes 0 for them (§9.4)."""
        self.assertEqual(parse(b"Fa\0"), (EnvelopeHead(0, 0, b"a"), []))

    def test_longest_record(self) -> None:
        longest = b"T" * RECORD_LIMIT + b"\0"
        self.assertEqual(list(split_records([longest], "f")), [[longest[:-1]]])
        for blocks in ([b"T" + longest], [b"T" * RECORD_LIMIT, b"T", b"\0"], [b"x" * 10] * RECORD_LIMIT):
            self.assertRaises(ValueError, list, split_records(blocks, "f"))


class InfoTests(SynchronousTestCase):
    def test_forms(self) -> None:
        self.assertEqual(format_info(b"list-@host-@[]"), b"Flist-@host-@[]\0")
        self.assertEqual(parse_info(b"Flist-@host-@[]\0", "info/1/2"), b"list-@host-@[]")
        self.assertEqual(parse_info(b"F\0", "info/1/2"), b"")

    def test_damage(self) -> None:
        self.assertRaises(ValueError, parse_info, b"Fjoe", "info/1/2")
        for data in (b"", b"Tjoe\0", b"\0"):
            self.assertRaises(UnknownRecord, parse_info, data, "info/1/2")


class RecipientTests(SynchronousTestCase):
    def test_marks_and_offsets(self) -> None:
        """§5.2: T is not done, D is done; offset is where the mark goes."""
        self.assertEqual(
            parse_recipients(b"Ta@b\0Dc\0Td", 100, 10, "local/1/2"),
            [RecipientRecord(100, False, b"a@b"), RecipientRecord(105, True, b"c")],
        )
        self.assertEqual(len(parse_recipients(b"Ta@b\0Dc\0", 0, 1, "local/1/2")), 1)

    def test_unknown(self) -> None:
        error = self.assertRaises(UnknownRecord, parse_recipients, b"Ta\0Xb\0", 7, 10, "local/1/2")
        self.assertEqual(str(error), "local/1/2: unknown record type b'X' at offset 10")
        self.assertRaises(UnknownRecord, parse_recipients, b"\0", 0, 10, "local/1/2")

    @given(st.lists(addresses))
    def test_round_trip(self, recipients: list[bytes]) -> None:
        data = format_recipients(recipients)
        records = parse_recipients(data, 0, len(recipients) + 1, "remote/1/2")
        self.assertEqual([record.address for record in records], recipients)
        for record in records:
            self.assertEqual(data[record.offset : record.offset + 1], b"T")
            self.assertFalse(record.done)
