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
from qtwist.local import lspawn
from qtwist.local.children import IDLE, MOST_TOGETHER, Children, Key
from qtwist.local.errors import AS_ROOT, BAD_RECORD, PERMANENT, SYSTEM_TROUBLE
from qtwist.local.lspawn import LIMIT, Config, Question, Request, Spawner
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

    def asked(self, recipient: bytes, fd: int | None) -> tuple[int, bytes]:
        """What a queue manager hears that asks for one delivery."""
        manager = self.queue_manager()
        socket.send_fds(manager, [spawning.request(1, 5, b"", recipient)], [] if fd is None else [fd])
        before = len(os.listdir("/proc/self/fd"))
        self.spawner._on_sender()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)  # the message is closed again
        return spawning.read_reply(manager.recv(1000))[1:]

    def test_addresses_without_a_mailbox(self) -> None:
        """§11.2: no host is a failure, and nobody at a host a success."""
        with tempfile.TemporaryFile() as message:
            fd = message.fileno()
            no_host = PERMANENT, b"A local address must have a host name. (#5.1.3)\n"
            for recipient, wanted in ((b"joe", no_host), (b"", no_host), (b"@here.test", (0, b""))):
                self.assertEqual(self.asked(recipient, fd), wanted, recipient)

    def test_only_messages_of_the_queue(self) -> None:
        """§26.8: a file of the queue's owner, and nothing else."""
        wrong = BAD_RECORD, b"The message is no file of the queue. (#4.3.5)\n"
        for recipient in (b"joe@here.test", b"joe", b"@here.test"):
            self.assertEqual(self.asked(recipient, None), (SYSTEM_TROUBLE, b""))
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        self.assertEqual(self.asked(b"joe@here.test", reader), wrong)
        with tempfile.TemporaryFile() as message:
            with mock.patch.object(self.spawner, "config") as config:
                config.queue = os.geteuid() + 1
                self.assertEqual(self.asked(b"joe@here.test", message.fileno()), wrong)
            self.spawner.running = LIMIT
            code, text = self.asked(b"joe@here.test", message.fileno())
            self.assertEqual((code, text), (SYSTEM_TROUBLE, b"Too many deliveries are running. (#4.3.0)\n"))

    def test_never_as_root(self) -> None:
        """Neither a delivery nor a mailbox, whatever users/assign says."""
        root = Assignment(b"root", 0, 0, b"/root", b"", b"")
        manager = self.queue_manager()
        with mock.patch.object(self.spawner, "_fork", side_effect=AssertionError):
            self.spawner._deliver(self.request(1), root)
            self.assertEqual(spawning.read_reply(manager.recv(1000)), (1, AS_ROOT, b""))
            self.assertRaises(PermissionError, self.spawner._open_mailbox, root, self.pair()[0])
            ours, theirs = self.pair()
            self.spawner._new_server(theirs)
            self.spawner.questions = 1
            self.spawner._look(Question(7, theirs), root)
            self.assertEqual(spawning.read_reply(ours.recv(1000)), (7, AS_ROOT, b""))

    def test_no_role_begins_at_the_end(self) -> None:
        supervisor, theirs = self.pair()
        theirs.setblocking(False)
        self.spawner.supervisor = theirs
        with mock.patch.object(self.spawner, "_start_role") as start:
            for ending, begun in ((True, 0), (False, 1)):
                self.spawner.ending = ending
                supervisor.send(b"start {}")
                self.spawner._on_supervisor()
                self.assertEqual(start.call_count, begun)

    def test_mailboxes_are_bounded(self) -> None:
        joe = Assignment(b"joe", 1, 1, b"/home/joe", b"", b"")
        made = iter(range(10, 20))
        self.patch(lspawn, "MOST_MAILBOXES", 2)
        with mock.patch.object(self.spawner, "_fork", side_effect=lambda *_: next(made)):
            for _ in range(2):
                self.spawner._open_mailbox(joe, self.pair()[0])
            self.assertRaises(PermissionError, self.spawner._open_mailbox, joe, self.pair()[0])
        self.assertEqual(self.spawner.mailboxes, {10, 11})

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
