"""STLS as a state machine: after it, a server is as if TLS had been there from the first octet (RFC 2595 §4).

Two engines are compared: one that has been talked to in the clear, in every way that Hypothesis finds, and then gets
STLS; and a new one whose connection is encrypted from the start. From then on both get the same octets and the same
answers, and have to say and ask the same.
"""

from __future__ import annotations

import unittest
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from twisted.trial.unittest import SynchronousTestCase

from qtwist.wire.pop3_events import (
    Finish,
    Listing,
    Login,
    MechanismsWanted,
    Quit,
    Retrieve,
    SizesWanted,
    StartTLS,
    UidsWanted,
)
from qtwist.wire.pop3_server import MAX_LINE, Limits, POP3Server
from qtwist.wire.sasl import Channel, SaltWanted
from qtwist.wire.sasl_mechanisms import BY_PASSWORD, MECHANISMS, Claimed, Confirmed

STAMP = b"<1.2@mx.test>"
PIPELINED = b"-ERR nothing may follow STLS before TLS has begun\r\n"
#: Neither is reached: they count over the whole connection, before and after STLS.
MANY = Limits(logins=10_000, errors=10_000)

MECHANISM_LINES = tuple(b"AUTH " + name for name in MECHANISMS)
RESPONSES = tuple(map(b64encode, (b"\0joe\0x", b"joe", b"n,,n=joe,r=abc")))
LINES = (
    *(b"STLS", b"stls", b"STLS now", b"CAPA", b"NOOP", b"UTF8", b"AUTH", b"STAT", b"QUIT", b"", b"what", b"\0", b"*"),
    *(b"USER joe", b"PASS secret", b"APOP joe " + b"0" * 32, b"AUTH PLAIN " + RESPONSES[0], b"="),
    *MECHANISM_LINES,
    *RESPONSES,
    b"x" * (MAX_LINE + 1),
)
REFUSABLE = (StartTLS, Login, SaltWanted, Claimed, Confirmed, Retrieve, Finish)
TALK = st.lists(
    st.one_of(
        st.sampled_from(LINES).map(lambda line: line + b"\r\n"),
        st.sampled_from(LINES),  # what comes next continues it
        st.sampled_from((b"\r\n", b"\n", b"x" * (MAX_LINE + 2))),
        st.binary(max_size=5),
    ),
    min_size=1,
    max_size=4,
).map(b"".join)


def engine(secured: bool, plaintext: bool, mechanisms: tuple[bytes, ...] | None) -> POP3Server:
    made = POP3Server(STAMP, secured=secured, plaintext=plaintext, limits=MANY, mechanisms=mechanisms)
    made.offer_tls = True
    made.channel = Channel(b"mx.test", lambda: b"nonce", {b"tls-exporter": b"bound"})
    return made


class STLS(RuleBasedStateMachine):
    """`both` are the engine, and from STLS on its twin; `question` is what they have asked."""

    @initialize()
    def begins(self) -> None:
        self.connect(True, None)

    @precondition(lambda self: self.is_over)
    @rule(plaintext=st.booleans(), mechanisms=st.sampled_from([None, BY_PASSWORD]))
    def connect(self, plaintext: bool, mechanisms: tuple[bytes, ...] | None) -> None:
        """Another connection, as this one has come to its end."""
        self.how = plaintext, mechanisms
        self.both = [engine(False, *self.how)]
        self.question: Any = None

    @property
    def engine(self) -> POP3Server:
        return self.both[0]

    @property
    def is_over(self) -> bool:
        return self.engine.closed or self.engine.in_transaction

    def go(self) -> bytes:
        """Up to the next question; what was said on the way, by all the same."""
        said, asked = [], []
        for one in self.both:
            events: list[Any] = []
            while (event := one.next_event()) is not None:
                events.append(event)
            said.append(one.data_to_send())
            asked.append(events)
        assert all(text == said[0] for text in said), said
        assert all(events == asked[0] for events in asked), asked
        questions = [event for event in asked[0] if not isinstance(event, Quit | Listing)]
        assert len(questions) <= 1
        self.question = questions[0] if questions else None
        return said[0]

    def answer(self, how: Callable[[POP3Server], None]) -> None:
        for one in self.both:
            how(one)
        self.go()

    @precondition(lambda self: self.question is None)
    @rule(line=st.sampled_from((b"USER joe", b"UTF8", b"CAPA", b"PASS x", *MECHANISM_LINES)))
    def remembered(self, line: bytes) -> None:
        """What changes something."""
        self.say(line + b"\r\n")

    @precondition(lambda self: self.question is None)
    @rule(line=st.sampled_from(LINES))
    def command(self, line: bytes) -> None:
        self.say(line + b"\r\n")

    @rule(text=TALK)
    def say(self, text: bytes) -> None:
        for one in self.both:
            one.receive(text)
        if self.question is None:
            self.go()

    @precondition(lambda self: self.question is None)
    @rule()
    def stls(self) -> None:
        """As a client has it who means it."""
        self.say(b"STLS\r\n")
        if isinstance(self.question, StartTLS):
            self.begin()

    @precondition(lambda self: isinstance(self.question, StartTLS))
    @rule()
    def begin(self) -> None:
        one = self.engine
        assert len(self.both) == 1, "TLS has begun already"
        follows = one._unread
        one.start_tls()
        said = one.data_to_send()
        self.question = None
        if follows:
            assert (said, one.closed, one.secured) == (PIPELINED, True, False)
        else:
            assert said == b"+OK begin TLS now\r\n"
            assert one.secured
            self.both.append(engine(True, *self.how))
        assert one.next_event() is None
        assert one.data_to_send() == b""

    @precondition(lambda self: isinstance(self.question, REFUSABLE))
    @rule()
    def refuse(self) -> None:
        self.answer(lambda one: one.refuse(b"no"))

    @precondition(lambda self: isinstance(self.question, MechanismsWanted))
    @rule(names=st.lists(st.sampled_from(tuple(MECHANISMS)), unique=True).map(tuple))
    def mechanisms(self, names: tuple[bytes, ...]) -> None:
        self.answer(lambda one: one.give_mechanisms(names))

    @precondition(lambda self: isinstance(self.question, SaltWanted))
    @rule()
    def salt(self) -> None:
        self.answer(lambda one: one.salted(b"salt", 4096))

    @precondition(lambda self: isinstance(self.question, Claimed))
    @rule()
    def confirm(self) -> None:
        if type(self.question.claim).__name__ == "Proof":
            self.answer(lambda one: one.confirm(b"signature"))

    @precondition(lambda self: isinstance(self.question, Login | Claimed | Confirmed))
    @rule()
    def log_in(self) -> None:
        self.answer(lambda one: one.logged_in(2))

    @precondition(lambda self: isinstance(self.question, SizesWanted | UidsWanted))
    @rule()
    def count(self) -> None:
        sizes = isinstance(self.question, SizesWanted)
        self.answer(lambda one: one.give_sizes([1, 2]) if sizes else one.give_uids([b"a", b"b"]))

    @invariant()
    def same(self) -> None:
        """What the shell sees of them."""
        seen = {(one.utf8, one.closed, one.in_transaction, one.mechanisms, one.wants_input) for one in self.both}
        assert len(seen) <= 1 or self.engine.closed, seen

    def teardown(self) -> None:
        """Whatever came before: CAPA tells what counts over TLS, and PASS has no name."""
        for line in (b"\r\n*", b"STLS", b"PASS x", b"CAPA"):
            while self.question is not None and not self.is_over:
                if isinstance(self.question, StartTLS):
                    self.begin()
                elif isinstance(self.question, MechanismsWanted):
                    self.mechanisms((b"PLAIN",))
                else:
                    self.refuse()
            if not self.is_over:
                self.say(line + b"\r\n")
        self.same()


STLS.TestCase.settings = settings(
    max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


class Machine(SynchronousTestCase):
    def test_any_talk(self) -> None:
        result = unittest.TestResult()
        STLS.TestCase("runTest").run(result)
        for _, trouble in result.errors + result.failures:
            self.fail(trouble)


class Examples(SynchronousTestCase):
    """What the machine looks for, one by one."""

    def setUp(self) -> None:
        self.engine = engine(False, True, None)

    def say(self, text: bytes) -> tuple[list[Any], bytes]:
        self.engine.receive(text)
        events = []
        while (event := self.engine.next_event()) is not None:
            events.append(event)
        return events, self.engine.data_to_send()

    def begin(self) -> None:
        self.assertEqual(self.say(b"STLS\r\n"), ([StartTLS()], b""))
        self.engine.start_tls()
        self.assertEqual(self.engine.data_to_send(), b"+OK begin TLS now\r\n")

    def test_mechanisms(self) -> None:
        """CAPA before TLS, and after it: there may be more of them."""
        self.assertEqual(self.say(b"CAPA\r\n")[0], [MechanismsWanted()])
        self.engine.give_mechanisms((b"PLAIN",))
        self.assertIn(b"SASL PLAIN\r\n", self.say(b"")[1])
        self.begin()
        self.assertEqual(self.say(b"CAPA\r\n"), ([MechanismsWanted()], b""))
        self.engine.give_mechanisms((b"SCRAM-SHA-256-PLUS", b"PLAIN"))
        self.assertIn(b"SASL SCRAM-SHA-256-PLUS PLAIN\r\n", self.say(b"")[1])

    def test_while_they_are_asked_for(self) -> None:
        self.assertEqual(self.say(b"CAPA\r\nSTLS\r\n"), ([MechanismsWanted()], b""))
        self.engine.give_mechanisms((b"PLAIN",))
        self.assertEqual(self.say(b"")[0], [StartTLS()])
        self.engine.start_tls()
        self.engine.data_to_send()
        self.assertEqual(self.say(b"AUTH\r\n")[0], [MechanismsWanted()])

    def test_in_the_middle_of_auth(self) -> None:
        """It is a response like any other one, and no good one."""
        self.engine.mechanisms = (b"PLAIN",)
        self.assertEqual(self.say(b"AUTH PLAIN\r\n"), ([], b"+ \r\n"))
        self.assertEqual(self.say(b"STLS\r\n"), ([], b"-ERR the response is malformed\r\n"))
        self.begin()

    def test_within_an_overlong_line(self) -> None:
        """It is a part of that line, not a command."""
        self.say(b"x" * (MAX_LINE + 2))
        events, said = self.say(b"STLS\r\n")
        self.assertEqual((events, said[:4]), ([], b"-ERR"))
        self.begin()

    def test_limits_go_on(self) -> None:
        """Failures before TLS count after it: a guesser gains nothing by STLS."""
        self.engine = POP3Server(STAMP, plaintext=True, limits=Limits(logins=2), mechanisms=BY_PASSWORD)
        self.engine.offer_tls = True
        self.say(b"USER joe\r\nPASS x\r\n")
        self.engine.refuse(b"no")
        self.engine.data_to_send()
        self.begin()
        self.say(b"USER joe\r\nPASS y\r\n")
        self.engine.refuse(b"no")
        self.assertTrue(self.engine.closed)
