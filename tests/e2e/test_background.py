"""twistd in the background: pid file, log files, rotation, and a clear refusal."""

from __future__ import annotations

import os
import signal
import subprocess

from tests.e2e.harness import PATIENCE, DaemonCase, accepts, wait_until


class BackgroundTests(DaemonCase):
    def twistd(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run twistd until it has sent its daemon into the background, or has failed to."""
        self.pidfile = os.path.join(self.directory, f"{name}.pid")
        logfile = os.path.join(self.directory, f"{name}.log")
        options = ["--pidfile", self.pidfile, "--logfile", logfile]
        return subprocess.run(
            self.runtime.command("twistd", *options, "qtwist", "--home", self.home),
            check=False,
            cwd=self.directory,
            env=self.runtime.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )

    def daemon_pid(self) -> int:
        with open(self.pidfile) as file:
            pid = int(file.read())
        self.addCleanup(self.end, pid)
        return pid

    def end(self, pid: int) -> None:
        if self.runs(pid):
            os.kill(pid, signal.SIGKILL)

    def runs(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def mail_log(self, name: str = "send") -> str:
        try:
            with open(os.path.join(self.home, "log", name)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def test_life(self) -> None:
        started = self.twistd("first")
        self.assertEqual((started.returncode, started.stdout, started.stderr), (0, "", ""))
        pid = self.daemon_pid()
        wait_until("a listener", lambda: accepts(self.port))
        self.send([self.address])
        wait_until("the delivery", lambda: "end msg " in self.mail_log())
        self.assertEqual(len(self.maildir()), 1)

        second = self.twistd("second")
        self.assertEqual(second.returncode, 1)
        self.assertIn("is running on this queue", second.stderr)
        self.assertEqual(second.stderr.count("\n"), 1, second.stderr)

        # A log is rotated by moving it away and sending HUP.
        log = os.path.join(self.home, "log", "send")
        os.rename(log, log + ".old")
        os.kill(pid, signal.SIGHUP)
        wait_until("a new log file", lambda: os.path.exists(log))
        os.kill(pid, signal.SIGTERM)
        wait_until("the end of the daemon", lambda: not self.runs(pid))
        self.assertEqual(self.mail_log(), "status: exiting\n")
        self.assertIn("end msg ", self.mail_log("send.old"))
