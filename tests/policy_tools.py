"""What tests of policies share: control files, a session, an SMTP factory, a DNS that says what it is told."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control
from qtwist.interfaces import Answer, DNSTemporaryError
from qtwist.policy import Policy, Session
from qtwist.policy.surroundings import Surroundings
from qtwist.qmtpd.factory import QMTPFactory
from qtwist.smtpd.factory import SMTPFactory
from tests.test_smtpd import NOW, Client, FakeQueue

TROUBLE = "trouble"  # what a name is said to be in Names that cannot be looked up now
SILENT = "silent"  # that nobody answers about


class Names:
    """An IResolver out of a table: ``{("a", b"name"): [records]}``; TROUBLE and SILENT in place of records.

    `asked` lists the questions.
    """

    def __init__(self, table: dict[tuple[str, Any], Any] | None = None) -> None:
        self.table = table or {}
        self.asked: list[tuple[str, Any]] = []

    def _answer(self, kind: str, name: Any) -> Deferred[Answer]:
        self.asked.append((kind, name))
        records = self.table.get((kind, name))
        if records == TROUBLE:
            return fail(Failure(DNSTemporaryError("no answer")))
        if records == SILENT:
            return Deferred()
        return succeed(Answer("ok" if records else "nxdomain", tuple(records or ())))

    def mx(self, name: bytes) -> Deferred[Answer]:
        return self._answer("mx", name)

    def a(self, name: bytes) -> Deferred[Answer]:
        return self._answer("a", name)

    def addresses(self, name: bytes) -> Deferred[Answer]:
        return self._answer("a", name)

    def txt(self, name: bytes) -> Deferred[Answer]:
        return self._answer("txt", name)

    def ptr(self, address: str) -> Deferred[Answer]:
        return self._answer("ptr", address)


class PolicyCase(SynchronousTestCase):
    """Control files in a directory, a clock, and servers in memory."""

    def setUp(self) -> None:
        self.home = self.mktemp()
        self.directory = os.path.join(self.home, "control")
        os.makedirs(self.directory)
        self.control = Control(self.directory)
        self.put("me", "mx.test\n")
        self.put("rcpthosts", "mx.test\n")
        self.queue = FakeQueue()
        self.clock = Clock()
        self.names = Names()

    def put(self, name: str, text: str | bytes) -> None:
        """Write a control file; a stamp is new in any case, as the file is another one."""
        path = os.path.join(self.directory, name)
        with open(path + ".new", "wb") as file:
            file.write(text.encode("latin-1") if isinstance(text, str) else text)
        os.rename(path + ".new", path)

    def surroundings(self) -> Surroundings:
        return Surroundings(self.control, self.clock, lambda: NOW, make=lambda: self.names)  # type: ignore[arg-type,return-value]

    def factory(self, *policies: Policy, kind: type[SMTPFactory] = SMTPFactory) -> SMTPFactory:
        made = kind(self.control, self.queue, policies, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        made.surroundings.make = lambda: self.names  # type: ignore[assignment,return-value]
        return made

    def qmtp_factory(self, *policies: Policy) -> QMTPFactory:
        made = QMTPFactory(self.control, self.queue, policies, clock=self.clock, now=lambda: NOW)  # type: ignore[arg-type]
        made.surroundings.make = lambda: self.names  # type: ignore[assignment,return-value]
        return made

    def connect(self, host: str = "192.0.2.9", factory: SMTPFactory | None = None) -> Client:
        return Client(factory or self.factory(), host=host)

    def dialogue(self, *lines: bytes, host: str = "192.0.2.9", factory: SMTPFactory | None = None) -> list[bytes]:
        """The answers to a whole dialogue, the greeting first."""
        client = self.connect(host, factory)
        answers = client.replies()
        for line in lines:
            answers += client.say(line)
        client.hang_up()
        return answers


def session(ip: str = "192.0.2.9", **environment: str) -> Session:
    """A session of a client, with variables as a rule would set them."""
    known = {name.encode(): value.encode() for name, value in environment.items()}
    return Session("x", remote_ip=ip, remote_port=40000, local_ip="192.0.2.1", local_port=25, environment=known)


def codes(answers: Iterable[bytes]) -> list[int]:
    return [int(answer[:3]) for answer in answers]
