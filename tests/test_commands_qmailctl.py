"""Tests of qmailctl: *Life with qmail* 2.8.2.1, spec/related.md §5.1, §5.2, §5.4. In e2e/ is one with a daemon."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from qtwist.commands import qmailctl, streams, supervision
from qtwist.files.cdb import CDB
from qtwist.queue.layout import create_queue
from tests.command_tools import CommandCase

PID = 4711
TAI = (1 << 62) + 10


class Machine(supervision.System):
    """A system of files in a directory, with a daemon that does what signals say."""

    def __init__(self, case: QmailctlCase) -> None:
        self.case = case
        self.proc = case.path("proc")
        self.service_roots = (case.path("none"), case.path("service"))
        self.systemd = case.path("systemd")
        self.signals: list[tuple[int, signal.Signals]] = []
        self.calls: list[tuple[str, ...]] = []
        self.started: list[tuple[Sequence[str], Mapping[str, str]]] = []
        self.answers: dict[str, str] = {}
        self.code = 0

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        self.calls.append(arguments)
        return self.code, self.answers.get(arguments[-1], "")

    def kill(self, pid: int, number: int) -> None:
        if number:
            self.signals.append((pid, signal.Signals(number)))
        if number == signal.SIGTERM:
            self.case.lock(None)

    def start(self, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
        self.started.append((arguments, environ))
        if self.code == 0:
            self.case.lock(PID)
        return self.code


class QmailctlCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        create_queue(self.path("queue"))
        self.write("proc/uptime", b"5000.25 1.00\n")
        self.machine = Machine(self)
        self.lock(None)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("QTWIST")}
        self.patch(os, "environ", {**environ, "QTWISTHOME": self.home})
        self.patch(streams, "write_all", self.take)
        self.patch(sys, "stdout", io.StringIO())
        self.patch(sys, "stderr", io.StringIO())
        self.printed = b""

    def take(self, fd: int, data: bytes) -> None:
        self.printed += data

    def lock(self, pid: int | None, blocked: int = 99) -> None:
        """Let a process hold the queue's lock, as /proc/locks shows it, or nobody."""
        status = os.stat(self.path("queue/lock/sendmutex"))
        place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} 0 EOF"
        lines = f"1: POSIX  ADVISORY  WRITE 77 {place}\n2: FLOCK  ADVISORY  WRITE 78 00:00:1 0 EOF\n"
        if pid is not None:
            lines += f"3: FLOCK  ADVISORY  WRITE {pid} {place}\n3: -> FLOCK  ADVISORY  WRITE {blocked} {place}\n"
        self.write("proc/locks", lines.encode())

    def run_verb(self, verb: str) -> int:
        try:
            return qmailctl.main([verb], self.machine)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code

    def complaint(self) -> str:
        return sys.stderr.getvalue()  # type: ignore[attr-defined, no-any-return]


class AloneTests(QmailctlCase):
    """The daemon by itself, found as the holder of the lock."""

    def test_signals(self) -> None:
        self.lock(PID)
        for verb, number in (
            ("pause", signal.SIGSTOP),
            ("cont", signal.SIGCONT),
            ("doqueue", signal.SIGALRM),
            ("flush", signal.SIGALRM),
            ("alarm", signal.SIGALRM),
            ("reload", signal.SIGHUP),
            ("hup", signal.SIGHUP),
        ):
            self.machine.signals.clear()
            self.assertEqual(self.run_verb(verb), 0)
            self.assertEqual(self.machine.signals, [(PID, number)], verb)

    def test_flush_clears(self) -> None:
        """Without a daemon, too, the table of timeouts is cleared; that mail was not tried is told."""
        self.write("queue/lock/tcpto", b"x" * 1024)
        self.assertEqual(self.run_verb("flush"), 111)
        self.assertEqual(self.read("queue/lock/tcpto"), bytes(1024))
        self.assertIn("the daemon does not run", self.complaint())

    def test_stop(self) -> None:
        """TERM, and CONT, as one that is paused could not end; no daemon is no error."""
        self.lock(PID)
        self.assertEqual(self.run_verb("stop"), 0)
        self.assertEqual(self.machine.signals, [(PID, signal.SIGTERM), (PID, signal.SIGCONT)])
        self.assertEqual(self.run_verb("stop"), 0)

    def test_stop_takes_a_moment(self) -> None:
        """It is waited for, and success means that it has ended."""
        self.lock(PID)
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                self.lock(None)

        self.patch(self.machine, "kill", lambda pid, number: None)
        self.patch(supervision.time, "sleep", pause)
        self.assertEqual((self.run_verb("stop"), self.complaint()), (0, ""))
        self.assertEqual(len(pauses), 3)

    def test_slow_stop(self) -> None:
        """A delivery that takes long is told, not killed."""
        self.lock(PID)
        self.patch(self.machine, "kill", lambda pid, number: None)
        self.patch(supervision, "PATIENCE", 0.0)
        self.patch(supervision, "PAUSE", 0.001)
        self.assertEqual(self.run_verb("stop"), 111)
        self.assertIn(f"process {PID} has not ended yet", self.complaint())

    def test_start(self) -> None:
        """By twistd, with a home, and little of our environment; not a second time."""
        self.patch(os, "geteuid", lambda: 1000)
        os.environ["SECRET"] = "x"
        os.environ["LC_TIME"] = "C"
        self.assertEqual(self.run_verb("start"), 0)
        (arguments, environ), *more = self.machine.started
        self.assertEqual(arguments[-3:], ["qtwist", "--home", self.home])
        self.assertNotIn("SECRET", environ)
        self.assertEqual(environ["LC_TIME"], "C")
        self.assertEqual(self.run_verb("start"), 0)
        self.assertEqual((more, len(self.machine.started)), ([], 1))

    def test_account(self) -> None:
        """Root starts it under the queue's account and writes no files, or in a home of root's as the roles' accounts;
        others start it with pid file and log."""
        status = os.stat(self.path("queue"))
        self.patch(os, "geteuid", lambda: 0)
        if status.st_uid == 0:
            self.assertEqual(self.run_verb("start"), 0)
            arguments = list(self.machine.started.pop()[0])
            self.assertNotIn("--uid", arguments)
            self.assertIn("--syslog", arguments)
            self.lock(None)
            os.chown(self.home, 12, 34)
            self.assertEqual(self.run_verb("start"), 111)
            self.assertIn("belongs to root", self.complaint())
            os.chown(self.path("queue"), 12, 34)
            status = os.stat(self.path("queue"))
        self.assertEqual(self.run_verb("start"), 0)
        arguments = list(self.machine.started[-1][0])
        place = arguments.index("--uid")
        self.assertEqual(arguments[place : place + 4], ["--uid", str(status.st_uid), "--gid", str(status.st_gid)])
        self.assertIn("--syslog", arguments)
        self.lock(None)
        self.patch(os, "geteuid", lambda: 1000)
        self.write("run/qtwist.pid", b"1")
        self.assertEqual(self.run_verb("start"), 0)
        arguments = list(self.machine.started[-1][0])
        self.assertEqual(arguments[arguments.index("--pidfile") + 1], self.path("run/qtwist.pid"))
        self.assertNotIn("--uid", arguments)
        self.assertFalse(os.path.exists(self.path("run/qtwist.pid")))  # a stale one would keep twistd from starting

    def test_start_fails(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        self.machine.code = 1
        self.assertEqual(self.run_verb("start"), 111)
        self.assertIn("the daemon did not start", self.complaint())

    def test_restart(self) -> None:
        self.patch(os, "geteuid", lambda: 1000)
        self.lock(PID)
        self.assertEqual(self.run_verb("restart"), 0)
        self.assertEqual(self.machine.signals[0], (PID, signal.SIGTERM))
        self.assertEqual(len(self.machine.started), 1)

    def test_stat(self) -> None:
        """In svstat's words, then the two lines of qmail-qstat."""
        counts = b"messages in queue: 0\nmessages in queue but not yet preprocessed: 0\n"
        self.assertEqual(self.run_verb("stat"), 0)
        self.assertEqual(self.printed, f"{self.home}: down\n".encode() + counts)
        ticks = os.sysconf("SC_CLK_TCK") * 4000
        for state, note in (("S", ""), ("T", ", paused")):
            self.printed = b""
            self.lock(PID)
            self.write(f"proc/{PID}/stat", f"{PID} (a) b) {state} {'0 ' * 18}{ticks} 0\n".encode())
            self.assertEqual(self.run_verb("stat"), 0)
            self.assertEqual(self.printed, f"{self.home}: up (pid {PID}) 1000 seconds{note}\n".encode() + counts)

    def test_other_device_number(self) -> None:
        """Some file systems show another device in /proc/locks: then the process has to have the file open."""
        path = self.path("queue/lock/sendmutex")
        self.write("proc/locks", f"1: FLOCK  ADVISORY  WRITE {PID} ff:ff:{os.stat(path).st_ino} 0 EOF\n".encode())
        self.assertEqual(supervision.daemon(self.home, self.machine), None)
        os.makedirs(self.path(f"proc/{PID}/fd"))
        os.symlink(path, self.path(f"proc/{PID}/fd/5"))
        self.assertEqual(supervision.daemon(self.home, self.machine), PID)

    def test_unknown_process(self) -> None:
        """A process outside of our container has no number here."""
        self.lock(0)
        self.assertEqual(supervision.daemon(self.home, self.machine), None)

    def test_pid_file(self) -> None:
        """Where the system does not tell who holds locks."""
        os.unlink(self.path("proc/locks"))
        self.assertEqual(supervision.daemon(self.home, self.machine), None)
        self.write("run/qtwist.pid", b"4711\n")
        self.assertEqual(supervision.daemon(self.home, self.machine), PID)
        self.write("run/qtwist.pid", b"rubbish")
        self.assertEqual(supervision.daemon(self.home, self.machine), None)


class SupervisedTests(QmailctlCase):
    """daemontools or runit: letters into supervise/control."""

    def setUp(self) -> None:
        super().setUp()
        self.directory = self.path("service/mail")
        self.write("service/mail/run", f"#!/bin/sh\nexec twistd -n qtwist --home {self.home}\n".encode())
        os.mkdir(self.path("service/mail/supervise"))
        for name in ("control", "ok"):
            os.mkfifo(self.path("service/mail/supervise", name))

    def supervise(self, pid: int = PID, paused: int = 0, want: bytes = b"u", since: int = 0) -> int:
        """Let a supervisor run; a descriptor of what it is told."""
        ends = [
            os.open(self.path("service/mail/supervise", name), os.O_RDONLY | os.O_NONBLOCK)
            for name in ("control", "ok")
        ]
        for end in ends:
            self.addCleanup(os.close, end)
        status = (TAI + since).to_bytes(8, "big") + bytes(4) + pid.to_bytes(4, "little") + bytes([paused]) + want
        self.write("service/mail/supervise/status", status)
        return ends[0]

    def test_letters(self) -> None:
        """§5.1, §5.2."""
        control = self.supervise()
        self.lock(PID)
        for verb, letters in (
            ("start", b"u"),
            ("stop", b"dc"),
            ("restart", b"tcu"),
            ("pause", b"p"),
            ("cont", b"c"),
            ("flush", b"a"),
            ("hup", b"h"),
        ):
            self.assertEqual(self.run_verb(verb), 0)
            self.assertEqual(os.read(control, 99), letters, verb)
        self.assertEqual(self.machine.signals, [])

    def test_found(self) -> None:
        """By the process it runs; while it is down, by its run file, which names our home."""
        self.supervise()
        environ: dict[str, str] = {}
        for pid, run, expected in (
            (PID, b"", self.directory),
            (PID + 1, b"exec twistd qtwist --home " + self.home.encode(), self.home),
            (None, b"exec twistd qtwist --home " + self.home.encode(), self.directory),
            (None, b"exec qmail-start " + self.home.encode(), self.home),
            (None, b"exec twistd qtwist --home /another", self.home),
        ):
            self.lock(pid)
            self.write("service/mail/run", run)
            self.assertEqual(supervision.find(self.home, self.machine, environ).name, expected, (pid, run))
        environ["QTWISTSERVICE"] = "/x"
        self.assertEqual(supervision.find(self.home, self.machine, environ).name, "/x")

    def test_not_running(self) -> None:
        """§5.2, §5.4: nobody reads the FIFO."""
        self.assertEqual(self.run_verb("start"), 111)
        self.assertIn(f"{self.directory}: supervise not running", self.complaint())
        self.assertEqual(supervision.svstat(self.directory, 0), f"{self.directory}: supervise not running")

    def test_svstat(self) -> None:
        """§5.4: all of its words."""
        for pid, paused, want, down, expected in (
            (PID, 0, b"u", False, "up (pid 4711) 90 seconds"),
            (PID, 1, b"d", True, "up (pid 4711) 90 seconds, normally down, paused, want down"),
            (0, 0, b"d", True, "down 90 seconds"),
            (0, 0, b"u", False, "down 90 seconds, normally up, want up"),
        ):
            self.supervise(pid, paused, want, since=1000)
            if down:
                self.write("service/mail/down", b"")
            elif os.path.exists(self.path("service/mail/down")):
                os.unlink(self.path("service/mail/down"))
            self.assertEqual(supervision.svstat(self.directory, 1090.5), f"{self.directory}: {expected}")
        self.write("service/mail/supervise/status", b"short")
        self.assertIn("unable to read", supervision.svstat(self.directory, 0))

    def test_stat(self) -> None:
        """With the logger's state, if there is one."""
        self.supervise()
        self.lock(PID)
        os.mkdir(self.path("service/mail/log"))
        self.assertEqual(self.run_verb("stat"), 0)
        lines = self.printed.decode().splitlines()
        self.assertTrue(lines[0].startswith(f"{self.directory}: up (pid {PID}) "), lines)
        self.assertEqual(lines[1], f"{self.directory}/log: supervise not running")
        self.assertEqual(lines[2], "messages in queue: 0")


class SystemdTests(QmailctlCase):
    def setUp(self) -> None:
        super().setUp()
        os.mkdir(self.path("systemd"))
        self.write(f"proc/{PID}/cgroup", b"0::/system.slice/mail.service\n")

    def test_running(self) -> None:
        """The unit whose main process it is. Signals go to the process."""
        self.lock(PID)
        self.machine.answers["mail.service"] = f"MainPID={PID}\n"
        self.assertEqual(self.run_verb("restart"), 0)
        self.assertEqual(self.machine.calls[-1], ("restart", "mail.service"))
        self.assertEqual(self.run_verb("hup"), 0)
        self.assertEqual(self.machine.signals, [(PID, signal.SIGCONT), (PID, signal.SIGHUP)])
        self.assertEqual(self.run_verb("stop"), 0)
        self.assertEqual(self.machine.calls[-1], ("stop", "mail.service"))

    def test_started_from_a_unit(self) -> None:
        """A daemon that cron started, say, is no part of cron's unit to be stopped."""
        self.lock(PID)
        self.machine.answers["mail.service"] = "MainPID=1\n"
        self.assertEqual(self.run_verb("stop"), 0)
        self.assertEqual(self.machine.signals[0], (PID, signal.SIGTERM))
        self.assertFalse([call for call in self.machine.calls if call[0] != "show"])

    def test_down(self) -> None:
        """qtwist.service, if that is about our home."""
        self.patch(os, "geteuid", lambda: 1000)
        self.machine.answers["qtwist.service"] = f"LoadState=loaded\nExecStart=twistd -n qtwist --home {self.home}\n"
        self.assertEqual(self.run_verb("start"), 0)
        self.assertEqual((self.machine.calls[-1], self.machine.started), (("start", "qtwist.service"), []))
        self.machine.answers["qtwist.service"] = "LoadState=loaded\nExecStart=twistd -n qtwist --home /another\n"
        self.assertEqual(self.run_verb("start"), 0)
        self.assertEqual(len(self.machine.started), 1)

    def test_failure(self) -> None:
        os.environ["QTWISTUNIT"] = "x.service"
        self.machine.code = 5
        self.assertEqual(self.run_verb("start"), 111)
        self.assertIn("systemctl start x.service ended with 5", self.complaint())


class OtherVerbTests(QmailctlCase):
    def test_cdb(self) -> None:
        """The home's own rules before those in /etc; readable for everybody."""
        self.write("control/tcp.smtp", b'127.:allow,RELAYCLIENT=""\n')
        mask = os.umask(0o077)
        self.addCleanup(os.umask, mask)
        self.assertEqual(self.run_verb("cdb"), 0)
        path = self.path("control/tcp.smtp.cdb")
        with CDB(path) as database:
            self.assertEqual(list(database), [(b"127.", b"+RELAYCLIENT=\0")])
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o644)
        self.write("control/tcp.smtp", b"127.:permit\n")
        self.assertEqual(self.run_verb("cdb"), 100)
        self.assertIn("127.:permit", self.complaint())

    def test_cdb_in_etc(self) -> None:
        self.patch(qmailctl, "_RULES", self.write("etc/tcp.smtp", b":allow\n"))
        self.assertEqual(self.run_verb("cdb"), 0)
        self.assertTrue(os.path.exists(self.path("etc/tcp.smtp.cdb")))
        self.patch(qmailctl, "_RULES", self.path("etc/none"))
        self.assertEqual(self.run_verb("cdb"), 111)

    def test_queue(self) -> None:
        """qmail-qstat's lines, then qmail-qread's."""
        self.write("queue/mess/1/1", b"x")
        self.write("queue/info/1/1", b"Fs@x\0")
        self.assertEqual(self.run_verb("queue"), 0)
        lines = self.printed.splitlines()
        self.assertEqual(lines[0], b"messages in queue: 1")
        self.assertIn(b"#1  1  <s@x> ", lines[2])

    def test_words(self) -> None:
        """LWQ 2.8.2.1: every verb is there; others are wrong use."""
        for verb in "start stop restart stat pause cont doqueue flush alarm reload hup upgrade queue cdb help".split():  # noqa: SIM905
            self.assertIn(verb, qmailctl.VERBS)
            self.assertIn(f"\n    {verb} ", qmailctl.USAGE)
        self.assertEqual(self.run_verb("help"), 0)
        self.assertEqual(sys.stdout.getvalue(), qmailctl.USAGE)  # type: ignore[attr-defined]
        self.assertEqual(self.run_verb("status"), 100)
        self.assertRaises(SystemExit, qmailctl.main, [], self.machine)
