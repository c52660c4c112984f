"""What the end-to-end tests share: a home each, the daemon as a process, its log, and programs to talk to it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.runtime import runtime

ME = "mx.test"
MESSAGE = "Subject: x\n\nhello\n"
PATIENCE = 60.0  # seconds, for a machine busy with other things; nothing here takes more than a few
PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"


def program(name: str, package: str) -> str:
    """The path of a program from elsewhere; SkipTest where it is not installed."""
    path = shutil.which(name, path=PATH)
    if path is None:
        raise SkipTest(f"{name} is not installed (Debian package {package})")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, ready: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Look, often and for a bounded time, until `ready` is true: for what only another process can tell."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not ready():
        if time.monotonic() > deadline:
            raise AssertionError(f"{timeout:.0f} s passed without {what}")
        pause.wait(0.02)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


class Log:
    """The lines that a process writes, as they come; `times` has the moment of each (time.monotonic)."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.times: list[float] = []
        self.lines: list[str] = []
        self.ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    self.times.append(time.monotonic())
                    self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self.ended = True
            self._news.notify_all()

    def find(self, pattern: str) -> list[str]:
        """The lines so far in which the pattern is found."""
        return [line for line in list(self.lines) if re.search(pattern, line)]

    def wait(self, pattern: str, count: int = 1, timeout: float = PATIENCE) -> list[str]:
        """Wait until `count` lines match; AssertionError with the log's end when they do not come."""
        with self._news:
            self._news.wait_for(lambda: self.ended or len(self.find(pattern)) >= count, timeout)
        found = self.find(pattern)
        if len(found) < count:
            raise AssertionError(f"{len(found)} of {count} lines with {pattern!r} in the log:\n{self}")
        return found

    def close(self) -> None:
        """Wait until the last line is read."""
        self._reader.join(PATIENCE)

    def __str__(self) -> str:
        return "\n".join(self.lines[-60:])


class Daemon:
    """One run of ``twistd -n qtwist --home HOME``."""

    def __init__(self, case: DaemonCase) -> None:
        self.process = subprocess.Popen(
            [
                *case.wrapper,
                *case.runtime.command("twistd", "-n", "--pidfile=", "qtwist", "--home", case.home, *case.options),
            ],
            cwd=case.directory,
            env=case.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **case.identity(),
        )
        assert self.process.stdout is not None
        self.log = Log(self.process.stdout)
        case.addCleanup(self.kill)

    def wait_listening(self, port: int) -> None:
        wait_until(f"a listener on port {port}", lambda: accepts(port) or self.process.poll() is not None)
        if self.process.poll() is not None:
            self.log.close()
            raise AssertionError(f"twistd ended with {self.process.returncode}:\n{self.log}")
        # The kernel takes connections before the daemon does. Its queue runs from the first status line on (§9.1), and
        # when it greets, the reactor runs and signals are handled.
        self.log.wait(r"status: local \d+/\d+ remote \d+/\d+$")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            if connection.recv(3) != b"220":
                raise AssertionError(f"no greeting on port {port}:\n{self.log}")

    def exit_code(self) -> int:
        """Wait for the end of the process."""
        code = self.process.wait(PATIENCE)
        self.log.close()
        return code

    def stop(self) -> int:
        """TERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def kill(self) -> None:
        """Kill -9: no time for a last word. Harmless when it has ended."""
        self.process.kill()
        self.exit_code()


class DaemonCase(SynchronousTestCase):
    """A test with a home in a folder of its own. `control` adds control files to what `qtwist init` writes; `wrapper`
    is a command that the daemon is started with (strace, faketime), `options` are what `twistd qtwist` gets beside."""

    control: dict[str, str] = {}
    wrapper: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.runtime = runtime()
        self.user = self.runtime.account.name
        self.address = f"{self.user}@{ME}"
        self.directory = tempfile.mkdtemp(prefix="qtwist-e2e-")
        self.addCleanup(shutil.rmtree, self.directory)
        if self.runtime.account.switch:
            os.chown(self.directory, self.runtime.account.uid, self.runtime.account.gid)
        self.home = os.path.join(self.directory, "home")
        self.port = free_port()
        self.run_command("init", self.home, "--me", ME, "--port", str(self.port), "--user", self.user)
        for name, text in self.control.items():
            self.write_control(name, text)

    def identity(self) -> dict[str, Any]:
        """The keyword arguments of subprocess that say whom the daemon runs as."""
        return self.runtime.account.identity()

    # --- the home ---

    def environment(self) -> dict[str, str]:
        """What the daemon and the commands get."""
        return self.runtime.environment()

    def run_command(self, name: str, *arguments: str) -> str:
        """Run one of qtwist's commands as the account; its output. AssertionError when it fails."""
        done = subprocess.run(
            self.runtime.command(name, *arguments),
            check=False,
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            **self.runtime.account.identity(),
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        output: str = done.stdout
        return output

    def write(self, path: str, text: str) -> None:
        """Write a file below the home, owned by the account."""
        path = os.path.join(self.home, path)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, 0o644)
        if self.runtime.account.switch:
            os.chown(path, self.runtime.account.uid, self.runtime.account.gid)

    def write_control(self, name: str, text: str) -> None:
        self.write(os.path.join("control", name), text)

    def write_dotqmail(self, extension: str, text: str) -> None:
        self.write(os.path.join("mail", self.user, f".qmail-{extension}"), text)

    def maildir(self, name: str = "Maildir") -> list[bytes]:
        """The new messages of a Maildir of the first mailbox."""
        new = os.path.join(self.home, "mail", self.user, name, "new")
        messages = []
        for entry in sorted(os.listdir(new)):
            with open(os.path.join(new, entry), "rb") as file:
                messages.append(file.read())
        return messages

    def queued(self) -> list[str]:
        """The numbers of the messages in the queue."""
        mess = os.path.join(self.home, "queue", "mess")
        return [name for split in os.listdir(mess) for name in os.listdir(os.path.join(mess, split))]

    def wait_empty_queue(self) -> None:
        """The log's ``end msg`` may come before the last file of a message is gone."""
        wait_until("an empty queue", lambda: not self.queued())

    # --- the daemon and those who talk to it ---

    def start(self) -> Daemon:
        """Start the daemon and wait until it listens. It is ended with the test, whatever happens."""
        daemon = Daemon(self)
        daemon.wait_listening(self.port)
        return daemon

    def send(self, recipients: Sequence[str], text: str = MESSAGE, sender: str = "joe@client.test") -> None:
        with smtplib.SMTP("127.0.0.1", self.port, timeout=PATIENCE) as client:
            client.sendmail(sender, list(recipients), text)

    def run_program(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, check=False, cwd=self.directory, capture_output=True, text=True, timeout=2 * PATIENCE
        )

    def swaks(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """swaks against the daemon; the test is skipped where it is not installed."""
        return self.run_program(program("swaks", "swaks"), "--server", f"127.0.0.1:{self.port}", *arguments)

    def smtp_source(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Postfix's smtp-source against the daemon; the test is skipped where it is not installed."""
        return self.run_program(program("smtp-source", "postfix"), *arguments, f"127.0.0.1:{self.port}")

    def smtp_sink(self, *arguments: str, port: int = 0) -> tuple[int, str]:
        """Start Postfix's smtp-sink; its port, and the folder where it writes each message to a file."""
        folder = os.path.join(self.directory, "sink")
        os.mkdir(folder)
        if self.runtime.account.switch:
            os.chown(folder, self.runtime.account.uid, self.runtime.account.gid)
        port = port or free_port()
        sink = subprocess.Popen(
            [program("smtp-sink", "postfix"), "-d", f"{folder}/message.", *arguments, f"127.0.0.1:{port}", "100"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            **self.runtime.account.identity(),
        )

        def end() -> None:
            sink.kill()
            sink.wait(PATIENCE)

        self.addCleanup(end)
        wait_until("smtp-sink to listen", lambda: accepts(port) or sink.poll() is not None)
        self.assertIsNone(sink.poll(), "smtp-sink did not start")
        return port, folder
