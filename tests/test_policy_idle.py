"""Policies that nothing switches on are not asked; what is there costs one look (issue 8, item 5)."""

from __future__ import annotations

import os
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.local.errors import SYSTEM_TROUBLE
from qtwist.policy import Policy, Session
from qtwist.policy.presence import Presence
from qtwist.processes import questions
from qtwist.processes.questions import AT_ONCE, WAITING, MailboxQuestions
from qtwist.wire import spawning
from tests.policy_tools import PolicyCase, session


class Present(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = self.mktemp()
        os.mkdir(self.directory)
        self.time = os.stat(self.directory).st_mtime + 10
        self.presence = Presence(self.directory, lambda: self.time)

    def put(self, name: str) -> None:
        with open(os.path.join(self.directory, name), "w", encoding="ascii"):
            pass

    def test_listed_once_while_nothing_changes(self) -> None:
        with mock.patch("os.listdir", side_effect=os.listdir) as listed:
            first = self.presence.get()
            self.assertEqual(first, frozenset())
            self.assertIs(self.presence.get(), first)
            self.assertEqual(listed.call_count, 1)
            self.put("one")
            self.time = os.stat(self.directory).st_mtime + 10
            self.assertEqual(self.presence.get(), {"one"})
            self.assertIs(self.presence.get(), self.presence.get())
            self.assertEqual(listed.call_count, 2)

    def test_two_changes_within_one_tick(self) -> None:
        """What came after the list, and before the clock of the file system has ticked, is seen all the same."""
        stamp = os.stat(self.directory).st_mtime_ns
        self.time = stamp / 1e9
        self.presence.get()
        self.put("late")
        os.utime(self.directory, ns=(stamp, stamp))
        self.assertEqual(self.presence.get(), {"late"})

    def test_no_directory(self) -> None:
        os.rmdir(self.directory)
        self.assertEqual(self.presence.get(), frozenset())


class Asked(PolicyCase):
    def asked_names(self, hooks: Any, hook: str) -> list[str]:
        return [asked.__self__.name or type(asked.__self__).__name__ for asked in hooks[hook]]

    def test_by_files_and_variables(self) -> None:
        class Own(Policy):
            def rcpt(self, session: Session, recipient: Any) -> None:
                """Asked always."""

        factory = self.factory(Own())
        asked = lambda **variables: self.asked_names(factory.hooks_after_connect(session(**variables)), "rcpt")  # noqa: E731
        self.assertEqual(asked(), ["Own", "rcpthosts"])
        self.assertEqual(asked(RBLSMTPD="x", TARPITCOUNT="1"), ["Own", "rblsmtpd", "tarpit", "rcpthosts"])
        for name in ("badmailto", "badmailfrom", "greylisting", "rcptcheck", "dnsbllist", "tarpitcount"):
            self.put(name, "")
        self.assertEqual(
            asked(),
            ["Own", "rblsmtpd", "tarpit", "badmailfrom", "badrcptto", "rcpthosts", "rcptcheck", "greylisting"],
        )

    def test_before_the_rules_were_asked(self) -> None:
        """They may set any variable."""
        connecting = self.asked_names(self.factory().hooks_for(frozenset(), None), "connect")
        self.assertEqual(connecting, ["limits", "memory", "rblsmtpd", "greetdelay", "badmailfrom", "rcpthosts"])

    def test_bounded(self) -> None:
        factory = self.factory()
        for number in range(300):
            factory.hooks_after_connect(session(**{f"V{number}": "x"}))
        self.assertLessEqual(len(factory._asked), 100)


class FakeConnection:
    def __init__(self, reactor: object, sock: object, received: Any, lost: Any) -> None:
        self.received, self.lost = received, lost
        self.sent: list[tuple[int, bytes]] = []

    def send(self, packet: bytes) -> None:
        number, _, _, local, _ = spawning.read_request(packet)
        self.sent.append((number, local))


class Questions(SynchronousTestCase):
    """What a server asks lspawn (doc/security.md)."""

    def setUp(self) -> None:
        self.patch(questions, "PacketConnection", FakeConnection)
        self.ask = MailboxQuestions(Clock(), None)  # type: ignore[arg-type]
        self.connection: Any = self.ask._connection

    def test_few_at_a_time_in_order(self) -> None:
        answers = [self.ask(b"x%d" % number) for number in range(AT_ONCE + 2)]
        self.assertEqual([local for _, local in self.connection.sent], [b"x%d" % number for number in range(AT_ONCE)])
        self.connection.received(spawning.reply(self.connection.sent[1][0], 100, b""), [])
        self.assertEqual(self.successResultOf(answers[1]), 100)
        self.assertEqual(len(self.connection.sent), AT_ONCE + 1)
        self.assertNoResult(answers[0])

    def test_one_that_nobody_waits_for(self) -> None:
        answers = [self.ask(b"x%d" % number) for number in range(AT_ONCE + 2)]
        for number in (0, AT_ONCE):
            answers[number].cancel()
            self.failureResultOf(answers[number], CancelledError)
        self.connection.received(spawning.reply(self.connection.sent[0][0], 0, b""), [])
        self.assertEqual(self.connection.sent[-1][1], b"x%d" % (AT_ONCE + 1))

    def test_lost(self) -> None:
        answers = [self.ask(b"x") for _ in range(AT_ONCE + 2)]
        self.connection.lost()
        for answer in (*answers, self.ask(b"x")):
            self.assertEqual(self.successResultOf(answer), SYSTEM_TROUBLE)

    def test_bounded(self) -> None:
        answers = [self.ask(b"x") for _ in range(AT_ONCE + WAITING + 1)]
        self.assertEqual(self.successResultOf(answers[-1]), SYSTEM_TROUBLE)
        self.assertNoResult(answers[-2])

    def test_not_worth_asking(self) -> None:
        """§11.2: mail for nobody is thrown away; no local part has a NUL."""
        self.assertEqual(self.successResultOf(self.ask(b"")), 0)
        self.assertEqual(self.successResultOf(self.ask(b"a\0b")), 100)
        self.assertEqual(self.connection.sent, [])
