"""qmailctl with a daemon that runs by itself: *Life with qmail* 2.8.2.1, spec/qmail.md §22."""

from __future__ import annotations

import contextlib
import os
import re
import signal

from qtwist.commands.supervision import System, daemon
from tests.e2e.harness import DaemonCase, accepts, wait_until


class QmailctlTests(DaemonCase):
    def setUp(self) -> None:
        super().setUp()
        if not os.path.exists("/proc/locks"):
            self.skipTest("the system does not tell who holds locks")
        self.addCleanup(self.end)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "QTWISTHOME": self.home}

    def pid(self) -> int | None:
        return daemon(self.home, System())

    def end(self) -> None:
        """Whatever happened, no daemon is left."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ctl(self, verb: str) -> str:
        return self.run_command("qmailctl", verb)

    def log(self) -> str:
        with open(os.path.join(self.home, "log", "send"), encoding="ascii") as file:
            return file.read()

    def test_life(self) -> None:
        """Start, pause, go on, reread, flush, restart, stop: each seen in the state, in the log, or on the port."""
        self.assertIn(f"{self.home}: down\n", self.ctl("stat"))
        self.ctl("start")
        pid = self.pid()
        assert pid is not None
        self.assertTrue(accepts(self.port))
        self.assertRegex(self.ctl("stat"), rf"(?m)^{re.escape(self.home)}: up \(pid {pid}\) \d+ seconds$")
        self.ctl("start")
        self.assertEqual(self.pid(), pid)

        self.ctl("pause")
        wait_until("a paused daemon", lambda: "seconds, paused\n" in self.ctl("stat"))
        self.ctl("cont")
        wait_until("a daemon that goes on", lambda: "paused" not in self.ctl("stat"))

        self.write_dotqmail("later", "|exit 111\n")
        self.send([self.address.replace("@", "-later@")])
        wait_until("a deferral", lambda: "deferral" in self.log())
        wait_until("the message to become files", lambda: "messages in queue: 1\n" in self.ctl("queue"))
        self.assertRegex(self.ctl("queue"), r"messages in queue: 1\n(?s:.*)<joe@client.test> \n\tlocal\t\S+-later@")
        self.ctl("flush")
        wait_until("another try", lambda: self.log().count("deferral") == 2)

        os.rename(os.path.join(self.home, "log", "send"), os.path.join(self.home, "log", "send.old"))
        self.ctl("hup")
        wait_until("a new log file", lambda: os.path.exists(os.path.join(self.home, "log", "send")))

        self.ctl("restart")
        other = self.pid()
        self.assertNotIn(other, (None, pid))
        self.ctl("pause")
        self.ctl("stop")
        self.assertIsNone(self.pid())
        self.assertFalse(accepts(self.port))
        self.assertIn("status: exiting", self.log())
        self.assertIn("messages in queue: 1\n", self.ctl("stat"))
