"""The client's side of QMQP (spec/qmail.md §17.3, §27), against our server's engine and byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.netstring import encode
from qtwist.wire.qmqp import QMQP_ADDRESS_LIMIT, QMQPServer
from qtwist.wire.qmqp_client import TEXT_LIMIT, AnswerReader, frame, queue_number

ADDRESSES = st.binary(max_size=QMQP_ADDRESS_LIMIT).map(lambda address: address.replace(b"\0", b""))


def read(data: bytes, step: int = 0) -> AnswerReader:
    reader = AnswerReader()
    step = step or len(data) or 1
    for at in range(0, len(data), step):
        reader.receive(data[at : at + step])
    return reader


class RequestTests(SynchronousTestCase):
    def test_octets(self) -> None:
        """§27."""
        message = b"From: x\n\nb"
        head, tail = frame(len(message), b"a@b", [b"c@d", b"e", b"x@y\nz"])
        self.assertEqual(head + message + tail, b"38:10:From: x\n\nb,3:a@b,3:c@d,1:e,5:x@y\nz,,")
        self.assertEqual(b"".join(frame(0, b"", [])), b"6:0:,0:,,")

    @given(st.binary(), ADDRESSES, st.lists(ADDRESSES), st.integers(1, 100))
    def test_server(self, message: bytes, sender: bytes, recipients: list[bytes], step: int) -> None:
        """The server's engine reads what was meant, and only at the very last octet."""
        head, tail = frame(len(message), sender, recipients)
        request = head + message + tail
        server = QMQPServer(may_chunk=False)
        got = b""
        for at in range(0, len(request), step):
            self.assertFalse(server.ended)
            got += server.receive(request[at : at + step])
        self.assertEqual((server.broken, server.refusal, server.ended), ("", None, True))
        self.assertEqual((got, server.sender, server.recipients), (message, sender, recipients))
        self.assertEqual(read(server.answer(0, b"Kok 1 qp 2")).verdict, (b"K", b"ok 1 qp 2"))


class AnswerTests(SynchronousTestCase):
    def test_letters(self) -> None:
        for letter in (b"K", b"Z", b"D"):
            for step in (0, 1, 3):
                reader = read(encode(letter + b"text (#4.3.0)"), step)
                self.assertEqual((reader.ended, reader.verdict), (True, (letter, b"text (#4.3.0)")))
            self.assertEqual(read(encode(letter)).verdict, (letter, b""))

    def test_half(self) -> None:
        """§17.3: the letter decides, whatever becomes of the rest."""
        data = encode(b"Kok 1 qp 2")
        for size in range(len(data) - 1):
            reader = read(data[:size])
            self.assertFalse(reader.ended)
            self.assertEqual(reader.verdict, (b"K", data[4:][: size - 4]) if size > 3 else None)
        for step in (0, 1):
            broken = read(b"3:Dno;", step)
            self.assertEqual((broken.ended, broken.verdict), (True, (b"D", b"no")))

    def test_nonsense(self) -> None:
        """Letters that happen to be somewhere in something else are no answer: a K would lose the message."""
        for data in (
            b"220 mx.test ESMTP Kolab\r\n",
            b"K",
            b"Kok",
            b"0:,",
            b"2:OK,",
            b"01:K,",
            b":K,",
            b"-1:K,",
            b"9" * 50,
        ):
            reader = read(data)
            self.assertTrue(reader.ended, data)
            self.assertIsNone(reader.verdict, data)

    def test_one_line(self) -> None:
        self.assertEqual(read(encode(b"Da\r\nb\0\x1b[2J\x7fc\xc3\xa4")).verdict, (b"D", b"a??b??[2J?c\xc3\xa4"))
        long = read(b"1000000:Z" + b"x" * 60_000)
        self.assertEqual((long.ended, long.verdict), (True, (b"Z", b"x" * TEXT_LIMIT)))

    @given(st.lists(st.sampled_from([*b"KZD0159:, q"]), max_size=20).map(bytes), st.integers(1, 20))
    def test_any(self, data: bytes, step: int) -> None:
        """Whatever comes: a verdict only for what starts as a netstring whose first octet is a letter."""
        verdict = read(data, step).verdict
        length, colon, rest = data.partition(b":")
        right = colon and length.isdigit() and not length.startswith(b"0") and len(length) < 10
        self.assertEqual(verdict and verdict[0], rest[:1] if right and rest[:1] in (b"K", b"Z", b"D") else None)

    def test_number(self) -> None:
        self.assertEqual(queue_number(b"ok 1795000000 qp 4711"), 4711)
        for text in (b"", b"ok", b"ok 123", b"ok 1 qp ", b"ok 1 qp x", b"ok 1 qp " + b"9" * 21):
            self.assertEqual(queue_number(text), 0, text)
