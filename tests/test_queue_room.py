"""No mail is begun that there is no room for: control/queueminfree, doc/running.md."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.control import Control
from qtwist.mail.address import Address
from qtwist.policy.room import QueueRoom
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.queue.room import INTERVAL, Room
from tests.queue_tools import queue_log

MIB = 1024 * 1024


class RoomCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.free = 100 * MIB
        self.inodes = 50_000
        self.asked = 0
        self.least = 10 * MIB
        self.room = Room("/queue", lambda: self.least, self.clock.seconds, self.statvfs)
        self.lines = queue_log(self)

    def statvfs(self, path: str) -> Any:
        self.asked += 1
        if self.free < 0:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_bavail=self.free // 4096, f_frsize=4096, f_favail=self.inodes, f_files=100_000)

    def later(self) -> None:
        self.clock.advance(INTERVAL)


class RoomTests(RoomCase):
    def test_full(self) -> None:
        """Below the bound nothing is taken, and above it not at once again: a quarter more has to be free."""
        self.assertTrue(self.room.has())
        self.free = 10 * MIB - 4096
        self.later()
        self.assertFalse(self.room.has())
        self.free = 11 * MIB
        self.later()
        self.assertFalse(self.room.has())
        self.free = 13 * MIB
        self.later()
        self.assertTrue(self.room.has())
        self.assertEqual(len(self.lines), 2)
        self.assertIn("only 10481664 octets are free in /queue", self.lines[0])
        self.assertIn("room in /queue again", self.lines[1])

    def test_inodes(self) -> None:
        self.inodes = 999
        self.assertFalse(self.room.has())
        self.assertIn("only 999 inodes", self.lines[0])

    def test_size(self) -> None:
        """A message that would leave too little is not taken, others are."""
        self.assertTrue(self.room.has(90 * MIB))
        self.assertFalse(self.room.has(90 * MIB + 4096))
        self.assertTrue(self.room.has(1000))
        self.assertEqual(self.lines, [])

    def test_asked_once_a_second(self) -> None:
        for _ in range(100):
            self.room.has()
        self.assertEqual(self.asked, 1)
        self.later()
        self.room.has()
        self.assertEqual(self.asked, 2)

    def test_off(self) -> None:
        self.free, self.least = 0, 0
        self.assertTrue(self.room.has(MIB))
        self.assertEqual(self.asked, 0)

    def test_no_answer(self) -> None:
        """A file system that cannot be asked stops no mail."""
        self.free = -1
        self.assertTrue(self.room.has())


class QueueRoomTests(RoomCase):
    def setUp(self) -> None:
        super().setUp()
        home = self.mktemp()
        os.makedirs(f"{home}/control")
        os.mkdir(f"{home}/queue")
        self.home = home
        self.policy = QueueRoom(Surroundings(Control(f"{home}/control"), self.clock))
        self.policy.room = self.room

    def test_mail(self) -> None:
        """RFC 1870 section 6.1: 452, now or with the SIZE that was told."""
        session = Session("x")
        self.assertIsNone(self.policy.mail(session, Address(b"a@b")))
        session.declared_size = 95 * MIB
        answer = self.policy.mail(session, Address(b"a@b"))
        assert answer is not None
        self.assertEqual((answer.code, answer.text.endswith(b"(#4.3.1)")), (452, True))

    def test_real_file_system(self) -> None:
        """The control file counts, and is read again."""
        policy = QueueRoom(Surroundings(Control(f"{self.home}/control"), self.clock))
        for octets, free in (("0", True), (str(1 << 62), False), ("1", True)):
            with open(f"{self.home}/control/queueminfree", "w") as file:
                file.write(octets + "\n")
            self.later()
            self.assertEqual(policy.room.has(), free, octets)
