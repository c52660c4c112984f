"""SMTP smuggling in both directions: one message never becomes two (spec/qmail.md §26.3, RFC 5321 §4.1.1.4).

The endings are those that were found to pass somewhere (SEC Consult 2023, and what was tried after it), and their kin.
"""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.dot_stuffing import DotStuffer
from qtwist.wire.smtp_events import Connect, Data, EndOfMessage, Event, Mail
from qtwist.wire.smtp_server import SMTPServer

ENDINGS = (
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\r\n.\r\r\n",
    b"\r\r\n.\r\n",
    b"\r\n.\r\r\n",
    b"\n\r.\n\r",
    b"\r\n\r.\r\n",
    b"\n\n.\r\n",
    b"\r\n.\n\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\n\0.\n",
    b"\r\0\n.\r\0\n",
    b"\n.\0\n",
    b"\r\n\0.\r",
    b"\r\n\0.\n",
    b"\r\n.\r\0\n",
    b"\r\n.\0\n",
)

#: Lines that are no end of data for anybody who reads RFC 5321, and that some have taken for one: they are contents.
CONTENTS = (
    b"\r\n. \r\n",
    b"\r\n.\t\r\n",
    b"\r\n .\r\n",
    b"\x0b.\x0b",
    b"\x0c.\x0c",
    b"\x85.\x85",
    b"\xe2\x80\xa8.\xe2\x80\xa8",
)

#: How servers were found to cut what they get into lines, and what they drop before.
LINE_ENDS = (b"\r\n", b"\n", b"\r?\n", b"\r*\n", b"\r\n|\n|\r", b"\r\n?|\n", b"\r\n|\r\n\r|\n\r|\n|\r")
DROPPED = (b"", b"\0", b"\r", b"\0\r")

SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nDATA\r\nevil\r\n.\r\n"


def ends_seen(wire: bytes, line_end: bytes, dropped: bytes) -> list[int]:
    """Where a lenient server sees an end of data: how many lines stand before each."""
    kept = wire.translate(None, dropped)
    return [number for number, line in enumerate(re.split(line_end, kept)) if line == b"."]


def stuffed(body: bytes, step: int = 0) -> bytes:
    stuffer = DotStuffer()
    pieces = [body[at : at + step] for at in range(0, len(body), step)] if step else [body]
    return b"".join(map(stuffer.encode, pieces)) + stuffer.finish()


class Outbound(SynchronousTestCase):
    """Whatever lies in the queue, and however it came there."""

    def check(self, body: bytes, step: int = 0) -> None:
        wire = stuffed(body, step)
        for line_end, dropped in itertools.product(LINE_ENDS, DROPPED):
            kept = wire.translate(None, dropped)
            lines = re.split(line_end, kept)
            seen = ends_seen(wire, line_end, dropped)
            last = len(lines) - 2  # the lone dot, and the nothing behind it
            self.assertLessEqual(set(seen), {last}, (body, line_end, dropped))

    def test_known_endings(self) -> None:
        for ending in ENDINGS:
            for step in (0, 1, 2, 3):
                with self.subTest(ending=ending, step=step):
                    self.check(b"Subject: x\n\nhello" + ending + SMUGGLED, step)
                    self.check(ending + SMUGGLED, step)
                    self.check(SMUGGLED + ending, step)

    @given(
        st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"a", b"\r\n.\r\n", b"\n.\n"]), max_size=30).map(b"".join)
    )
    def test_any(self, body: bytes) -> None:
        self.check(body)


class Inbound(SynchronousTestCase):
    """Whatever a lax server in front of us has let pass."""

    def talk(self, data: bytes, step: int) -> tuple[list[Event], SMTPServer]:
        engine = SMTPServer(b"mx.test")
        events: list[Event] = []
        for at in range(0, len(data), step):
            engine.receive(data[at : at + step])
            while (event := engine.next_event()) is not None:
                events.append(event)
                if isinstance(event, EndOfMessage) and event.refusal is not None:
                    engine.reply(event.refusal)
                elif isinstance(event, (Connect, Mail, Data, EndOfMessage)) or type(event).__name__ in ("Rcpt", "Helo"):
                    engine.accept()
        return events, engine

    def test_known_endings(self) -> None:
        """There is one transaction, and nothing of it is taken; only a true end lets another one follow."""
        start = b"EHLO relay.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\nhello"
        for ending in ENDINGS:
            for step in (1, 2, 7, 10_000):
                with self.subTest(ending=ending, step=step):
                    events, engine = self.talk(start + ending + SMUGGLED, step)
                    self.assertEqual(sum(isinstance(event, Mail) for event in events), 1)
                    [end] = [event for event in events if isinstance(event, EndOfMessage)]
                    self.assertIsNotNone(end.refusal)
                    self.assertTrue(engine.closed)
                    self.assertNotIn(b"evil", b"".join(getattr(event, "data", b"") for event in events))

    def test_contents(self) -> None:
        """What is no end of data stays in the one message there is, and leaves as such."""
        start = b"EHLO relay.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSubject: x\r\n\r\nhello"
        for contents in CONTENTS:
            for step in (1, 2, 10_000):
                with self.subTest(contents=contents, step=step):
                    events, _ = self.talk(start + contents + SMUGGLED, step)
                    self.assertEqual(sum(isinstance(event, Mail) for event in events), 1)
                    [end] = [event for event in events if isinstance(event, EndOfMessage)]
                    self.assertIsNone(end.refusal)
                    body = b"".join(getattr(event, "data", b"") for event in events)
                    self.assertIn(b"MAIL FROM:<evil@example.org>\n", body)
                    self.assertEqual(stuffed(body).count(b"\r\n.\r\n"), 1)

    def test_the_true_end(self) -> None:
        """So that the test above can fail."""
        start = b"EHLO relay.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhello"
        events, _ = self.talk(start + b"\r\n.\r\n" + SMUGGLED, 10_000)
        self.assertEqual(sum(isinstance(event, Mail) for event in events), 2)
        self.assertEqual([event.refusal for event in events if isinstance(event, EndOfMessage)], [None, None])
