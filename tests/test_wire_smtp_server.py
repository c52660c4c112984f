"""The SMTP server engine: transcripts, bodies, bounds, and that it never stumbles (spec/qmail.md §2.10, §16, §28)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.sasl_mechanisms import Claimed
from qtwist.wire.smtp_body import BodyDecoder, HopCounter
from qtwist.wire.smtp_events import Chunk, Connect, Data, EndOfMessage, Event, Helo, Mail, Quit, Rcpt, Reset, StartTLS
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.smtp_server import Limits, SMTPServer

QUESTIONS = (Connect, Helo, StartTLS, Mail, Rcpt, Data, EndOfMessage)


def drive(engine: SMTPServer, answer: Callable[[Event], Reply | None] = lambda event: None) -> list[Event]:
    """Take all events there are, answering each question by `answer`: None says yes."""
    events: list[Event] = []
    while (event := engine.next_event()) is not None:
        events.append(event)
        if isinstance(event, (Claimed, *QUESTIONS)):
            reply = answer(event)
            if isinstance(event, EndOfMessage) and event.refusal:
                reply = event.refusal
            if reply is None:
                engine.accept()
            else:
                engine.reply(reply)
    return events


def joined(events: Iterable[Event]) -> list[Event]:
    """Neighbouring chunks made one."""
    result: list[Event] = []
    for event in events:
        if result and isinstance(event, Chunk) and isinstance(result[-1], Chunk):
            result[-1] = Chunk(result[-1].data + event.data)
        else:
            result.append(event)
    return result


def stored(events: Iterable[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Chunk))


class Transcript(SynchronousTestCase):
    def play(
        self,
        script: str,
        engine: SMTPServer | None = None,
        answer: Callable[[Event], Reply | None] = lambda event: None,
    ) -> list[Event]:
        """Send each ``C:`` line with CRLF; the ``S:`` lines up to the next ``C:`` are all that may come back.

        In both, Python's escapes stand for odd bytes. ``S: 5xx`` demands the code alone when a line ends in ``...``.
        """
        engine = engine or SMTPServer(b"mx.test")
        events = drive(engine, answer)
        got = engine.data_to_send()
        expected: list[bytes] = []
        sent = "the connection"
        for line in [*script.strip().splitlines(), "C: "]:
            side, text = line.strip().split(": ", 1) if ": " in line.strip() else (line.strip()[:1], "")
            content = text.encode("latin-1").decode("unicode_escape").encode("latin-1")
            if side == "S":
                expected.append(content)
                continue
            lines = got.split(b"\r\n")
            self.assertEqual(lines.pop(), b"")
            self.assertEqual(len(lines), len(expected), f"after {sent}: {lines} instead of {expected}")
            for one, wanted in zip(lines, expected, strict=True):
                if wanted.endswith(b"..."):
                    self.assertTrue(one.startswith(wanted[:-3]), f"after {sent}: {one!r}")
                else:
                    self.assertEqual(one, wanted, f"after {sent}")
            expected, sent = [], text
            engine.receive(content + b"\r\n")
            events += drive(engine, answer)
            got = engine.data_to_send()
        return events


class Dialogue(Transcript):
    def test_a_message(self) -> None:
        """Spec §16.2 and the common course of RFC 5321 appendix D.1."""
        events = self.play(
            """
            S: 220 mx.test ESMTP
            C: HELO cli.test
            S: 250 mx.test
            C: MAIL FROM:<joe@cli.test>
            S: 250 ok
            C: RCPT TO:<ann@mx.test>
            S: 250 ok
            C: RCPT TO:<bob@mx.test>
            S: 250 ok
            C: DATA
            S: 354 go ahead
            C: Subject: x
            C:
            C: ..dot
            C: .
            S: 250 ok
            C: QUIT
            S: 221 mx.test
            """
        )
        body = b"Subject: x\n\n.dot\n"
        self.assertEqual(
            joined(events),
            [
                Connect(),
                Helo(b"cli.test", False),
                Mail(b"joe@cli.test", {}),
                Rcpt(b"ann@mx.test", {}),
                Rcpt(b"bob@mx.test", {}),
                Data(),
                Chunk(body),
                EndOfMessage(len(body), 0, None),
                Quit(),
            ],
        )

    def test_ehlo_lists_extensions(self) -> None:
        """RFC 2920, 6152, 1870: SIZE with the limit where there is one."""
        engine = SMTPServer(b"mx.test")
        engine.databytes = 1000
        self.play(
            """
            S: 220 mx.test ESMTP
            C: EHLO x
            S: 250-mx.test
            S: 250-PIPELINING
            S: 250-8BITMIME
            S: 250-SMTPUTF8
            S: 250-ENHANCEDSTATUSCODES
            S: 250-DSN
            S: 250-LIMITS RCPTMAX=10000
            S: 250 SIZE 1000
            C: MAIL FROM:<a@b> SIZE=1001
            S: 552 ...
            C: RCPT TO:<a@b>
            S: 503 5.5.1 MAIL first
            C: MAIL FROM:<a@b> SIZE=1000 body=8bitmime
            S: 250 2.1.0 ok
            C: QUIT
            S: 221 2.0.0 mx.test
            """,
            engine,
        )

    def test_how_many_recipients(self) -> None:
        """RFC 9422: LIMITS tells of it."""
        engine = SMTPServer(b"mx.test", limits=Limits(recipients=7))
        engine.receive(b"EHLO c\r\n")
        drive(engine)
        self.assertIn(b"\r\n250-LIMITS RCPTMAX=7\r\n", engine.data_to_send())

    def test_what_the_engine_answers_itself(self) -> None:
        events = self.play(
            """
            S: 220 mx.test ESMTP
            C: noop
            S: 250 ok
            C: NoOp with words
            S: 250 ok
            C: VRFY joe
            S: 252 ...
            C: HELP
            S: 214 ...
            C: RSET
            S: 250 flushed
            C: EXPN list
            S: 502 unimplemented (#5.5.1)
            C: STARTTLS
            S: 502 unimplemented (#5.5.1)
            C:
            S: 502 unimplemented (#5.5.1)
            C: NOOP\\t
            S: 502 unimplemented (#5.5.1)
            C: NOOP\\0
            S: 500 ...
            C: MAIL
            S: 501 ...
            C: MAIL foo
            S: 501 ...
            """
        )
        self.assertEqual(events, [Connect(), Reset()])

    def test_order_of_commands(self) -> None:
        """Spec §16.2: the 503s leave the transaction alone, RSET, HELO, EHLO and DATA end it."""
        self.play(
            """
            S: 220 mx.test ESMTP
            C: RCPT TO:<a@b>
            S: 503 MAIL first (#5.5.1)
            C: DATA
            S: 503 MAIL first (#5.5.1)
            C: MAIL FROM:<>
            S: 250 ok
            C: DATA
            S: 503 RCPT first (#5.5.1)
            C: RCPT TO:<a@b>
            S: 250 ok
            C: RSET
            S: 250 flushed
            C: RCPT TO:<a@b>
            S: 503 MAIL first (#5.5.1)
            C: MAIL FROM:<>
            S: 250 ok
            C: HELO again
            S: 250 mx.test
            C: RCPT TO:<a@b>
            S: 503 MAIL first (#5.5.1)
            C: MAIL FROM:<>
            S: 250 ok
            C: RCPT TO:<a@b>
            S: 250 ok
            C: MAIL FROM:<again@b>
            S: 250 ok
            C: DATA
            S: 503 RCPT first (#5.5.1)
            C: RCPT TO:<a@b>
            S: 250 ok
            C: DATA
            S: 354 go ahead
            C: .
            S: 250 ok
            C: DATA
            S: 503 MAIL first (#5.5.1)
            """
        )

    def test_refused_steps_do_not_count(self) -> None:
        def answer(event: Event) -> Reply | None:
            if isinstance(event, Mail | Rcpt) and b"bad" in event.address:
                return Reply(550, b"no\nnot ever")
            if isinstance(event, Helo | Data):
                return Reply(450, b"later")
            return None

        self.play(
            """
            S: 220 mx.test ESMTP
            C: HELO x
            S: 450 later
            C: MAIL FROM:<bad>
            S: 550-no
            S: 550 not ever
            C: RCPT TO:<a@b>
            S: 503 MAIL first (#5.5.1)
            C: MAIL FROM:<good>
            S: 250 ok
            C: RCPT TO:<bad>
            S: 550-no
            S: 550 not ever
            C: DATA
            S: 503 RCPT first (#5.5.1)
            C: RCPT TO:<good>
            S: 250 ok
            C: DATA
            S: 450 later
            C: RCPT TO:<good>
            S: 503 MAIL first (#5.5.1)
            """,
            answer=answer,
        )

    def test_addresses(self) -> None:
        """Spec §16.3: lax reading, source routes, quotes."""
        long = "a" * 899
        events = self.play(
            f"""
            S: 220 mx.test ESMTP
            C: MAIL FROM: joe@x.test
            S: 250 ok
            C: RCPT TO:<@a,@b:ann@x.test>
            S: 250 ok
            C: RCPT TO:<"a b\\\\"c"@x.test>
            S: 250 ok
            C: RCPT TO:<caf\\xe9@x.test>
            S: 250 ok
            C: RCPT ann@x.test>
            S: 501 ...
            C: RCPT <bare@x.test
            S: 250 ok
            C: RCPT TO:<{long}>
            S: 250 ok
            C: RCPT TO:<{long}b>
            S: 555 ...
            C: MAIL FROM:<{long}b>
            S: 555 ...
            C: RCPT TO:<>
            S: 501 ...
            C: RCPT TO:<a\\rb@x>
            S: 501 ...
            """
        )
        self.assertEqual(
            [event.address for event in events if isinstance(event, Mail | Rcpt)],
            [b"joe@x.test", b"ann@x.test", b'a b"c@x.test', b"caf\xe9@x.test", b"bare@x.test", long.encode()],
        )

    def test_parameters(self) -> None:
        events = self.play(
            """
            S: 220 mx.test ESMTP
            C: MAIL FROM:<a@b> SIZE=ten
            S: 501 ...
            C: MAIL FROM:<a@b> SIZE=
            S: 501 ...
            C: MAIL FROM:<a@b> SIZE=123456789012345678901
            S: 501 ...
            C: MAIL FROM:<a@b> BODY=BINARYMIME
            S: 501 ...
            C: MAIL FROM:<a@b> SIZE=1 size=2
            S: 501 ...
            C: MAIL FROM:<a@b> FOO=bar
            S: 555 ...
            C: MAIL FROM:<a@b> AUTH=<>
            S: 555 ...
            C: MAIL FROM:<a@b>  SIZE=12  BODY=7bit
            S: 250 ok
            C: RCPT TO:<a@b> RET=FULL
            S: 555 ...
            """
        )
        self.assertEqual(events[1:], [Mail(b"a@b", {b"SIZE": b"12", b"BODY": b"7bit"})])

    def test_localiphost(self) -> None:
        """Spec §16.3: the address is rewritten before its length is looked at."""
        engine = SMTPServer(b"mx.test", rewrite=lambda address: address.replace(b"[127.0.0.1]", b"h" * 900))
        self.play("S: 220 ...\nC: MAIL FROM:<a@[127.0.0.1]>\nS: 555 ...", engine)

    def test_a_refused_connection_ends(self) -> None:
        engine = SMTPServer(b"mx.test")
        engine.receive(b"EHLO early\r\n")
        events = drive(engine, lambda event: Reply(554, b"go away"))
        self.assertEqual(events, [Connect()])
        self.assertEqual(engine.data_to_send(), b"554 go away\r\n")
        self.assertTrue(engine.closed)

    def test_421_ends_the_connection(self) -> None:
        engine = SMTPServer(b"mx.test")
        engine.receive(b"MAIL FROM:<a@b>\r\nNOOP\r\n")
        drive(engine, lambda event: Reply(421, b"bye") if isinstance(event, Mail) else None)
        self.assertEqual(engine.data_to_send(), b"220 mx.test ESMTP\r\n421 bye\r\n")
        self.assertTrue(engine.closed)

    def test_answers_wait_for_their_turn(self) -> None:
        """Issue 2 item 3: in order under pipelining, even when an answer comes late; nothing is looked at before."""
        engine = SMTPServer(b"mx.test")
        engine.receive(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nNOOP\r\nQUIT\r\n")
        self.assertEqual(engine.next_event(), Connect())
        self.assertIsNone(engine.next_event())
        self.assertEqual(engine.data_to_send(), b"")
        engine.accept()
        self.assertEqual(engine.next_event(), Mail(b"a@b", {}))
        self.assertIsNone(engine.next_event())
        engine.receive(b"NOOP\r\n")
        self.assertIsNone(engine.next_event())
        self.assertEqual(engine.data_to_send(), b"220 mx.test ESMTP\r\n")
        engine.accept(Reply(251, b"why not"))
        self.assertEqual(engine.next_event(), Rcpt(b"c@d", {}))
        self.assertEqual(engine.data_to_send(), b"251 why not\r\n")
        engine.reply(Reply(450, b"later"))
        self.assertEqual(engine.next_event(), Quit())
        self.assertEqual(engine.data_to_send(), b"450 later\r\n250 ok\r\n221 mx.test\r\n")
        self.assertTrue(engine.closed)
        self.assertIsNone(engine.next_event())

    def test_misuse(self) -> None:
        engine = SMTPServer(b"mx.test")
        self.assertRaises(RuntimeError, engine.accept)
        drive(engine)
        self.assertRaises(RuntimeError, engine.reply, Reply(250, b"ok"))
        engine.receive(b"MAIL FROM:<a>\r\nRCPT TO:<a>\r\nDATA\r\n")
        for _ in range(2):
            engine.next_event()
            engine.accept()
        self.assertEqual(engine.next_event(), Data())
        self.assertRaises(ValueError, engine.reply, Reply(250, b"ok"))
        self.assertRaises(ValueError, Reply, 199, b"")
        self.assertRaises(ValueError, Reply, 600, b"")

    def test_no_text_forges_a_reply(self) -> None:
        self.assertEqual(Reply(550, b"a\r\n250 ok\r\0").to_bytes(), b"550-a\r\n550 250 ok\r\n")

    def test_lines_may_end_in_lf(self) -> None:
        """Spec §2.10."""
        engine = SMTPServer(b"mx.test")
        engine.receive(b"NOOP\nNOOP\r\nQUIT\n")
        drive(engine)
        self.assertEqual(engine.data_to_send(), b"220 mx.test ESMTP\r\n250 ok\r\n250 ok\r\n221 mx.test\r\n")


class Bounds(SynchronousTestCase):
    def test_long_lines(self) -> None:
        """Spec §26.1: 2048 octets are a command, one more is answered 500 and skipped up to its LF."""
        for size, reply in ((2048, b"250 ok\r\n"), (2049, b"500 ")):
            line = b"NOOP " + b"x" * (size - 6) + b"\r\nNOOP\r\n"
            for step in (1, 100, 5000):
                engine = SMTPServer(b"mx.test")
                drive(engine)
                engine.data_to_send()
                for at in range(0, len(line), step):
                    engine.receive(line[at : at + step])
                    drive(engine)
                output = engine.data_to_send()
                self.assertTrue(output.startswith(reply), output)
                self.assertTrue(output.endswith(b"\r\n250 ok\r\n"), output)
                self.assertEqual(output.count(b"\r\n"), 2)

    def test_a_line_without_end(self) -> None:
        """Nothing of it is kept, and at 64 KiB the connection ends: in small pieces, or all at once."""
        for pieces in ([b"x" * 1000] * 66, [b"x" * 66000], [b"x" * 66000 + b"\r\n"]):
            engine = SMTPServer(b"mx.test")
            drive(engine)
            engine.data_to_send()
            for piece in pieces:
                self.assertFalse(engine.closed)
                engine.receive(piece)
                drive(engine)
                self.assertTrue(engine.wants_input)
            self.assertTrue(engine.closed)
            self.assertTrue(engine.data_to_send().startswith(b"421 "))

    def test_unread_input(self) -> None:
        engine = SMTPServer(b"mx.test")
        engine.next_event()
        engine.receive(b"NOOP\r\n" * 10000)
        self.assertTrue(engine.wants_input)
        engine.receive(b"NOOP\r\n" * 1000)
        self.assertFalse(engine.wants_input)
        engine.accept()
        drive(engine)
        self.assertTrue(engine.wants_input)
        self.assertEqual(engine.data_to_send().count(b"250 ok\r\n"), 11000)

    def test_recipients(self) -> None:
        """452 for too many (RFC 5321 section 4.5.3.1.10); those taken stay, refused ones do not count."""
        engine = SMTPServer(b"mx.test", limits=Limits(recipients=2))
        engine.receive(b"MAIL FROM:<>\r\nRCPT TO:<no>\r\n" + b"RCPT TO:<yes>\r\n" * 3 + b"DATA\r\n.\r\n")
        drive(engine, lambda e: Reply(450, b"no") if e == Rcpt(b"no", {}) else None)
        codes = [line[:3] for line in engine.data_to_send().split(b"\r\n")]
        self.assertEqual(codes, b"220 250 450 250 250 452 354 250 ".split(b" "))

    def test_errors(self) -> None:
        engine = SMTPServer(b"mx.test", limits=Limits(errors=3))
        engine.receive(
            b"MAIL FROM:<>\r\nRCPT TO:<a>\r\nFOO\r\nBAR\r\nDATA\r\n.\r\n" + b"FOO\r\nBAR\r\nNOOP\r\nFOO\r\nNOOP\r\n"
        )
        drive(engine)
        codes = [line[:3] for line in engine.data_to_send().split(b"\r\n")]
        # An accepted message makes good for the errors before.
        self.assertEqual(codes, b"220 250 250 502 502 354 250 502 502 250 421 ".split(b" "))
        self.assertTrue(engine.closed)

    def test_refusals(self) -> None:
        engine = SMTPServer(b"mx.test", limits=Limits(refusals=3))
        engine.receive(b"MAIL FROM:<>\r\n" + b"RCPT TO:<a>\r\n" * 4)
        drive(engine, lambda event: Reply(553, b"no") if isinstance(event, Rcpt) else None)
        codes = [line[:3] for line in engine.data_to_send().split(b"\r\n")]
        self.assertEqual(codes, b"220 250 553 553 421 ".split(b" "))


def automaton(data: bytes) -> tuple[bytes, int] | None:
    """The automaton of spec §16.6, byte by byte: (stored, octets used); None for a stray LF or no end."""
    out = bytearray()
    state = 1
    for used, byte in enumerate(data, 1):
        c = bytes([byte])
        if state in (0, 1, 2) and c == b"\n":
            return None
        if state == 0:
            state = 4 if c == b"\r" else 0
            out += b"" if c == b"\r" else c
        elif state == 1:
            state = {b".": 2, b"\r": 4}.get(c, 0)
            out += c if state == 0 else b""
        elif state == 2:
            state = 3 if c == b"\r" else 0
            out += c if state == 0 else b""
        elif state == 3:
            if c == b"\n":
                return bytes(out), used
            out += b".\r"
            state = 4 if c == b"\r" else 0
            out += c if state == 0 else b""
        elif c == b"\n":
            out += b"\n"
            state = 1
        else:
            out += b"\r"
            state = 4 if c == b"\r" else 0
            out += c if state == 0 else b""
    return None


def decode(decoder: BodyDecoder, pieces: Iterable[bytes]) -> tuple[bytes, bytes | None]:
    """All that is decoded, and what follows the end."""
    out = b""
    rest: bytes | None = None
    for piece in pieces:
        if rest is None:
            text, rest = decoder.feed(piece)
            out += text
        else:
            rest += piece
    return out, rest


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


SOUP = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\r\n.", b"\0", b"Received: x"]), max_size=30).map(
    b"".join
)
CLEAN = st.lists(st.sampled_from([b"\r\n", b".", b"x", b"\r\n.", b"\xff"]), max_size=30).map(b"".join)


class Body(SynchronousTestCase):
    def test_vector_9(self) -> None:
        """Spec §28.9, bare CRs allowed."""
        data = b"..dot\r\n.x\r\ncr\rcr\r\r\n.\r\r\n.\rz\r\n.\r\n"
        wanted = b".dot\nx\ncr\rcr\r\n.\r\n.\rz\n"
        self.assertEqual(decode(BodyDecoder(bare="qmail"), [data]), (wanted, b""))
        self.assertEqual(decode(BodyDecoder(bare="qmail"), [data[i : i + 1] for i in range(len(data))]), (wanted, b""))
        self.assertEqual(automaton(data), (wanted, len(data)))

    def test_databytes(self) -> None:
        """Spec §28.10: exactly databytes octets are allowed, one more is too many; the end is found all the same."""
        for body, too_big in ((b"1234\r\n.\r\nX", False), (b"12345\r\n.\r\nX", True), (b"1\r\n" * 9 + b".\r\nX", True)):
            for pieces in ([body], [body[i : i + 1] for i in range(len(body))]):
                decoder = BodyDecoder(limit=5)
                out, rest = decode(decoder, pieces)
                self.assertEqual((decoder.too_big, rest, decoder.size), (too_big, b"X", len(out)))

    @settings(max_examples=300, deadline=None)
    @given(SOUP, st.lists(st.integers(0, 200)))
    def test_qmails_automaton(self, data: bytes, places: list[int]) -> None:
        """With bare CRs allowed, the same as §16.6 has it, byte for byte, whatever the pieces."""
        data += b"\r\n.\r\nNOOP\r\n"
        decoder = BodyDecoder(bare="qmail")
        out, rest = decode(decoder, cut(data, places))
        wanted = automaton(data)
        self.assertEqual(decoder.refused, wanted is None)
        if wanted is not None:
            self.assertEqual((out, rest), (wanted[0], data[wanted[1] :]))
            self.assertEqual(decoder.size, len(out))

    @settings(max_examples=300, deadline=None)
    @given(SOUP, st.lists(st.integers(0, 200)))
    def test_refusal_does_not_depend_on_pieces(self, data: bytes, places: list[int]) -> None:
        data += b"\r\n.\r\nNOOP\r\n"
        wanted = automaton(data)
        message = data if wanted is None else data[: wanted[1]]
        bad = wanted is None or b"\0" in message or b"\r" in message.replace(b"\r\n", b"")
        decoder = BodyDecoder()
        out, rest = decode(decoder, cut(data, places))
        self.assertEqual(decoder.refused, bad)
        self.assertIsNotNone(rest)
        if wanted is not None and not bad:
            self.assertEqual((out, rest), (wanted[0], data[wanted[1] :]))

    @given(CLEAN, st.integers(1, 7))
    def test_little_is_held_back(self, data: bytes, step: int) -> None:
        """At most four octets lag behind, so that a body streams."""
        decoder = BodyDecoder()
        data = data.replace(b"\r\n.\r\n", b"")
        given_, came = 0, 0
        for at in range(0, len(data), step):
            text, rest = decoder.feed(data[at : at + step])
            if rest is not None:
                return
            given_ += len(data[at : at + step].replace(b"\r", b"").replace(b".", b""))
            came += len(text)
            self.assertGreaterEqual(came, given_ - 4)

    @given(
        st.lists(st.sampled_from([b"Received: x", b"rEceIved", b"DELIVERED-TO:", b" Received", b"x", b"receive"])),
        st.lists(st.integers(0, 200)),
    )
    def test_hops(self, lines: list[bytes], places: list[int]) -> None:
        """Spec §16.6: lines of the header that begin so, in any case; the body does not count."""
        header = b"".join(line + b"\n" for line in lines)
        wanted = sum(line.lower().startswith((b"received", b"delivered")) for line in lines)
        message = header + b"\n" + b"Received: in the body\n" * 3
        counter = HopCounter()
        for piece in cut(message, places):
            counter.feed(piece)
        self.assertEqual(counter.hops, wanted)
        self.assertFalse(counter.in_header)

    def test_hops_of_a_header_without_end(self) -> None:
        for step in (1, 3, 1000):
            counter = HopCounter()
            text = b"Received: a\nX: Received\n Received\nDelivered"
            for at in range(0, len(text), step):
                counter.feed(text[at : at + step])
            self.assertEqual(counter.hops, 2)
        counter = HopCounter()
        counter.feed(b"\nReceived: not in the header\n")
        self.assertEqual(counter.hops, 0)


START = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"


class Messages(SynchronousTestCase):
    def run_body(self, body: bytes, step: int = 1 << 20, **options: str) -> tuple[SMTPServer, list[Event], bytes]:
        engine = SMTPServer(b"mx.test", **options)
        data = START + body
        events: list[Event] = []
        for at in range(0, len(data), step):
            engine.receive(data[at : at + step])
            events += drive(engine)
        return engine, events, engine.data_to_send()

    def test_bare_bytes_are_refused_and_the_connection_ends(self) -> None:
        """Issue 2 item 3, spec §26.3: one clear reply; nothing after it is ever a command."""
        smuggled = b"MAIL FROM:<evil@x>\r\nRCPT TO:<c@d>\r\nDATA\r\nevil\r\n.\r\n"
        for end in (
            b"\n.\n",
            b"\n.\r\n",
            b"\r\n.\n",
            b"\r.\r\n",
            b"\r\n.\r",
            b"\r.\r",
            b"\r\n\0.\r\n",
            b"\n\r\n.\r\r\n",
        ):
            for step in (1, 5, 1000):
                with self.subTest(end=end, step=step):
                    engine, events, output = self.run_body(b"a" + end + smuggled, step)
                    replies = output.split(b"\r\n")[3:]
                    self.assertEqual([r[:4] for r in replies], [b"354 ", b"554 ", b""])
                    self.assertIn(b"(#5.6.0)", replies[1])
                    self.assertTrue(engine.closed)
                    self.assertEqual(sum(isinstance(e, Mail) for e in events), 1)
                    self.assertNotIn(b"evil", stored(events))

    def test_bare_cr_alone_waits_for_the_end(self) -> None:
        engine, events, _ = self.run_body(b"a\rb\r\nmore\r\n")
        self.assertFalse(any(isinstance(e, EndOfMessage) for e in events))
        engine.receive(b".\r\nNOOP\r\n")
        (end,) = drive(engine)
        assert isinstance(end, EndOfMessage) and end.refusal is not None
        self.assertEqual(engine.data_to_send().split(b"\r\n"), [end.refusal.to_bytes()[:-2], b""])

    def test_bare_cr_may_pass(self) -> None:
        engine, events, _ = self.run_body(b"a\rb\0\r\n.\r\n", bare="qmail")
        self.assertEqual(stored(events), b"a\rb\0\n")
        self.assertFalse(engine.closed)

    def test_too_big(self) -> None:
        """552 after the whole message; the connection lives, and what is stored is bounded (spec §16.2)."""
        for step in (1, 1000):
            engine = SMTPServer(b"mx.test")
            engine.databytes = 5
            data = START + b"123\r\n456\r\n.\r\n" + START + b"1234\r\n.\r\n"
            events = []
            for at in range(0, len(data), step):
                engine.receive(data[at : at + step])
                events += drive(engine)
            codes = [line[:3] for line in engine.data_to_send().split(b"\r\n")]
            self.assertEqual(codes, b"220 250 250 354 552 250 250 354 250 ".split(b" "))
            self.assertTrue(stored(events).endswith(b"1234\n"))
            self.assertLessEqual(len(stored(events)), 10)

    def test_hops(self) -> None:
        """Spec §28.10: 99 are taken, 100 are a loop; a loop is said before the size is."""
        for header, code in (
            (b"Received: x\r\n" * 99, b"250"),
            (b"Received: x\r\n" * 50 + b"DELIVERED-to: y\r\n" * 50, b"554"),
        ):
            _, _, output = self.run_body(header + b"\r\n" + b"Received: x\r\n" * 9 + b".\r\n")
            self.assertEqual(output.split(b"\r\n")[-2][:3], code)
        self.assertIn(b"(#5.4.6)", output)
        engine = SMTPServer(b"mx.test")
        engine.databytes = 1300
        engine.receive(START + b"Received: x\r\n" * 101 + b"\r\n" + b"x" * 1000 + b"\r\n.\r\n")
        drive(engine)
        self.assertIn(b"(#5.4.6)", engine.data_to_send())

    def test_an_empty_message(self) -> None:
        _, events, output = self.run_body(b".\r\n")
        self.assertEqual(events[-1], EndOfMessage(0, 0, None))
        self.assertTrue(output.endswith(b"354 go ahead\r\n250 ok\r\n"))

    def test_8_bit_clean(self) -> None:
        body = bytes(sorted(set(range(256)) - {0, 10, 13})) * 3
        _, events, _ = self.run_body(body + b"\r\n.\r\n")
        self.assertEqual(stored(events), body + b"\n")


COMMAND = st.sampled_from(
    [
        b"HELO x",
        b"EHLO x",
        b"MAIL FROM:<a@b>",
        b"MAIL FROM:<a@b> SIZE=10",
        b"RCPT TO:<c@d>",
        b"RCPT TO:",
        b"DATA",
        b"RSET",
        b"NOOP",
        b"QUI",
        b"body",
        b".",
        b"..",
        b"",
        b"Received: a",
        b"x" * 2050,
    ]
)
STREAM = st.lists(st.tuples(COMMAND, st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r"])), max_size=25).map(
    lambda lines: b"".join(command + end for command, end in lines)
)


class Invariants(SynchronousTestCase):
    def outcome(self, data: bytes, pieces: Iterable[bytes]) -> tuple[list[Event], bytes, bool]:
        engine = SMTPServer(b"mx.test", limits=Limits(recipients=2, errors=6, refusals=3))
        engine.databytes = 40
        events: list[Event] = []
        for piece in pieces:
            engine.receive(piece)
            events += drive(engine)
        # Of a refused message, how much came out before the refusal does depend on the pieces: it is thrown away.
        kept: list[Event] = []
        for event in joined(events):
            if isinstance(event, EndOfMessage) and event.refusal:
                while isinstance(kept[-1], Chunk):
                    kept.pop()
                event = EndOfMessage(0, 0, event.refusal)  # noqa: PLW2901
            kept.append(event)
        return kept, engine.data_to_send(), engine.closed

    @settings(max_examples=300, deadline=None)
    @given(STREAM, st.lists(st.integers(0, 3000)))
    def test_pieces_do_not_matter(self, data: bytes, places: list[int]) -> None:
        data += b"\r\n.\r\n"
        whole = self.outcome(data, [data])
        self.assertEqual(self.outcome(data, cut(data, places)), whole)
        self.assertEqual(self.outcome(data, [data[i : i + 1] for i in range(len(data))]), whole)

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.binary(max_size=300), STREAM, st.tuples(STREAM, st.binary()).map(b"".join)), st.data())
    def test_any_bytes_are_answered(self, data: bytes, draw: st.DataObject) -> None:
        """The invariant of the module: no exception, and only well-formed replies, whatever comes."""
        engine = SMTPServer(b"mx.test")
        engine.receive(data)
        drive(
            engine,
            lambda event: draw.draw(st.sampled_from([None, None, Reply(450, b"x")])) if event != Data() else None,
        )
        output = engine.data_to_send()
        self.assertTrue(output.endswith(b"\r\n"))
        for line in output[:-2].split(b"\r\n"):
            self.assertRegex(line, rb"^[2-5]\d\d[ -][^\r\n]*$")
