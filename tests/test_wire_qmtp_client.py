"""The client's side of QMTP (spec/qmail.md §27), against our server's engine and byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.qmtp_client import ADDRESS_LIMIT, ANSWER_LIMIT, AnswerReader, head, tail
from tests.test_wire_qmtp_server import Reader

ADDRESSES = st.binary(max_size=ADDRESS_LIMIT)


class PackageTests(SynchronousTestCase):
    def test_octets(self) -> None:
        """The LF that tells the line ends counts in the length."""
        message = b"Subject: x\n\nhello\n"
        wanted = b"19:\nSubject: x\n\nhello\n,3:a@b,6:3:c@d,,"
        self.assertEqual(head(len(message)) + message + tail(b"a@b", b"c@d"), wanted)
        self.assertEqual(head(0) + tail(b"", b"c@d"), b"1:\n,0:,6:3:c@d,,")

    @given(st.binary(max_size=2000), ADDRESSES, ADDRESSES, st.integers(1, 500))
    def test_read_back(self, message: bytes, sender: bytes, recipient: bytes, step: int) -> None:
        """Our server reads message and envelope as they were, answers at the last octet, and its answer is read."""
        package = head(len(message)) + message + tail(sender, recipient)
        server = Reader().feed(package[:-1], step)
        self.assertEqual(server.output, b"")
        server.feed(package[-1:])
        self.assertEqual(server.server.broken, "")
        self.assertEqual((server.messages, server.recipients), ([message], [[recipient]]))
        self.assertEqual(server.senders[0][0], sender)
        reader = AnswerReader()
        reader.receive(server.output)
        self.assertEqual(reader.answer, (b"K", b"ok 1"))


class AnswerTests(SynchronousTestCase):
    @given(st.sampled_from([b"K", b"Z", b"D"]), st.binary(max_size=300), st.lists(st.integers(1, 50)))
    def test_answer(self, letter: bytes, text: bytes, sizes: list[int]) -> None:
        """Read in whatever pieces it comes, and nothing behind it."""
        data = b"%d:%b%b,5:Kmore," % (len(text) + 1, letter, text)
        reader = AnswerReader()
        for size in sizes:
            reader.receive(data[:size])
            data = data[size:]
        reader.receive(data)
        self.assertEqual((reader.answer, reader.nonsense), ((letter, text), None))

    def test_nonsense(self) -> None:
        for data in (b"220 mx.test ESMTP\r\n", b"3:yes,", b"0:,", b"%d:" % (ANSWER_LIMIT + 1), b"3:Kok;"):
            with self.subTest(data=data):
                reader = AnswerReader()
                reader.receive(data)
                self.assertIsNone(reader.answer)
                self.assertIsNotNone(reader.nonsense)

    @given(st.binary())
    def test_anything(self, data: bytes) -> None:
        AnswerReader().receive(data)
