"""What runs in the processes of users: which deliveries share a flush, and what waits for none."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

from qtwist.local import delivering
from qtwist.local.delivering import ENOUGH, HURRY, PACE, _Server
from qtwist.wire import spawning
from tests.test_local_deliver import MESSAGE, DeliverCase
from tests.unprivileged import as_user

DEFAULTS = {"path": "/usr/bin:/bin", "defaultdelivery": "./Maildir/\n", "timeoutlocal": 60.0}


class PaceTests(DeliverCase):
    """Deliveries that follow one another wait a moment, so that they share flushes."""

    def setUp(self) -> None:
        super().setUp()
        self.maildir()
        self.now = 1000.0

    def run_server(self, story: Callable[[_Server, Callable[[], list[int]]], list[object]]) -> list[object]:
        """What `story` returns; it gets a server, and how to read which deliveries have been answered since."""

        def run() -> list[object]:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)

            def answered() -> list[int]:
                found = []
                while True:
                    try:
                        number, code, output = spawning.read_reply(ours.recv(1000))
                    except BlockingIOError:
                        return found
                    self.assertEqual((code, output[:4]), (0, b"did "))
                    found.append(number)

            with ours, theirs:
                return story(_Server(theirs, "/nowhere", DEFAULTS, lambda: self.now), answered)

        return as_user(run)

    def packet(self, number: int, ext: bytes = b"", siblings: int = 9) -> tuple[bytes, list[int]]:
        fd = os.memfd_create("message")
        os.write(fd, MESSAGE)
        dash = b"-" if ext else b""
        job = (b"me", self.home, b"me" + dash + ext, dash, ext, b"here.test", b"joe@x")
        about = (*job, b"", b"", b"%d" % siblings)
        return spawning.fields(b"%d" % number, *about), [fd]

    def test_first(self) -> None:
        """The first one waits for nobody; those that come soon after it wait until the pace is over."""

        def story(server: _Server, answered: Callable[[], list[int]]) -> list[object]:
            told: list[object] = [server.patience()]
            server.take([self.packet(1)])
            told += [server.is_due(), server.patience()]
            server.deliver()
            told += [answered(), server.patience()]
            self.now += PACE / 4
            server.take([self.packet(2)])
            server.take([self.packet(3)])
            told += [server.is_due(), round((server.patience() or 0) / PACE, 6)]
            self.now += PACE
            told += [server.is_due(), server.patience()]
            server.deliver()
            return [*told, answered()]

        self.assertEqual(self.run_server(story), [None, True, 0.0, [1], None, False, 0.75, True, 0.0, [2, 3]])
        self.assertEqual(len(self.mails()), 3)

    def test_enough(self) -> None:
        """When many wait, no more are waited for."""

        def story(server: _Server, answered: Callable[[], list[int]]) -> list[object]:
            server.take([self.packet(1)])
            server.deliver()
            due: list[object] = []
            for number in range(ENOUGH):
                server.take([self.packet(2 + number)])
                due.append(server.is_due())
            return due

        self.assertEqual(self.run_server(story), [False] * (ENOUGH - 1) + [True])

    def test_no_slots_left(self) -> None:
        """One that the queue manager does not want to wait ends the wait of the others."""

        def story(server: _Server, answered: Callable[[], list[int]]) -> list[object]:
            server.take([self.packet(1)])
            server.deliver()
            answered()
            server.take([self.packet(2)])
            told: list[object] = [server.is_due()]
            server.take([self.packet(3, siblings=1)])
            told += [server.is_due(), server.patience()]
            server.deliver()
            told.append(answered())
            server.take([self.packet(4)])
            return [*told, server.is_due()]

        self.assertEqual(self.run_server(story), [False, True, 0.0, [2, 3], False])

    def test_few_slots(self) -> None:
        """Where one other may come, it is waited for a little while, and not longer than for many."""

        def story(server: _Server, answered: Callable[[], list[int]]) -> list[object]:
            server.take([self.packet(1)])
            server.deliver()
            server.take([self.packet(2)])
            server.take([self.packet(3, siblings=2)])
            told: list[object] = [round((server.patience() or 0) / HURRY, 6)]
            self.now += PACE - HURRY / 2
            server.deliver()
            self.now += PACE - HURRY / 2
            server.take([self.packet(4, siblings=2)])
            return [*told, round((server.patience() or 0) / HURRY, 6)]

        self.assertEqual(self.run_server(story), [1.0, 0.5])

    def test_programs_do_not_wait(self) -> None:
        """What runs a program begins at once; so is a question after a mailbox answered."""
        self.put(b".qmail-run", b"|true\n")

        def story(server: _Server, answered: Callable[[], list[int]]) -> list[object]:
            server.take([self.packet(1)])
            server.deliver()
            answered()
            server.take([self.packet(2), self.packet(3, b"run")])
            server.wait()
            return [server.is_due(), answered()]

        self.assertEqual(self.run_server(story), [False, [3]])

    def test_closed(self) -> None:
        """What waits when nobody asks for more is delivered before the end."""

        def run() -> int:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                server = threading.Thread(target=delivering.serve, args=(theirs, "/nowhere", DEFAULTS))
                server.start()
                for number in (1, 2, 3):
                    packet, fds = self.packet(number)
                    socket.send_fds(ours, [packet], fds)
                    if number == 1:
                        self.assertEqual(spawning.read_reply(ours.recv(1000))[0], 1)  # so the others have to wait
                ours.shutdown(socket.SHUT_WR)
                server.join()
                return 1 + sum(1 for _ in iter(lambda: _read(ours), None))

        self.assertEqual(as_user(run), 3)
        self.assertEqual(len(self.mails()), 3)


def _read(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(1000, socket.MSG_DONTWAIT) or None
    except BlockingIOError:
        return None
