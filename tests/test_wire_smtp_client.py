"""The SMTP client engine: spec/qmail.md §15.4, §26.5, §26.7; RFC 5321, 2920, 1870, 6152."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.smtp_client import (
    MAX_LINES,
    MAX_TEXT,
    Broken,
    Event,
    Finished,
    NeedBody,
    Ready,
    RecipientResult,
    Refused,
    Reply,
    SMTPClient,
    Stage,
    TooLarge,
    Transaction,
)

JOE = b"joe@example.org"
ANN = b"ann@example.org"


def to(*recipients: bytes, size: int = 100, eight_bit: bool = False) -> Transaction:
    return Transaction(b"me@example.net", recipients, size, eight_bit)


def reply(text: bytes) -> Reply:
    return Reply(int(text[:3]), text + b"\n")


class Transcript:
    """Plays a dialogue: ``S:`` lines go in, ``C:`` lines must have come out just then, ``*`` stands for an action."""

    def __init__(self, case: SynchronousTestCase, *transactions: Transaction) -> None:
        self.case = case
        self.engine = SMTPClient(b"mx.example.net")
        self.transactions = list(transactions)
        self.events: list[Event] = []

    def play(self, text: str) -> list[Event]:
        """The events of the whole dialogue. Every C: line is looked for where it stands."""
        output = b""
        for line in filter(str.strip, text.splitlines()):
            kind, _, rest = line.strip().partition(" ")
            if kind == "C:":
                expected = rest.encode() + b"\r\n"
                output += self.engine.take_output()
                self.case.assertEqual(output[: len(expected)], expected, f"at {line.strip()!r}")
                output = output[len(expected) :]
                continue
            output += self.engine.take_output()
            self.case.assertEqual(output, b"", f"before {line.strip()!r}")
            if kind == "S:":
                self.events += self.engine.receive(rest.encode() + b"\r\n")
            elif kind == "*start":
                self.events += self.engine.start(self.transactions.pop(0))
            elif kind == "*body":
                self.engine.body(rest.encode() + b"\n")
                self.engine.end_body()
            elif kind == "*lost":
                self.events += self.engine.lost()
            else:
                raise AssertionError(line)
        self.case.assertEqual(output + self.engine.take_output(), b"")
        return self.events


class DialogueTests(SynchronousTestCase):
    PIPELINING: ClassVar[str] = """
        S: 220 mx.example.org ESMTP
        C: EHLO mx.example.net
        S: 250-mx.example.org
        S: 250 PIPELINING
        *start
        C: MAIL FROM:<me@example.net>
    """

    def play(self, text: str, *transactions: Transaction) -> list[Event]:
        self.transcript = Transcript(self, *(transactions or (to(JOE),)))
        return self.transcript.play(text)

    def test_plain(self) -> None:
        """One command at a time where PIPELINING is not offered."""
        events = self.play(
            """
            S: 220 hello
            C: EHLO mx.example.net
            S: 250 mx.example.org
            *start
            C: MAIL FROM:<me@example.net>
            S: 250 ok
            C: RCPT TO:<joe@example.org>
            S: 250 ok
            C: RCPT TO:<ann@example.org>
            S: 550 no ann
            C: DATA
            S: 354 go ahead
            *body .hello
            C: ..hello
            C: .
            S: 250 taken
            """,
            to(JOE, ANN),
        )
        self.assertEqual(
            events,
            [
                Ready(),
                RecipientResult(JOE, reply(b"250 ok")),
                RecipientResult(ANN, reply(b"550 no ann")),
                NeedBody(),
                Finished(Stage.MESSAGE, reply(b"250 taken")),
                Ready(),
            ],
        )
        self.assertTrue(self.transcript.engine.idle)

    def test_helo(self) -> None:
        """HELO follows when EHLO is refused for good; no extension is used then."""
        for refusal in ("500 what?", "502 no", "550 never"):
            events = self.play(
                f"""
                S: 220 hello
                C: EHLO mx.example.net
                S: {refusal}
                C: HELO mx.example.net
                S: 250-mx.example.org
                S: 250 PIPELINING
                *start
                C: MAIL FROM:<me@example.net>
                """,
            )
            self.assertEqual(events, [Ready()])

    def test_session_refused(self) -> None:
        """A greeting other than 220, a temporary no to EHLO, any no to HELO (§15.4)."""
        for text in ("421 busy", "554 no mail here", "250 confused"):
            events = self.play(f"S: {text}\nC: QUIT")
            self.assertEqual(events, [Refused(Stage.GREETING, reply(text.encode()))])
            self.assertTrue(self.transcript.engine.closed)
        events = self.play("S: 220 hello\nC: EHLO mx.example.net\nS: 450 later\nC: QUIT")
        self.assertEqual(events, [Refused(Stage.EHLO, reply(b"450 later"))])
        for text in ("550 go away", "251 odd"):
            events = self.play(
                f"S: 220 hello\nC: EHLO mx.example.net\nS: 500 what\nC: HELO mx.example.net\nS: {text}\nC: QUIT"
            )
            self.assertEqual(events, [Refused(Stage.HELO, reply(text.encode()))])

    def test_pipelining(self) -> None:
        """MAIL, all RCPT and DATA leave together (RFC 2920 §3.1); each reply is counted to its recipient."""
        events = self.play(
            self.PIPELINING
            + """
            C: RCPT TO:<joe@example.org>
            C: RCPT TO:<ann@example.org>
            C: DATA
            S: 250 ok
            S: 450 later
            S: 250 ok
            S: 354 go
            *body x
            C: x
            C: .
            S: 250 taken
            """,
            to(JOE, ANN),
        )
        self.assertEqual(
            events[1:3], [RecipientResult(JOE, reply(b"450 later")), RecipientResult(ANN, reply(b"250 ok"))]
        )
        self.assertEqual(events[-2:], [Finished(Stage.MESSAGE, reply(b"250 taken")), Ready()])

    def test_pipelining_mail_refused(self) -> None:
        """The replies to what was sent behind a refused MAIL are read and mean nothing."""
        events = self.play(
            self.PIPELINING
            + """
            C: RCPT TO:<joe@example.org>
            C: DATA
            S: 550 not you
            S: 503 MAIL first
            S: 503 RCPT first
            C: RSET
            S: 250 ok
            """
        )
        self.assertEqual(events[1:], [Finished(Stage.MAIL, reply(b"550 not you")), Ready()])

    def test_pipelining_no_recipient(self) -> None:
        """All RCPT refused, DATA accepted all the same: a lone dot ends it (RFC 2920 §3.1)."""
        events = self.play(
            self.PIPELINING
            + """
            C: RCPT TO:<joe@example.org>
            C: DATA
            S: 250 ok
            S: 550 no joe
            S: 354 go
            C: .
            S: 554 no recipients
            C: RSET
            S: 250 ok
            """
        )
        self.assertEqual(
            events[1:],
            [RecipientResult(JOE, reply(b"550 no joe")), Finished(Stage.RCPT, reply(b"550 no joe")), Ready()],
        )

    def test_no_recipient(self) -> None:
        """Without PIPELINING, DATA is not even sent."""
        events = self.play(
            """
            S: 220 hello
            C: EHLO mx.example.net
            S: 250 ok
            *start
            C: MAIL FROM:<me@example.net>
            S: 250 ok
            C: RCPT TO:<joe@example.org>
            S: 452 full
            C: RSET
            S: 250 ok
            """
        )
        self.assertEqual(events[2], Finished(Stage.RCPT, reply(b"452 full")))

    def test_data_refused(self) -> None:
        for text in ("451 later", "554 never"):
            events = self.play(
                self.PIPELINING
                + f"""
                C: RCPT TO:<joe@example.org>
                C: DATA
                S: 250 ok
                S: 250 ok
                S: {text}
                C: RSET
                S: 250 ok
                """
            )
            self.assertEqual(events[2:], [Finished(Stage.DATA, reply(text.encode())), Ready()])

    def test_extensions(self) -> None:
        """SIZE= and BODY= are sent where they are offered, in whatever case (RFC 1870, RFC 6152)."""
        self.play(
            """
            S: 220 hello
            C: EHLO mx.example.net
            S: 250-mx.example.org
            S: 250-size 1000
            S: 250 8bitmime
            *start
            C: MAIL FROM:<me@example.net> SIZE=100 BODY=8BITMIME
            """,
            to(JOE, eight_bit=True),
        )

    def test_seven_bit(self) -> None:
        """BODY is for 8-bit content only; 8-bit content goes to a server without 8BITMIME as it is (§26.7)."""
        greeting = "S: 220 hello\nC: EHLO mx.example.net\nS: 250-mx\nS: 250 %s\n*start\nC: MAIL FROM:<me@example.net>"
        self.play(greeting % "8BITMIME", to(JOE))
        self.play(greeting % "HELP", to(JOE, eight_bit=True))

    def test_too_large(self) -> None:
        """A message over the advertised limit is refused here; one of just that size is not (RFC 1870 §6.1)."""
        hello = "S: 220 hello\nC: EHLO mx.example.net\nS: 250-mx\nS: 250 SIZE 1000\n*start"
        self.assertEqual(self.play(hello, to(JOE, size=1001)), [Ready(), TooLarge(1000), Ready()])
        self.play(hello + "\nC: MAIL FROM:<me@example.net> SIZE=1000", to(JOE, size=1000))

    def test_no_size_limit(self) -> None:
        """SIZE without a number, or with 0, tells no limit (RFC 1870 §4); neither does nonsense."""
        for parameter in ("", " 0", " lots", " " + "9" * 5000):
            self.play(
                f"S: 220 x\nC: EHLO mx.example.net\nS: 250-mx\nS: 250-SIZE{parameter[:1000]}\nS: 250 OK\n*start\n"
                "C: MAIL FROM:<me@example.net> SIZE=99999999",
                to(JOE, size=99999999),
            )

    def test_two_transactions(self) -> None:
        body = "*body x\nC: x\nC: .\n"
        one = "C: MAIL FROM:<me@example.net>\nC: RCPT TO:<%s>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\n" + body
        events = self.play(
            "S: 220 x\nC: EHLO mx.example.net\nS: 250-x\nS: 250 PIPELINING\n*start\n"
            + one % "joe@example.org"
            + "S: 550 spam\n*start\n"
            + one % "ann@example.org"
            + "S: 250 fine",
            to(JOE),
            to(ANN),
        )
        finished = [event for event in events if isinstance(event, (Finished, RecipientResult))]
        self.assertEqual(
            finished,
            [
                RecipientResult(JOE, reply(b"250 ok")),
                Finished(Stage.MESSAGE, reply(b"550 spam")),
                RecipientResult(ANN, reply(b"250 ok")),
                Finished(Stage.MESSAGE, reply(b"250 fine")),
            ],
        )

    def test_lost_after_the_dot(self) -> None:
        """The server may have taken the message: that must be told (§15.4)."""
        events = self.play(
            self.PIPELINING
            + "C: RCPT TO:<joe@example.org>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\n*body x\nC: x\nC: .\n*lost"
        )
        self.assertEqual(events[-1], Broken(Stage.MESSAGE, dot_sent=True))

    def test_lost_before(self) -> None:
        """At every step before the dot, there is no doubt; the stage tells what was waited for."""
        hello = "S: 220 x\nC: EHLO mx.example.net\nS: 250 x\n*start\nC: MAIL FROM:<me@example.net>\n"
        steps = (
            ("*lost", Stage.GREETING),
            ("S: 220 x\nC: EHLO mx.example.net\n*lost", Stage.EHLO),
            ("S: 220 x\nC: EHLO mx.example.net\nS: 500 x\nC: HELO mx.example.net\n*lost", Stage.HELO),
            (hello + "*lost", Stage.MAIL),
            (hello + "S: 250 ok\nC: RCPT TO:<joe@example.org>\n*lost", Stage.RCPT),
            (hello + "S: 250 ok\nC: RCPT TO:<joe@example.org>\nS: 250 ok\nC: DATA\n*lost", Stage.DATA),
        )
        for text, stage in steps:
            self.assertEqual(self.play(text)[-1], Broken(stage, dot_sent=False))

    def test_lost_with_a_verdict(self) -> None:
        """What the server said of the only recipient stays true when the connection dies before its last reply."""
        events = self.play(self.PIPELINING + "C: RCPT TO:<joe@example.org>\nC: DATA\nS: 250 ok\nS: 550 no joe\n*lost")
        self.assertEqual(events[-1], Finished(Stage.RCPT, reply(b"550 no joe")))

    def test_lost_while_idle(self) -> None:
        """Nobody waits for anything then."""
        events = self.play("S: 220 x\nC: EHLO mx.example.net\nS: 250 x\n*lost")
        self.assertEqual(events, [Ready()])
        self.assertTrue(self.transcript.engine.closed)

    def test_going_away(self) -> None:
        """421 answers for everything that was sent: no further reply comes (RFC 5321 §3.8)."""
        sent = self.PIPELINING + "C: RCPT TO:<joe@example.org>\nC: RCPT TO:<ann@example.org>\nC: DATA\n"
        bye = reply(b"421 bye")
        events = self.play(sent + "S: 421 bye", to(JOE, ANN))
        self.assertEqual(events[1:], [Finished(Stage.MAIL, bye)])
        events = self.play(sent + "S: 250 ok\nS: 421 bye", to(JOE, ANN))
        self.assertEqual(events[1:], [RecipientResult(JOE, bye), RecipientResult(ANN, bye), Finished(Stage.RCPT, bye)])
        self.assertTrue(self.transcript.engine.closed)
        events = self.play(sent + "S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 421 bye", to(JOE, ANN))
        self.assertEqual(events[-1], Finished(Stage.DATA, bye))

    def test_early_end_of_a_message(self) -> None:
        """A server may refuse a message before its end; then the connection is over."""
        events = self.play(
            self.PIPELINING + "C: RCPT TO:<joe@example.org>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nS: 552 too much"
        )
        self.assertEqual(events[-1], Finished(Stage.MESSAGE, reply(b"552 too much")))
        self.assertTrue(self.transcript.engine.closed)

    def test_early_success(self) -> None:
        """Nothing is taken as success before the dot was sent."""
        events = self.play(
            self.PIPELINING + "C: RCPT TO:<joe@example.org>\nC: DATA\nS: 250 ok\nS: 250 ok\nS: 354 go\nS: 250 taken"
        )
        self.assertEqual(events[-1], Broken(Stage.MESSAGE, dot_sent=False, nonsense=b"250 taken"))

    def test_wrong_class(self) -> None:
        """3xx where 2xx is due, 2xx where 354 is: no success, and no failure for good (§15.4)."""
        hello = "S: 220 x\nC: EHLO mx.example.net\nS: 250 x\n*start\nC: MAIL FROM:<me@example.net>\n"
        rcpt = hello + "S: 250 ok\nC: RCPT TO:<joe@example.org>\n"
        data = rcpt + "S: 251 ok\nC: DATA\n"
        steps = (
            (hello, "354 odd", Stage.MAIL),
            (rcpt, "354 odd", Stage.RCPT),
            (data, "250 odd", Stage.DATA),
            (data, "334 odd", Stage.DATA),
            (data + "S: 354 go\n*body x\nC: x\nC: .\n", "354 odd", Stage.MESSAGE),
        )
        for text, odd, stage in steps:
            event = self.play(text + f"S: {odd}")[-1]
            assert isinstance(event, Broken)
            self.assertEqual((event.nonsense, event.dot_sent), (odd.encode(), stage is Stage.MESSAGE))

    def test_quit(self) -> None:
        events = self.play("S: 220 x\nC: EHLO mx.example.net\nS: 250 x")
        engine = self.transcript.engine
        engine.quit()
        self.assertEqual(engine.take_output(), b"QUIT\r\n")
        self.assertEqual(engine.receive(b"221 bye\r\n"), [])
        self.assertTrue(engine.closed)
        self.assertEqual(events, [Ready()])

    def test_unasked_while_idle(self) -> None:
        """A server that says good-bye to an idle connection."""
        self.play("S: 220 x\nC: EHLO mx.example.net\nS: 250 x\nS: 421 idle too long")
        self.assertFalse(self.transcript.engine.idle)
        self.assertTrue(self.transcript.engine.closed)

    def test_misuse(self) -> None:
        engine = SMTPClient(b"mx")
        self.assertRaises(RuntimeError, engine.start, to(JOE))
        self.assertRaises(RuntimeError, engine.body, b"x")
        self.assertRaises(RuntimeError, engine.end_body)
        self.assertRaises(RuntimeError, engine.quit)

    def test_no_command_injection(self) -> None:
        """A line end in an address would be a command; it cannot even be handed in."""
        for bad in (b'"a\\\nb"@example.org', b"a@b\r\nDATA", b"a\0@b"):
            self.assertRaises(ValueError, to, bad)
            self.assertRaises(ValueError, Transaction, bad, (JOE,), 1, False)
        self.assertRaises(ValueError, to)
        self.assertRaises(ValueError, SMTPClient, b"mx\r")
        self.assertRaises(ValueError, SMTPClient, b"")


class ReplyTests(SynchronousTestCase):
    def greet(self, data: bytes) -> list[Event]:
        return SMTPClient(b"mx").receive(data)

    def test_text(self) -> None:
        """All lines, without CR, NUL as ? (§15.4)."""
        self.assertEqual(
            self.greet(b"554-no\r\n554-\0 \xe9\n554 bye\r\r\n"),
            [Refused(Stage.GREETING, Reply(554, b"554-no\n554-? \xe9\n554 bye\n"))],
        )

    def test_code_alone(self) -> None:
        self.assertEqual(self.greet(b"554\r\n"), [Refused(Stage.GREETING, Reply(554, b"554\n"))])

    def test_nonsense(self) -> None:
        """What is no reply is trouble with the connection, never a permanent failure (§26.5)."""
        for line in (
            b"hello",
            b"",
            b"99 x",
            b"199 x",
            b"600 x",
            b"2500 x",
            b"25x",
            b"22",
            b" 220 x",
            b"220x",
            b"-20 x",
        ):
            self.assertEqual(self.greet(line + b"\r\n"), [Broken(Stage.GREETING, False, line)], line)

    def test_codes_differ(self) -> None:
        self.assertEqual(self.greet(b"220-a\r\n250 b\r\n"), [Broken(Stage.GREETING, False, b"250 b")])

    def test_bounds(self) -> None:
        """Endless lines and endless replies end the connection; a long text is cut at a line end."""
        [event] = self.greet(b"220 " + b"x" * 5000)
        self.assertEqual(event, Broken(Stage.GREETING, False, b"220 " + b"x" * 2044))
        self.assertEqual(self.greet(b"220 " + b"x" * 2044), [])
        [event] = self.greet(b"220-x\r\n" * (MAX_LINES + 1))
        self.assertIsInstance(event, Broken)
        [event] = self.greet(b"554-" + b"x" * 1000 + b"\r\n" + b"554-y\r\n" * 900 + b"554 end\r\n")
        assert isinstance(event, Refused)
        self.assertLessEqual(len(event.reply.text), MAX_TEXT)
        self.assertTrue(event.reply.text.endswith(b"y\n"))

    @given(st.binary(max_size=200))
    def test_garbage(self, data: bytes) -> None:
        """Any bytes are a refusal, trouble, or not yet a reply; nothing else happens."""
        engine = SMTPClient(b"mx")
        for event in engine.receive(data):
            self.assertIsInstance(event, (Refused, Broken, Ready))

    dialogue = st.lists(
        st.sampled_from(
            (
                b"220 x\r\n",
                b"250-x\r\n250-PIPELINING\r\n250 SIZE 9\r\n",
                b"250 ok\r\n",
                b"354 go\n",
                b"450 no\r\n",
                b"550-a\r\n550 b\r\n",
                b"421 bye\r\n",
                b"huh\r\n",
                b"25",
                b"0 ok\r\n",
            )
        ),
        max_size=12,
    ).map(b"".join)

    @given(dialogue, st.lists(st.integers(0, 200), max_size=8))
    def test_any_split(self, data: bytes, cuts: list[int]) -> None:
        """Byte by byte or in any chunks: the same events, the same output."""
        edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        chunks = [data[a:b] for a, b in pairwise(edges)]
        single = [data[i : i + 1] for i in range(len(data))]
        self.assertEqual(self.run_through(single), self.run_through(chunks))

    def run_through(self, chunks: list[bytes]) -> tuple[list[Event], bytes]:
        """A shell that always has another message to send."""
        engine = SMTPClient(b"mx")
        events: list[Event] = []
        output = b""
        for chunk in chunks:
            # Commands that depend on a reply are sent before the next reply is looked at.
            for line in chunk.splitlines(keepends=True):
                new = engine.receive(line)
                for event in new:
                    if isinstance(event, Ready):
                        new += engine.start(to(JOE, ANN, size=5)) if engine.idle else []
                    elif isinstance(event, NeedBody):
                        engine.body(b"x\n")
                        engine.end_body()
                events += new
                output += engine.take_output()
        events += engine.lost()
        return events, output
