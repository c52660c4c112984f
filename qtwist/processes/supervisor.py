"""The daemon started as root: it opens the ports, starts the roles under their accounts, and keeps them running.

Only lspawn (:mod:`qtwist.local.lspawn`) stays root. The supervisor becomes qmaill as soon as lspawn runs, and starts
the roles through it, from a table that lspawn was given before. A role that dies is started again, sooner the longer
it had run; without lspawn nothing can be started, so its end is the end of the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from typing import Any

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger, LogLevel
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

import qtwist
from qtwist.control import CONTROL_FILES
from qtwist.events import SWITCH
from qtwist.home import SERVED, Home
from qtwist.local import lspawn
from qtwist.local.becoming import no_new_privileges
from qtwist.processes.accounts import RoleAccount, find_accounts
from qtwist.processes.confine import forbid_network
from qtwist.processes.ownership import check_trusted, claim
from qtwist.processes.packets import PacketConnection
from qtwist.roles import StartError, open_port
from qtwist.send.log import LogFile

#: Seconds until a role that died is started again: at first, and at most. It doubles with every death.
FIRST_DELAY = 0.1
LONGEST_DELAY = 60.0
#: A role that ran for so many seconds has recovered.
RECOVERED = 60.0
#: Seconds that servers get to end, beyond what they allow their clients; then they are killed.
PATIENCE = 60.0

#: Servers that ask whether recipients exist.
ASKING = ("smtpd", "qmtpd")

_PATH = "/usr/local/bin:/usr/bin:/bin"
_log = Logger(namespace="qtwist.supervisor")


def work_in_batches() -> None:
    """Do not take the processor from another process, this one and those that it starts, as soon as something has come.

    A message goes through five processes. If each takes the processor from the one that has just sent it something,
    each handles one thing at a time; as SCHED_BATCH they wait until that one has no more to do. Where that is not to be
    had, nothing is lost but time (doc/performance.md).
    """
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


@attrs.frozen
class Kind:
    """A role: what its process is called with, and under which account. `listening` are its ports."""

    name: str
    account: RoleAccount
    options: tuple[str, ...] = ()
    listening: tuple[tuple[bytes, socket.socket], ...] = ()  # each with the order that goes with it

    def table_entry(self, home: str, environ: dict[str, str]) -> dict[str, Any]:
        """As lspawn wants it."""
        return {
            "uid": self.account.uid,
            "gid": self.account.gid,
            "groups": list(self.account.groups),
            "argv": [sys.executable, "-s", "-m", "qtwist.processes.role", self.name, home, *self.options],
            "environ": environ,
        }


class _Lines(LineOnlyReceiver):
    """What a role has to say, a line at a time."""

    delimiter = b"\n"
    MAX_LENGTH = 65536

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def lineReceived(self, line: bytes) -> None:
        self._take(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The role has ended, which is told elsewhere."""


class _NobodyFactory(Factory):
    """Stands behind a port that others serve."""

    noisy = False


class _LinesFactory(Factory):
    noisy = False

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take

    def buildProtocol(self, addr: Any) -> _Lines:
        return _Lines(self._take)


class Process:
    """One process of a role, and those that take its place when it dies."""

    def __init__(self, supervisor: Supervisor, kind: Kind) -> None:
        self.kind = kind
        self.pid = 0  # 0 until lspawn has said it
        self.stopping = False
        self.ended: Deferred[None] = Deferred()  # fires when it was stopped and has ended
        self._supervisor = supervisor
        self._connection: PacketConnection | None = None
        self._delay = FIRST_DELAY
        self._began = 0.0
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Have lspawn start it."""
        supervisor = self._supervisor
        self._timer = None
        self._began = supervisor.clock.seconds()
        ours, theirs = PacketConnection.pair()
        self._connection = PacketConnection(supervisor.reactor, ours, self._told, lambda: None)
        fds = [supervisor.output(self.kind), supervisor.line_socket(self._say), theirs.detach()]
        supervisor.ask_lspawn(b"start " + self.kind.name.encode(), fds)
        for fd in fds:
            os.close(fd)
        supervisor.starting(self)
        for word, port in self.kind.listening:
            self._connection.send(word, [port.fileno()])
        self._connection.send(b"start")
        supervisor.connect(self)

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is to be started again."""
        return self._connection is not None or self._timer is not None

    def tell(self, word: bytes, fds: tuple[int, ...] = ()) -> None:
        """An order; lost when the process is not there."""
        if self._connection is not None:
            self._connection.send(word, fds)

    def stop(self) -> Deferred[None]:
        """Let it end what it does; fires when it has ended."""
        self.stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.ended.callback(None)
        self.tell(b"stop")
        return self.ended

    def has_ended(self, code: int) -> None:
        """lspawn says so; `code` is an exit code, negative for a signal."""
        supervisor = self._supervisor
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.pid = 0
        if self.stopping:
            if not self.ended.called:
                self.ended.callback(None)
            return
        now = supervisor.clock.seconds()
        if now - self._began >= RECOVERED:
            self._delay = FIRST_DELAY
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        _log.emit(
            LogLevel.error if code else LogLevel.info,
            "{role} ended ({how}), starts again in {delay} s",
            role=self.kind.name,
            how=how,
            delay=self._delay,
        )
        self._timer = supervisor.clock.callLater(self._delay, self.start)
        self._delay = min(2 * self._delay, LONGEST_DELAY)

    def _told(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        if packet == b"ready":
            self._supervisor.is_ready(self)
        elif packet.startswith(b"failed "):
            self._supervisor.has_failed(self, packet[7:].decode("utf-8", "replace"))

    def _say(self, line: bytes) -> None:
        about: dict[str, Any] = {"role": self.kind.name, "pid": self.pid}
        text, events, is_event = line.decode("utf-8", "backslashreplace"), self._supervisor.home.events, False
        if events is not None and line.startswith(b"{"):
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                events.take({**event, **about})
                is_event = True
                if event.get("level") in ("debug", "") or event.get("namespace") == "qtwist.send":
                    return
                text = f"[{event.get('level')}] {event.get('text')}"
                if "traceback" in event:
                    text += f"\n{event['traceback']}"
        _log.info("{role}[{pid}] {text}", text=text, is_passed_on=is_event, **about)


class Supervisor(Service):
    """The roles of a home, each under its account.

    `give_up` is called when the daemon cannot go on: with a text when it never got up, with None when lspawn is lost;
    `ready` once, when all roles run. With `open_events`, which is called as qmaill, roles send their events as JSON.
    """

    name = "supervisor"

    def __init__(
        self,
        home: Home,
        pidfile: str | None,
        give_up: Callable[[str | None], None],
        ready: Callable[[], None],
        open_events: Callable[[], None] | None = None,
    ) -> None:
        self.home = home
        self.reactor = home.reactor
        self.clock = home.reactor
        self._pidfile = os.path.abspath(pidfile) if pidfile else None
        self._give_up = give_up
        self._ready = ready
        self._open_events = open_events
        self._waited_for: set[Process] = set()  # have not said yet that they are ready
        self._accounts: dict[str, RoleAccount] = {}
        self.processes: list[Process] = []
        self._logging_in: list[str] = []  # kinds of servers whose clients log in
        self._unnamed: dict[str, list[Process]] = {}  # started, and lspawn has not yet said as what
        self._lspawn: PacketConnection | None = None
        self._lspawn_process: subprocess.Popen[bytes] | None = None
        self._lspawn_gone: Deferred[None] = Deferred()
        self._up = False
        self._stopping = False
        self._log_file: LogFile | None = None

    # As root

    def privilegedStartService(self) -> None:
        """Open the ports and start lspawn. StartError or ControlError when that cannot be."""
        super().privilegedStartService()
        home = self.home
        self._accounts = find_accounts(home.control)
        check_readable(self._accounts["qmaild"])
        check_trusted(home)
        claim(home, self._accounts)
        environ = role_environment()
        if self._open_events is not None:
            environ[SWITCH] = "1"
        kinds = self._kinds()
        self.processes = [Process(self, kind) for kind, number in kinds for _ in range(number)]
        self._waited_for = set(self.processes)
        lookup = self._accounts["qmailp"]
        defaults = {name: CONTROL_FILES[name].default for name in ("defaultdelivery", "timeoutlocal")}
        config = {
            "home": home.path,
            "queue": self._accounts["qmailq"].uid,
            "lookup": (lookup.uid, lookup.gid),
            "roles": {kind.name: kind.table_entry(home.path, environ) for kind, _ in kinds},
            "pidfile": self._pidfile,
            "defaults": {
                "defaultdelivery": os.fsdecode(defaults["defaultdelivery"]),  # type: ignore[arg-type]
                "timeoutlocal": defaults["timeoutlocal"],
                "path": f"{sysconfig.get_path('scripts')}:{_PATH}",
            },
        }
        work_in_batches()
        ours, theirs = PacketConnection.pair()
        self._lspawn_process = subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(lspawn.__file__), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={},
            cwd="/",
        )
        theirs.close()
        assert self._lspawn_process.stdin is not None
        with self._lspawn_process.stdin as pipe:
            pipe.write(json.dumps(config).encode())
        self._lspawn_socket = ours

    def _kinds(self) -> list[tuple[Kind, int]]:
        """What to start, and how many of each."""
        home, accounts = self.home, self._accounts
        server = accounts["qmaild"]
        kinds = [(Kind("send", accounts["qmailq"], (str(server.uid),)), 1), (Kind("rspawn", accounts["qmailr"]), 1)]
        workers = home.control.integer("smtpdworkers") or len(os.sched_getaffinity(0))
        for name in dict.fromkeys(SERVED.values()):
            listeners = home.listeners(name)
            if listeners:
                number = workers if name == "smtpd" else 1
                ports = [open_port(home, listener, _NobodyFactory()) for listener in listeners]
                for port in ports:
                    port.stopReading()  # type: ignore[attr-defined]  # the clients are for the workers
                words = [b"listen-tls" if listener.implicit_tls else b"listen" for listener in listeners]
                sockets = [port.socket for port in ports]  # type: ignore[attr-defined]
                kinds.append((Kind(name, server, (str(number),), tuple(zip(words, sockets, strict=True))), number))
        self._logging_in = [
            kind.name
            for kind, _ in kinds
            if kind.name in ("pop3d", "submission") or (kind.name == "smtpd" and home.control.integer("smtpauth"))
        ]
        if self._logging_in:
            kinds.insert(0, (Kind("auth", accounts["qmailp"]), 1))
        return kinds

    # As qmaill

    def startService(self) -> None:
        super().startService()
        account = self._accounts["qmaill"]
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
        no_new_privileges()
        if self.home.control.integer("confine"):
            forbid_network()
        if self.home.maillog is not None:
            try:
                self._log_file = LogFile(self.home.maillog)
            except OSError as error:
                raise StartError(
                    f"{self.home.maillog}: {error.strerror}, expected a log file that {account.name} may append to"
                ) from error
        if self._open_events is not None:
            self._open_events()
        self._lspawn = PacketConnection(self.reactor, self._lspawn_socket, self._lspawn_said, self._lspawn_lost)
        # The queue manager first: the servers need its door.
        for process in self.processes:
            if process.kind.name == "send":
                process.start()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        groups: list[list[Process]] = [[], [], []]
        for process in self.processes:
            groups[{"send": 1, "rspawn": 2}.get(process.kind.name, 0)].append(process)
        for group in groups:  # those that take mail, then the queue manager, then those that deliver for it
            running = [process for process in group if process.is_alive]
            if running and self._lspawn is not None:
                await DeferredList([process.stop() for process in running])
        if self._lspawn is not None:
            self._lspawn.close()
            self._lspawn = None
        self._wait_for_lspawn()
        await self._lspawn_gone

    def _wait_for_lspawn(self) -> None:
        assert self._lspawn_process is not None
        if self._lspawn_process.poll() is None:
            self.clock.callLater(0.02, self._wait_for_lspawn)
        elif not self._lspawn_gone.called:
            self._lspawn_gone.callback(None)

    def reread(self) -> None:
        """HUP."""
        if self._log_file is not None:
            try:
                self._log_file.reopen()
            except OSError as error:
                _log.error("unable to reopen {path}: {error}", path=self.home.maillog, error=error)
        self._tell_all(b"hup")

    def retry_all(self) -> None:
        """ALRM."""
        self._tell_all(b"alrm")

    def restart_servers(self) -> None:
        """Replace the servers, one kind's process after the other, by new ones with the code as it is now on disk.

        The ports stay open all the time.
        """
        for process in self.processes:
            if process.kind.listening:
                process.tell(b"stop")

    def _tell_all(self, word: bytes) -> None:
        for process in self.processes:
            process.tell(word)

    # What processes need

    def ask_lspawn(self, packet: bytes, fds: list[int]) -> None:
        if self._lspawn is not None:
            self._lspawn.send(packet, fds)

    def starting(self, process: Process) -> None:
        self._unnamed.setdefault(process.kind.name, []).append(process)

    def line_socket(self, take: Callable[[bytes], None]) -> int:
        """A descriptor to write lines to, which go to `take`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, _LinesFactory(take))
        ours.close()
        return theirs.detach()

    def output(self, kind: Kind) -> int:
        """A descriptor for the standard output of a role: for the queue manager, qmail's log."""
        if kind.name != "send":
            return os.open(os.devnull, os.O_WRONLY)
        if self._log_file is None:
            return os.dup(1)
        log = self._log_file
        return self.line_socket(lambda line: log.write(line + b"\n"))

    def connect(self, process: Process) -> None:
        """Give a process that starts its connections to the others."""
        kind = process.kind.name
        if kind == "send":
            self._pair(process, b"local", lambda fd: self.ask_lspawn(b"sender", [fd]))
            for other in self._of("rspawn"):
                self._pair(process, b"remote", lambda fd, other=other: other.tell(b"sender", (fd,)))  # type: ignore[misc]
        elif kind == "rspawn":
            for sender in self._of("send"):
                self._pair(sender, b"remote", lambda fd: process.tell(b"sender", (fd,)))
        elif kind == "auth":
            self._pair(process, b"mailboxes", lambda fd: self.ask_lspawn(b"logins", [fd]))
            for server in (one for name in self._logging_in for one in self._of(name)):
                self._pair(server, b"logins", lambda fd: process.tell(b"logins", (fd,)))
        if kind in ASKING:
            self._pair(process, b"recipients", lambda fd: self.ask_lspawn(b"recipients", [fd]))
        if kind in self._logging_in:
            for other in self._of("auth"):
                self._pair(process, b"logins", lambda fd, other=other: other.tell(b"logins", (fd,)))  # type: ignore[misc]

    def _pair(self, sender: Process, word: bytes, tell: Callable[[int], None]) -> None:
        one, other = PacketConnection.pair()
        sender.tell(word, (one.fileno(),))
        tell(other.fileno())
        one.close()
        other.close()

    def _of(self, name: str) -> list[Process]:
        return [process for process in self.processes if process.kind.name == name]

    def is_ready(self, process: Process) -> None:
        if process.kind.name == "send" and not self._up:
            self._up = True
            for other in self.processes:
                if other is not process:
                    other.start()
        if process in self._waited_for:
            self._waited_for.remove(process)
            if not self._waited_for:
                self._ready()

    def has_failed(self, process: Process, text: str) -> None:
        _log.error("{role}: {text}", role=process.kind.name, text=text)
        if not self._up:
            process.stopping = True
            self._give_up(text)

    # lspawn

    def _lspawn_said(self, packet: bytes, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        word, name, *numbers = packet.decode("ascii").split()
        if word == "started":
            process = self._unnamed[name].pop(0)
            process.pid = int(numbers[0])
        elif word == "failed":
            self._unnamed[name].pop(0).has_ended(lspawn.CANNOT_START)
        elif word == "ended":
            pid, code = map(int, numbers)
            for process in self.processes:
                if process.pid == pid:
                    process.has_ended(code)

    def _lspawn_lost(self) -> None:
        self._lspawn = None
        if not self._stopping:
            _log.critical("lspawn has ended; the daemon cannot go on without it")
            self._give_up(None)
        for process in self.processes:
            process.tell(b"stop")
            process.stopping = True
            if not process.ended.called:
                process.ended.callback(None)


def role_environment() -> dict[str, str]:
    """What roles get of root's environment."""
    environ = {"PATH": _PATH, "LC_ALL": "C.UTF-8"}
    for name in ("TZ", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        if name in os.environ:
            environ[name] = os.environ[name]
    return environ


def check_readable(account: RoleAccount) -> None:
    """StartError when `account` cannot run this Python with this qtwist."""
    try:
        done = subprocess.run(
            [sys.executable, "-s", "-c", "import twisted, qtwist"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env=role_environment(),
            capture_output=True,
            check=False,
        )
        can_run = done.returncode == 0
    except OSError:
        can_run = False
    if not can_run:
        raise StartError(
            f"the account {account.name} cannot run {sys.executable} with the package in "
            f"{os.path.dirname(os.path.abspath(qtwist.__file__))}; expected both where every account may read "
            "(not below /root)"
        )
