"""BDAT: transcripts, what is refused, and that no octet of a message is ever read as a command (RFC 3030)."""

from __future__ import annotations

from base64 import encodebytes
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.smtp_body import BodyDecoder, ChunkDecoder
from qtwist.wire.smtp_events import Chunk, Data, EndOfMessage, Event, Mail, Reset
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import Limits, SMTPServer
from tests.test_smuggling import ENDINGS, SMUGGLED
from tests.test_wire_smtp_server import drive, joined, stored

BEGIN = b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"


def bdat(octets: bytes, last: bool = False) -> bytes:
    return b"BDAT %d%s\r\n" % (len(octets), b" LAST" if last else b"") + octets


class Chunks(SynchronousTestCase):
    def talk(
        self,
        said: bytes,
        step: int = 1 << 20,
        engine: SMTPServer | None = None,
        answer: Callable[[Event], Reply | None] = lambda event: None,
    ) -> tuple[list[Event], list[int]]:
        """Say BEGIN and `said` in pieces; the events behind RCPT, and the codes of the replies behind it."""
        engine = engine or SMTPServer(b"mx.test")
        engine.offer_chunking = True
        self.engine = engine
        drive(engine)
        engine.receive(BEGIN)
        drive(engine)
        engine.data_to_send()
        events: list[Event] = []
        for at in range(0, len(said), step):
            engine.receive(said[at : at + step])
            events += drive(engine, answer)
        self.replies = engine.data_to_send().split(b"\r\n")[:-1]
        return joined(events), [int(line[:3]) for line in self.replies]

    def test_offered(self) -> None:
        """RFC 3030 §2: by the keyword CHUNKING."""
        engine = SMTPServer(b"mx.test")
        engine.offer_chunking = True
        engine.receive(b"EHLO c\r\n")
        drive(engine)
        self.assertIn(b"250-CHUNKING\r\n", engine.data_to_send())

    def test_one_chunk(self) -> None:
        """RFC 3030 §4.2, its second example: the line with a dot is a line with a dot."""
        for step in (1, 3, 1000):
            events, codes = self.talk(bdat(b"Subject: x\r\n\r\n.\r\n..\r\n", last=True), step)
            text = b"Subject: x\n\n.\n..\n"
            self.assertEqual(events, [Data(chunked=True), Chunk(text), EndOfMessage(len(text), 0, None)])
            self.assertEqual(codes, [250])
            self.assertFalse(self.engine.in_message)

    def test_chunks_in_a_pipeline(self) -> None:
        """RFC 3030 §4.2: chunks follow one another without waiting; the line ends are where they like."""
        said = bdat(b"a\r") + bdat(b"\nb") + bdat(b"") + bdat(b"\r\n") + b"bdat 0 last\r\nNOOP\r\n"
        for step in (1, 2, 1000):
            events, codes = self.talk(said, step)
            self.assertEqual(events, [Data(chunked=True), Chunk(b"a\nb\n"), EndOfMessage(4, 0, None)])
            self.assertEqual(codes, [250, 250, 250, 250, 250, 250])

    def test_without_a_last_line_end(self) -> None:
        """What DATA cannot carry: it stays as it is."""
        events, _ = self.talk(bdat(b"a\r\nb", last=True))
        self.assertEqual(stored(events), b"a\nb")

    def test_an_empty_message(self) -> None:
        events, codes = self.talk(b"BDAT 0 LAST\r\n")
        self.assertEqual(events, [Data(chunked=True), EndOfMessage(0, 0, None)])
        self.assertEqual(codes, [250])

    def test_the_next_message(self) -> None:
        """The transaction is over with LAST; the next needs a MAIL of its own."""
        _, codes = self.talk(
            bdat(b"a\r\n", last=True) + bdat(b"QUIT\r\n", last=True) + BEGIN[8:] + bdat(b"b\r\n", True)
        )
        self.assertEqual(codes, [250, 503, 250, 250, 250])

    def test_line_ends_are_refused_as_by_data(self) -> None:
        """Spec §26.3. Here nobody can mistake the end, so that the connection goes on."""
        for ending in ENDINGS:
            if ending == b"\r\n.\r\n":
                continue
            with self.subTest(ending=ending):
                for step in (1, 1000):
                    events, codes = self.talk(bdat(b"a" + ending + SMUGGLED, last=True) + b"NOOP\r\n", step)
                    self.assertEqual(codes, [554, 250])
                    self.assertNotIn(b"evil", stored(events))
                    self.assertFalse(any(isinstance(event, Mail) for event in events))

    def test_a_cr_at_the_end(self) -> None:
        for said in (
            bdat(b"a\r", last=True),
            bdat(b"a\r") + bdat(b"b\r\n", last=True),
            bdat(b"\r") + b"BDAT 0 LAST\r\n",
        ):
            _, codes = self.talk(said)
            self.assertEqual(codes[-1] // 100, 5, said)

    def test_octets_of_a_message_that_was_refused(self) -> None:
        """RFC 3030 §2: a refused chunk is read all the same, and so are those behind it, which get 503."""
        command = b"MAIL FROM:<evil@x>\r\n"
        events, codes = self.talk(
            bdat(b"a\nb") + bdat(command) + bdat(command, last=True) + b"NOOP\r\n" + BEGIN[8:], step=7
        )
        self.assertEqual(codes, [554, 503, 503, 250, 250, 250])
        self.assertEqual([event.address for event in events if isinstance(event, Mail)], [b"a@b"])

    def test_out_of_place(self) -> None:
        engine = SMTPServer(b"mx.test")
        engine.offer_chunking = True
        engine.receive(
            b"EHLO c\r\n" + bdat(b"QUIT\r\n", last=True) + b"MAIL FROM:<a@b>\r\n" + bdat(b"QUIT\r\n") + b"NOOP\r\n"
        )
        drive(engine)
        replies = engine.data_to_send().split(b"\r\n")[-5:]
        self.assertEqual(
            replies,
            [b"503 5.5.1 MAIL first", b"250 2.1.0 ok", b"503 5.5.1 RCPT first", b"250 2.0.0 ok", b""],
        )

    def test_where_it_is_not_offered(self) -> None:
        """Whoever sends it all the same does not have the message taken for commands."""
        engine = SMTPServer(b"mx.test")
        engine.receive(BEGIN + bdat(b"MAIL FROM:<evil@x>\r\n") + b"NOOP\r\n")
        events = drive(engine)
        self.assertNotIn(b"CHUNKING", output := engine.data_to_send())
        self.assertTrue(output.endswith(b"502 5.5.1 unimplemented\r\n250 2.0.0 ok\r\n"))
        self.assertFalse(any(isinstance(event, Data) for event in events))

    def test_refused_before_it_comes(self) -> None:
        """The policies' no to DATA comes behind the octets."""
        for step in (1, 1000):
            events, codes = self.talk(
                bdat(b"QUIT\r\n") + bdat(b"QUIT\r\n", last=True) + b"NOOP\r\n",
                step,
                answer=lambda event: Reply(554, b"no") if isinstance(event, Data) else None,
            )
            self.assertEqual((events, codes), ([Data(chunked=True)], [554, 503, 250]))

    def test_mixed_with_data(self) -> None:
        """RFC 3030 §2: the two cannot be mixed, nor can another transaction begin; RSET helps."""
        said = (
            bdat(b"a\r\n")
            + b"DATA\r\nMAIL FROM:<x@y>\r\nRCPT TO:<c@d>\r\nSTARTTLS\r\nAUTH PLAIN x\r\nNOOP\r\nRSET\r\nDATA\r\n"
        )
        events, codes = self.talk(said)
        self.assertEqual(codes, [250, 503, 503, 503, 503, 503, 250, 250, 503])
        self.assertEqual(events, [Data(chunked=True), Chunk(b"a\n"), Reset()])
        self.assertFalse(self.engine.in_message)

    def test_a_greeting_ends_the_message(self) -> None:
        _, codes = self.talk(bdat(b"a\r\n") + b"HELO c\r\n" + bdat(b"b\r\n", last=True))
        self.assertEqual(codes, [250, 250, 503])

    def test_malformed(self) -> None:
        """Nobody knows how many octets follow: nothing that does is looked at."""
        for argument in (b"", b"x", b"-1", b"+1", b"1x", b"1 LASTLY", b"1 LAST 1", b"1" * 21, b"0x10", b" LAST"):
            with self.subTest(argument=argument):
                _, codes = self.talk(b"BDAT " + argument + b"\r\nNOOP\r\n")
                self.assertEqual(codes, [501])
                self.assertTrue(self.engine.closed)

    def test_too_big(self) -> None:
        """552 at the chunk that is too much (RFC 1870 §6.3): what is stored stays bounded."""
        engine = SMTPServer(b"mx.test")
        engine.databytes = 5
        events, codes = self.talk(
            bdat(b"1234\r\n") + bdat(b"5\r\n") + bdat(b"6\r\n", last=True) + b"NOOP\r\n", 4, engine
        )
        self.assertEqual(codes, [250, 552, 503, 250])
        self.assertLessEqual(len(stored(events)), 5)

    def test_hops(self) -> None:
        """Spec §28.10, over chunks."""
        for hops, code in ((99, 250), (100, 554)):
            _, codes = self.talk(bdat(b"Received: x\r\n" * 50) + bdat(b"Received: x\r\n" * (hops - 50), last=True), 7)
            self.assertEqual(codes, [250, code])

    def test_errors_are_counted(self) -> None:
        engine = SMTPServer(b"mx.test", limits=Limits(errors=3))
        _, codes = self.talk(b"RSET\r\n" + bdat(b"x") * 5, engine=engine)
        self.assertEqual(codes, [250, 503, 503, 421])

    def test_many_small_chunks_cost_no_more_than_they_have(self) -> None:
        """What is unread is not copied for each."""
        _, codes = self.talk(bdat(b"x") * 20000 + b"BDAT 0 LAST\r\n")
        self.assertEqual(len(codes), 20001)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from((b"a", b"\r", b"\n", b"\r\n", b".", b"\0", b"\r\n.\r\n", b"QUIT\r\n")), st.booleans()
            )
        ),
        st.integers(1, 20),
    )
    def test_any_message_in_any_chunks(self, pieces: list[tuple[bytes, bool]], step: int) -> None:
        """It is stored as by DATA, or refused; then the next command is heard."""
        chunks = [b""]
        for text, cut in pieces:
            chunks[-1] += text
            if cut:
                chunks.append(b"")
        message = b"".join(chunks)
        said = b"".join(map(bdat, chunks[:-1])) + bdat(chunks[-1], last=True) + b"RSET\r\n"
        events, codes = self.talk(said, step, SMTPServer(b"mx.test", limits=Limits(errors=1000)))
        broken = message.replace(b"\r\n", b"")
        good = not any(octet in broken for octet in b"\r\n\0")
        self.assertEqual(codes[-1], 250)
        self.assertEqual(codes[-2] == 250, good)
        if good:
            self.assertEqual(stored(events), message.replace(b"\r\n", b"\n"))
        self.assertEqual(events[-1], Reset())

    def talk_binary(self, said: bytes, step: int = 1 << 20, databytes: int = 0) -> tuple[bytes, list[int]]:
        """The same for a message of BODY=BINARYMIME: what is stored of it, and the codes behind RCPT."""
        engine = SMTPServer(b"mx.test")
        engine.offer_chunking = True
        engine.databytes = databytes
        engine.receive(b"EHLO c\r\nMAIL FROM:<a@b> BODY=binarymime\r\nRCPT TO:<c@d>\r\n")
        drive(engine)
        self.assertIn(b"250-BINARYMIME\r\n", engine.data_to_send())
        events: list[Event] = []
        for at in range(0, len(said), step):
            engine.receive(said[at : at + step])
            events += drive(engine)
        return stored(events), [int(line[:3]) for line in engine.data_to_send().split(b"\r\n")[:-1]]

    def test_binary(self) -> None:
        """RFC 3030 §3: the octets are kept, as base64; they are no commands, and no end of anything."""
        header = b"Content-Type: image/x\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        octets = b"\0\n.\n\r\n.\r\nRSET\r\n" + bytes(range(256)) * 10
        wanted = header.replace(b"\r", b"").replace(b"binary", b"base64") + encodebytes(octets)
        for step in (1, 11, 1000000):
            text, codes = self.talk_binary(bdat(header) + bdat(octets[:700]) + bdat(octets[700:], last=True), step)
            self.assertEqual((text, codes), (wanted, [250, 250, 250]))

    def test_binary_refused(self) -> None:
        """By DATA it cannot come; parts that call themselves lines have to be; 5.6.1 where it cannot be converted."""
        self.assertEqual(self.talk_binary(b"DATA\r\nNOOP\r\n")[1], [503, 250])
        self.assertEqual(self.talk_binary(bdat(b"Subject: x\r\n\r\na\nb", last=True))[1], [554])
        said = bdat(b"Content-Type: multipart/mixed\r\n\r\n") + bdat(b"QUIT\r\n", last=True) + b"NOOP\r\n"
        self.assertEqual(self.talk_binary(said)[1], [554, 503, 250])
        unfinished = (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        )
        self.assertEqual(self.talk_binary(bdat(unfinished) + b"BDAT 0 LAST\r\n")[1], [250, 554])

    def test_binary_too_big(self) -> None:
        """databytes is about what is stored."""
        header = b"Content-Transfer-Encoding: binary\r\n\r\n"
        size = len(header) - 2 + 1
        self.assertEqual(self.talk_binary(bdat(header + b"\0" * 54, last=True), databytes=size + 72)[1], [250])
        self.assertEqual(self.talk_binary(bdat(header + b"\0" * 57, last=True), databytes=size + 72)[1], [552])

    def test_binary_where_it_is_not_offered(self) -> None:
        for discard in (b"BINARYMIME", b"CHUNKING"):
            engine = SMTPServer(b"mx.test")
            engine.offer_chunking = True
            engine.discard = frozenset({discard})
            engine.receive(b"EHLO c\r\nMAIL FROM:<a@b> BODY=BINARYMIME\r\n")
            drive(engine)
            output = engine.data_to_send()
            self.assertNotIn(b"BINARYMIME", output)
            self.assertIn(b"\r\n501 5.5.4 ", output)

    def test_body_of_no_kind(self) -> None:
        engine = SMTPServer(b"mx.test")
        engine.offer_chunking = True
        engine.receive(b"EHLO c\r\nMAIL FROM:<a@b> BODY=9BIT\r\n")
        drive(engine)
        self.assertIn(b"\r\n501 5.5.4 BODY is none that EHLO has announced\r\n", engine.data_to_send())

    @given(st.lists(st.sampled_from((b"a", b"\r\n", b".", b" ")), min_size=1).map(b"".join))
    def test_as_by_data(self, message: bytes) -> None:
        """What is stored is the same by either way."""
        message += b"\r\n"
        by_data, by_bdat = BodyDecoder(), ChunkDecoder()
        wire = b"".join(b"." + line if line.startswith(b".") else line for line in message.splitlines(True)) + b".\r\n"
        self.assertEqual(by_data.feed(wire)[0], by_bdat.feed(message))
        self.assertEqual(by_data.size, by_bdat.size)
