"""The server's side of QMQP and of its chunked form: spec/qmail.md §17.2, §27; doc/door.md."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire import qmqp
from qtwist.wire.netstring import encode
from qtwist.wire.qmqp import QMQPServer


def plain(message: bytes, *addresses: bytes) -> bytes:
    """A request in QMQP proper."""
    return encode(encode(message) + b"".join(map(encode, addresses)))


def chunked(pieces: list[bytes], *addresses: bytes) -> bytes:
    return b"+" + b"".join(map(encode, pieces)) + b"0:," + b"".join(map(encode, addresses)) + b"."


def serve(data: bytes, step: int = 0) -> tuple[QMQPServer, bytes]:
    server = QMQPServer()
    message = b""
    step = step or len(data) or 1
    for at in range(0, len(data), step):
        message += server.receive(data[at : at + step])
        if server.broken:
            break
    return server, message


class RequestTests(SynchronousTestCase):
    def check(self, data: bytes, message: bytes, sender: bytes, recipients: list[bytes]) -> None:
        for step in (0, 1, 2, 3, 5):
            server, got = serve(data, step)
            self.assertEqual(server.broken, "")
            self.assertTrue(server.ended)
            self.assertIsNone(server.refusal)
            self.assertEqual((got, server.sender, server.recipients), (message, sender, recipients), (data, step))

    def test_plain(self) -> None:
        """§27."""
        self.check(b"38:10:From: x\n\nb,3:a@b,3:c@d,1:e,5:x@y\nz,,", b"From: x\n\nb", b"a@b", [b"c@d", b"e", b"x@y\nz"])
        self.check(plain(b"", b"", b"a@b"), b"", b"", [b"a@b"])
        self.check(plain(b"x", b"a@b"), b"x", b"a@b", [])

    def test_chunked(self) -> None:
        self.check(b"+3:abc,1:d,0:,3:a@b,3:c@d,.", b"abcd", b"a@b", [b"c@d"])
        self.check(chunked([], b""), b"", b"", [])
        self.check(chunked([b"+"], b".", b"."), b"+", b".", [b"."])

    def test_incomplete(self) -> None:
        """Nothing was asked for before the very last octet."""
        for data in (plain(b"message", b"a@b", b"c@d"), chunked([b"mess", b"age"], b"a@b", b"c@d")):
            for size in range(len(data)):
                server, message = serve(data[:size])
                self.assertFalse(server.ended, data[:size])
                self.assertEqual(server.broken, "")
                self.assertTrue(b"message".startswith(message))

    def test_garbage(self) -> None:
        for data in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"+.",
            b"+0:,.",  # no sender
            b"+x:,",
            b"+1:a;",
            b"+01:a,",
            b"+0:,3:a@b,,",
            b"0:,",  # no message
            b"3:0:,,",  # no sender
            b"6:0:,0:,;",
            b"5:0:,0:,,",  # the inner ones are longer than the outer one
            b"4:0:,0:,,",
            b"7:0:,0:,,",
            b"9:4:ab,3:a@b,,",
            b"012:",
            b"99999999999999999999999:",
            b"-1:",
        ):
            for step in (0, 1, 2):
                server, _ = serve(data, step)
                self.assertTrue(server.broken, (data, step))
                self.assertFalse(server.ended)

    def test_address_limits(self) -> None:
        """§17.2: 1000 octets are too many; §6.1: a qmail-queue takes 1002. The request is read to its end."""
        for form, limit in ((plain, 999), (lambda message, *rest: chunked([message], *rest), 1002)):
            for addresses in ((b"a" * limit, b"b@c"), (b"b@c", b"a" * limit)):
                server, _ = serve(form(b"m", *addresses), 100)
                self.assertIsNone(server.refusal)
                self.assertEqual((server.sender, *server.recipients), addresses)
            for addresses in ((b"a" * (limit + 1), b"b@c"), (b"b@c", b"a" * (limit + 1)), (b"s", b"a" * 500_000, b"c")):
                server, message = serve(form(b"m", *addresses), 100_000)
                self.assertTrue(server.ended)
                self.assertEqual(message, b"m")
                self.assertEqual(server.refusal[0], 11)
                self.assertRegex(server.refusal[1], rb"^D.*\(#5\.1\.3\)$")

    def test_long_addresses_are_not_kept(self) -> None:
        server, _ = serve(b"9999999:1:m,900000:" + b"a" * 800_000)
        self.assertLessEqual(len(server._text), 1000)
        server, _ = serve(b"+0:,9000000:")
        self.assertTrue(server.broken)

    def test_nul(self) -> None:
        """§17.2."""
        for data in (plain(b"m\0", b"a@b", b"c\0@d"), chunked([b"m\0"], b"a\0", b"c@d")):
            server, message = serve(data)
            self.assertEqual(message, b"m\0")
            self.assertEqual(server.refusal[0], 11)

    def test_too_many(self) -> None:
        self.patch(qmqp, "RECIPIENT_LIMIT", 3)
        self.assertIsNone(serve(plain(b"", b"s", b"a", b"b"))[0].refusal)
        for data in (plain(b"", b"s", b"a", b"b", b"c"), chunked([b"m"], b"s", b"a", b"b", b"c")):
            server, _ = serve(data)
            self.assertTrue(server.ended)
            self.assertEqual(server.refusal[0], 31)
            self.assertEqual(server.recipients, [])
        self.patch(qmqp, "ENVELOPE_LIMIT", 10)
        self.assertEqual(serve(plain(b"", b"12345", b"678901"))[0].refusal[0], 31)

    def test_answers(self) -> None:
        """The code of qmail-queue stands before the text in answer to the chunked form only."""
        server, _ = serve(plain(b"", b"s", b"a"))
        self.assertEqual(server.answer(0, b"Kok 1 qp 2"), b"10:Kok 1 qp 2,")
        self.assertEqual(server.answer(53, b"Zfull"), b"5:Zfull,")
        server, _ = serve(chunked([], b"s", b"a"))
        self.assertEqual(server.answer(0, b"Kok 1 qp 2"), b"10:Kok 1 qp 2,")
        self.assertEqual(server.answer(53, b"Zfull"), b"8:Z53 full,")

    @given(
        st.lists(st.binary(min_size=1, max_size=20), max_size=4),
        st.lists(st.binary(max_size=8).map(lambda text: text.replace(b"\0", b"")), min_size=1, max_size=5),
        st.integers(1, 9),
        st.booleans(),
    )
    def test_round_trip(self, pieces: list[bytes], addresses: list[bytes], step: int, in_chunks: bool) -> None:
        data = chunked(pieces, *addresses) if in_chunks else plain(b"".join(pieces), *addresses)
        server, message = serve(data, step)
        self.assertTrue(server.ended)
        self.assertEqual(message, b"".join(pieces))
        self.assertEqual([server.sender, *server.recipients], addresses)

    @given(st.lists(st.sampled_from([*b"+.,:0129a"]), max_size=30).map(bytes))
    def test_any_octets(self, data: bytes) -> None:
        """Any octets are a request, the beginning of one, or broken; however they are cut."""
        results = set()
        for step in (0, 1, 2, 3):
            server, message = serve(data, step)
            results.add((server.ended, bool(server.broken), b"" if server.broken else message))
            self.assertFalse(server.ended and server.broken)
        self.assertEqual(len(results), 1, results)
