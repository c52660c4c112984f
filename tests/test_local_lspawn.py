"""lspawn's loop, in this process: spec/qmail.md §11, doc/security.md."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from qtwist.files.assign import Assignment
from qtwist.local.children import IDLE, MOST_TOGETHER, Children, Key
from qtwist.local.lspawn import Config, Request, Spawner
from qtwist.wire import spawning


class SpawnerTests(SynchronousTestCase):
    def setUp(self) -> None:
        about = {"home": self.mktemp(), "queue": os.geteuid(), "lookup": (0, 0), "roles": {}, "pidfile": None}
        self.ours, theirs = self.pair()
        self.spawner = Spawner(Config(json.dumps({**about, "defaults": {}})), theirs)
        self.addCleanup(self.spawner.selector.close)

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        return ours, theirs

    def queue_manager(self) -> socket.socket:
        """A queue manager that has come: its end of the socket."""
        ours, theirs = self.pair()
        self.spawner._new_sender(theirs)
        return ours

    def request(self, delivery: int) -> Request:
        assert self.spawner.sender is not None
        self.spawner.running += 1
        with tempfile.TemporaryFile() as file:
            return Request(self.spawner.sender, delivery, os.dup(file.fileno()), b"joe", b"x.test", b"")

    def test_reports_go_to_who_asked(self) -> None:
        """A report of a delivery that a queue manager has left behind when it died is not taken for one of the next
        one's, which counts anew: it would be told that a message was delivered which was not."""
        first = self.queue_manager()
        left_behind, answered = self.request(1), self.request(2)
        self.spawner._finish(answered, 0, b"did 1+0+0\n")
        self.assertEqual(spawning.read_reply(first.recv(1000)), (2, 0, b"did 1+0+0\n"))
        second = self.queue_manager()
        own = self.request(1)
        self.spawner._finish(left_behind, 0, b"did 1+0+0\n")
        self.assertRaises(BlockingIOError, second.recv, 1000)
        self.spawner._finish(own, 111, b"later\n")
        self.assertEqual(spawning.read_reply(second.recv(1000)), (1, 111, b"later\n"))


class ChildrenTests(SynchronousTestCase):
    """Processes that deliver, with their ends of the sockets held by the test."""

    OWNER = Assignment(b"joe", 1, 1, b"/home/joe", b"", b"")

    def setUp(self) -> None:
        self.theirs: list[socket.socket] = []
        self.read: dict[socket.socket, Any] = {}
        self.ended: list[tuple[int, int, bytes]] = []
        self.children = Children(self.start, self.watch, self.forget)
        self.addCleanup(lambda: [one.close() for one in (*self.theirs, *self.read)])

    def start(self, key: Key) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.append(theirs)
        return ours

    def watch(self, sock: socket.socket, handle: Any) -> None:
        sock.setblocking(False)
        self.read[sock] = handle

    def forget(self, sock: socket.socket) -> None:
        del self.read[sock]
        sock.close()

    def hand_over(self, which: int) -> None:
        self.assertTrue(
            self.children.hand_over(
                self.OWNER, (b"%d" % which,), [], lambda code, output: self.ended.append((which, code, output))
            )
        )

    def heard(self) -> None:
        for handle in list(self.read.values()):
            handle()

    def asked(self, process: int) -> list[tuple[int, bytes]]:
        """What a process is asked for: numbers and the rest."""
        found = []
        self.theirs[process].setblocking(False)
        try:
            while True:
                number, _, rest = self.theirs[process].recv(1000).partition(b"\0")
                found.append((int(number), rest))
        except BlockingIOError:
            return found

    def test_one_process_for_one_user(self) -> None:
        """While it has no more than it can take; answers come in any order."""
        for which in range(MOST_TOGETHER + 1):
            self.hand_over(which)
        self.assertEqual([len(self.asked(0)), len(self.asked(1))], [MOST_TOGETHER, 1])
        self.theirs[0].send(spawning.reply(3, 111, b"later\n"))
        self.theirs[0].send(spawning.reply(1, 0, b"did\n"))
        self.heard()
        self.assertEqual(self.ended, [(2, 111, b"later\n"), (0, 0, b"did\n")])

    def test_a_process_dies(self) -> None:
        """What it has not answered has crashed, and the next message gets another process."""
        self.hand_over(1)
        self.hand_over(2)
        self.theirs[0].send(spawning.reply(1, 0, b"did\n"))
        self.theirs[0].close()
        self.heard()
        self.assertEqual(self.ended, [(1, 0, b"did\n"), (2, -1, b"")])
        self.hand_over(3)
        self.assertEqual([rest for _, rest in self.asked(1)], [b"3"])

    def test_nonsense(self) -> None:
        """Nobody can know what it is about: nothing of what the process does is believed."""
        self.hand_over(1)
        self.theirs[0].send(b"?")
        self.heard()
        self.assertEqual(self.ended, [(1, -1, b"")])

    def test_idle(self) -> None:
        """A process that has answered waits for more, until it is told to go."""
        self.assertIsNone(self.children.patience())
        self.hand_over(1)
        self.theirs[0].send(spawning.reply(1, 0, b""))
        self.heard()
        self.hand_over(2)
        self.assertEqual(len(self.theirs), 1)
        self.theirs[0].send(spawning.reply(2, 0, b""))
        self.heard()
        self.children.end_idle(everything=False)
        self.assertEqual(len(self.read), 1)
        self.assertGreater(self.children.patience(), 0)
        self.children.end_idle(everything=True)
        self.assertEqual(len(self.read), 0)

    def test_idle_for_too_long(self) -> None:
        self.hand_over(1)
        self.theirs[0].send(spawning.reply(1, 0, b""))
        self.heard()
        for later, left in ((IDLE - 1, 1), (IDLE, 0)):
            with mock.patch("time.monotonic", return_value=time.monotonic() + later):
                self.children.end_idle(everything=False)
            self.assertEqual(len(self.read), left)
