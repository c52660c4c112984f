"""lspawn's loop, in this process: spec/qmail.md §11, doc/security.md."""

from __future__ import annotations

import json
import os
import socket
import tempfile

from twisted.trial.unittest import SynchronousTestCase

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
