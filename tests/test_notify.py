"""What a service manager is told (sd_notify's protocol); tests/e2e/test_supervision.py has it with a daemon."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qtwist.processes.notify import ServiceManager


class NotifyTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.mkdtemp(prefix="qtwist-notify-")
        self.addCleanup(shutil.rmtree, folder)
        self.path = os.path.join(folder, "socket")
        self.theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.theirs.close)
        self.theirs.bind(self.path)
        self.theirs.setblocking(False)
        self.clock = Clock()

    def manager(self, **environ: str) -> ServiceManager:
        made = ServiceManager({"NOTIFY_SOCKET": self.path, **environ}, self.clock)
        self.addCleanup(made.close)
        return made

    def told(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.theirs.recv(4096))
            except BlockingIOError:
                return found

    def test_environment(self) -> None:
        """What is for us is not for programs that we start."""
        environ = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
        ServiceManager(environ, self.clock).close()
        self.assertEqual(environ, {"PATH": "/bin"})

    def test_watchdog(self) -> None:
        """Twice in each period, from the beginning to the end, however often we are ready."""
        manager = self.manager(WATCHDOG_USEC="4000000", WATCHDOG_PID=str(os.getpid()))
        self.clock.advance(10)
        self.assertEqual(self.told(), [])
        manager.ready()
        self.assertEqual(self.told(), [b"READY=1", b"WATCHDOG=1"])
        manager.ready()
        self.clock.advance(1.9)
        self.assertEqual(self.told(), [b"READY=1"])
        self.clock.advance(0.1)
        manager.stopping()
        self.clock.advance(2)
        self.assertEqual(self.told(), [b"WATCHDOG=1", b"STOPPING=1", b"WATCHDOG=1"])
        manager.close()
        self.clock.advance(10)
        self.assertEqual((self.told(), self.clock.getDelayedCalls()), ([], []))

    def test_no_watchdog(self) -> None:
        """Not for another process, and not by a number that is none."""
        for environ in (
            {"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "x"},
        ):
            self.manager(**environ).ready()
            self.assertEqual(self.told(), [b"READY=1"], environ)

    def test_nobody(self) -> None:
        """Where nobody wants to know, or can be told, nothing happens."""
        for address in ("", "relative", "/nowhere/socket", "/" + "x" * 200):
            manager = self.manager(NOTIFY_SOCKET=address, WATCHDOG_USEC="4000000")
            manager.ready()
            manager.reloading()
            manager.stopping()
            self.assertEqual(self.clock.getDelayedCalls(), [], address)
        manager = self.manager()
        self.theirs.close()
        manager.ready()
