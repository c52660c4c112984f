"""What a role's process runs: ``python -m qtwist.processes.role ROLE HOME``, started by lspawn.

Its descriptors: 1 for qmail's log lines (the queue manager's alone), 2 for its events, 3 the packet socket of the
supervisor, who says what there is to do:

===============  ==========================================================================
``listen``       with a listening socket: serve it (servers)
``listen-tls``   the same, where TLS begins before the first word
``local``        with a packet socket: local deliveries go there (``send``)
``remote``       with a packet socket: remote deliveries go there (``send``)
``sender``       with a packet socket: the queue manager asks for deliveries there (``rspawn``)
``logins``       with a packet socket: a server asks for logins there (``auth``), or the other end of it (servers)
``recipients``   with a packet socket: lspawn says which local parts have mailboxes (servers)
``mailboxes``    with a packet socket: lspawn opens mailboxes there (``auth``)
``start``        begin; answered with ``ready``, or ``failed`` and a text
``hup alrm stop``  as the signals are for the whole daemon
===============  ==========================================================================

When the supervisor is gone, the role stops, within seconds.
"""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import socket
import sys
from typing import Any, NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.auth.mailboxes import Mailboxes
from qtwist.auth.making import make_authenticator
from qtwist.clock import ClockWatch
from qtwist.commands.base import write_all
from qtwist.control import Control, ControlError
from qtwist.events import SWITCH, Events, event_text
from qtwist.home import Home
from qtwist.policy.serving import asks_network
from qtwist.processes.confine import forbid_network
from qtwist.processes.logins import LoginClient, LoginServer, MailboxOpener
from qtwist.processes.packets import PacketConnection
from qtwist.processes.questions import MailboxQuestions
from qtwist.processes.spawners import ProcessSpawner, SpawnerServer, from_exit_code, from_letter
from qtwist.queue.entrance import DoorQueue
from qtwist.remote.spawn import RemoteSpawner
from qtwist.roles import SendService, ServerService, StartError
from qtwist.send.log import GatheredLines

#: Descriptors that a role asks for.
DESCRIPTORS = 8192

#: Octets of memory that a role may use, unless control/softlimit says otherwise: one that takes mail or talks to other
#: hosts. The queue manager needs what its queue needs.
MEMORY = 512 * 1024 * 1024

#: Seconds that a role goes on with what it does when its supervisor has died: it holds the ports, or the queue.
ORPHAN_PATIENCE = 5.0

#: So many more objects than before, and Python looks for garbage that is in cycles.
GARBAGE_THRESHOLD = 20_000

_SUPERVISOR = 3
_log = Logger()


class Role:
    """What all roles do: start, stop, and what they are told in between."""

    def __init__(self, home: Home) -> None:
        self.home = home

    def told(self, word: str, fds: list[int]) -> None:
        """An order of the supervisor that is not for all roles; the descriptors stay the caller's."""

    def start(self) -> None:
        """Begin. StartError or ControlError when that cannot be."""

    def stop(self) -> Deferred[None]:
        """End what runs; fires when nothing is left."""
        raise NotImplementedError


class ServerRole(Role):
    """smtpd and its like: clients on one side, the queue's door on the other. `share` is one out of how many processes
    of the kind this is."""

    def __init__(self, home: Home, name: str, share: int) -> None:
        super().__init__(home)
        home.queue = DoorQueue(home.path, home.reactor)  # type: ignore[assignment]  # an entrance is all a server needs
        self._logins = LoginClient(home.reactor)
        home.authenticator = self._logins  # type: ignore[assignment]  # it has what a server asks of one
        self._service: ServerService = home.server(name)
        self._service.factory.share = share

    def told(self, word: str, fds: list[int]) -> None:
        if word in ("listen", "listen-tls"):
            [fd] = fds
            with socket.socket(fileno=os.dup(fd)) as listening:
                self._service.adopt(listening, implicit_tls=word == "listen-tls")
        elif word == "logins":
            [fd] = fds
            self._logins.connect(socket.socket(fileno=os.dup(fd)))
        elif word == "recipients":
            [fd] = fds
            lookup = MailboxQuestions(self.home.reactor, socket.socket(fileno=os.dup(fd)))
            self._service.factory.surroundings.lookup = lookup  # type: ignore[attr-defined]  # these servers have it

    def start(self) -> None:
        self._service.startService()

    def stop(self) -> Deferred[None]:
        return maybeDeferred(self._service.stopService)


class SendRole(Role):
    """The queue manager, the queue's door and the administrator's desk. `network` are the servers' user ids."""

    def __init__(self, home: Home, network: frozenset[int]) -> None:
        super().__init__(home)
        limits = {channel: max(home.control.integer(f"concurrency{channel}"), 1) for channel in ("local", "remote")}
        self._spawners = {
            "local": ProcessSpawner(min(limits["local"], 120), home.reactor, from_exit_code),
            "remote": ProcessSpawner(min(limits["remote"], 255), home.reactor, from_letter),
        }
        self._sender: SendService = home.send(self._spawners["local"], self._spawners["remote"])
        self._services = MultiService()
        self._sender.setServiceParent(self._services)
        home.desk(self._sender, network).setServiceParent(self._services)
        home.door(network).setServiceParent(self._services)

    def told(self, word: str, fds: list[int]) -> None:
        if word in self._spawners:
            [fd] = fds
            self._spawners[word].connect(socket.socket(fileno=os.dup(fd)))
        elif word == "hup":
            self._sender.reread()
        elif word == "alrm":
            self._sender.retry_all()

    def start(self) -> None:
        os.umask(0o022)
        self.home.check_lock()
        self._services.startService()

    def stop(self) -> Deferred[None]:
        # The queue manager ends when its deliveries have: none may wait for a process that will not be started again.
        for spawner in self._spawners.values():
            spawner.give_up()
        return maybeDeferred(self._services.stopService)


class RemoteRole(Role):
    """rspawn: remote deliveries for whichever queue manager asks."""

    def told(self, word: str, fds: list[int]) -> None:
        if word == "sender":
            [fd] = fds
            SpawnerServer(self.home.reactor, socket.socket(fileno=os.dup(fd)), self._spawner, lambda: None)

    def start(self) -> None:
        home = self.home
        self._spawner = RemoteSpawner(home.control, home.resolver, home.reactor, home.queue_path)

    def stop(self) -> Deferred[None]:
        return self._spawner.stop()


class AuthRole(Role):
    """Checks passwords for the servers, and has lspawn open the mailboxes."""

    def __init__(self, home: Home) -> None:
        super().__init__(home)
        self._opener = MailboxOpener(home.reactor)
        self._mailboxes = Mailboxes(home.path)

    def told(self, word: str, fds: list[int]) -> None:
        if word == "mailboxes":
            [fd] = fds
            self._opener.connect(socket.socket(fileno=os.dup(fd)))
        elif word == "logins":
            [fd] = fds
            sock = socket.socket(fileno=os.dup(fd))
            LoginServer(self.home.reactor, sock, self._authenticator, self._mailboxes, self._opener.open)

    def start(self) -> None:
        home = self.home
        self._authenticator = make_authenticator(home.control, home.path, home.reactor)

    def stop(self) -> Deferred[None]:
        return succeed(None)


class RoleProcess:
    """A role under its supervisor."""

    def __init__(self, role: Role, reactor: Any) -> None:
        self._role = role
        self._reactor = reactor
        self._started = False
        self._stopping = False
        self.failed = False
        self._supervisor = PacketConnection(reactor, socket.socket(fileno=_SUPERVISOR), self._told, self._orphaned)

    def _told(self, packet: bytes, fds: list[int]) -> None:
        word = packet.decode("ascii")
        try:
            if word == "start":
                self._start()
            elif word == "stop":
                self._stop()
            else:
                self._role.told(word, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _start(self) -> None:
        try:
            self._role.start()
        except (StartError, ControlError, OSError) as error:
            self.failed = True
            self._supervisor.send(b"failed " + str(error).encode("utf-8", "surrogateescape")[:4000])
            self._reactor.callLater(0, self._reactor.stop)
        else:
            self._started = True
            self._supervisor.send(b"ready")

    def _orphaned(self) -> None:
        """The supervisor has died. Whoever starts the daemon again must not wait for a slow host of ours to end: what
        still runs after a while is cut off, as by a crash."""
        self._reactor.callLater(ORPHAN_PATIENCE, os._exit, 1)
        self._stop()

    def _stop(self) -> None:
        if self._stopping or self.failed:
            return
        self._stopping = True

        def ended(result: object) -> None:
            if isinstance(result, Failure):
                _log.failure("the end was not in order", result)
            self._reactor.stop()

        done = self._role.stop() if self._started else maybeDeferred(lambda: None)
        done.addBoth(ended)


def make_role(name: str, home: Home, options: list[str]) -> Role:
    """The role called `name`; `options` are those of :func:`main`."""
    if name == "send":
        return SendRole(home, frozenset(map(int, options)))
    if name == "rspawn":
        return RemoteRole(home)
    if name == "auth":
        return AuthRole(home)
    [share] = options
    return ServerRole(home, name, int(share))


@implementer(ILogObserver)
class LinesToStderr:
    """Events go to descriptor 2, one line each, some together; the supervisor adds time and role."""

    def __init__(self, clock: IReactorTime) -> None:
        self._lines = GatheredLines(lambda lines: write_all(2, lines), clock)

    def __call__(self, event: LogEvent) -> None:
        level = event["log_level"]
        if level is LogLevel.debug:
            return
        if level is LogLevel.info and event.get("log_namespace", "").startswith("twisted"):
            return
        text = event_text(event)
        failure = event.get("log_failure")
        if failure is not None:
            text += "\n" + failure.getTraceback()
        for part in text.splitlines():
            self._lines.add(f"[{level.name}] {part}\n".encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Nothing more will be said."""
        self._lines.flush()


def limit_memory(control: Control, name: str) -> None:
    """Bound what this process may allocate, by control/softlimit (0 is no bound) or :data:`MEMORY`.

    RLIMIT_DATA rather than RLIMIT_AS: threads and the allocator reserve far more addresses than they use.
    """
    given = control.map("softlimit")
    value = None if given is None else given.get(name.encode())
    octets = (0 if name == "send" else MEMORY) if value is None else int(value)
    if octets:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        octets = octets if hard == resource.RLIM_INFINITY else min(octets, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (octets, octets))


def may_need_network(control: Control, name: str) -> bool:
    """Whether a role has to open connections to other hosts, or runs code of the administrator's that may."""
    if name == "rspawn":
        return True
    if name == "auth":
        return bool(control.line("checkpassword")) or bool(control.integer("systemaccounts"))
    if name == "submission":
        return bool(control.list("submissionpolicies"))
    return name != "send" and (bool(control.list("policies")) or asks_network(control))


def ignore_signals() -> None:
    """A terminal's signals are for the supervisor."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def main() -> NoReturn:
    """ROLE HOME and its options: user ids of servers for send, the number of processes of its kind for a server."""
    from twisted.internet import reactor

    name, path, *options = sys.argv[1:]
    os.chdir("/")
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS if hard < 0 else min(DESCRIPTORS, hard), hard))
    home = Home(path)
    if SWITCH in os.environ:
        home.events = Events(lambda line: write_all(2, line))
        globalLogBeginner.beginLoggingTo([home.events], redirectStandardIO=False)
    else:
        lines = LinesToStderr(reactor)  # type: ignore[arg-type]  # Twisted does not say what its reactor provides
        atexit.register(lines.flush)
        globalLogBeginner.beginLoggingTo([lines], redirectStandardIO=False)
    limit_memory(home.control, name)
    if home.control.integer("confine") and not may_need_network(home.control, name) and not forbid_network():
        _log.warn("no filter against the network on this system (control/confine)")
    process = RoleProcess(make_role(name, home, options), reactor)
    ClockWatch(reactor).startService()
    # What is here now stays, and little of what comes later is in cycles.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 10, 10)
    ignore_signals()
    # Of the reactor's handlers we want the one for SIGCHLD: without it, who waits for a program may wait for ever.
    reactor.callWhenRunning(ignore_signals)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]
    sys.exit(1 if process.failed else 0)


if __name__ == "__main__":
    main()
