"""What `twistd qtwist` runs: the services of a home, with qmail's signals, and one clear line when it cannot start."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from typing import NoReturn

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogPublisher

from qtwist.clock import ClockWatch
from qtwist.control import ControlError
from qtwist.events import Events
from qtwist.home import Home
from qtwist.options import Options
from qtwist.processes.notify import ServiceManager
from qtwist.processes.supervisor import Supervisor
from qtwist.roles import SendService, StartError
from qtwist.send.log import LogFile

__all__ = ["Options", "RootService", "makeService"]

#: Descriptors that the daemon asks for.
DESCRIPTORS = 8192

_log = Logger()


def makeService(options: Options) -> RootService:
    """The service for `options`. SystemExit, with one line that says why, when the home cannot be served."""
    twistd = options.parent
    in_foreground = twistd is None or bool(twistd["nodaemon"])
    maillog = options["maillog"]
    if maillog is None and not in_foreground:
        maillog = os.path.join(options.home, "log", "send")
    if maillog is not None:
        maillog = os.path.abspath(maillog)
    home = Home(options.home, maillog=maillog)
    pidfile = twistd["pidfile"] if twistd else None
    events = options["events"] and os.path.abspath(options["events"])
    kind = SupervisedService if os.geteuid() == 0 and not (twistd and twistd["uid"]) else EmbeddedService
    try:
        home.check()
        return kind(home, pidfile=pidfile, in_foreground=in_foreground, events=events)
    except (StartError, ControlError) as error:
        raise SystemExit(f"qtwist: {error}") from None


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as connections and messages may need; many systems give 1024 unless asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class RootService(MultiService):
    """All services of a home, as twistd runs them.

    HUP rereads what can change, ALRM makes all queued mail due, TERM finishes what runs and ends with exit code 0
    (spec/qmail.md §9.2). `events` is the file for events.
    """

    def __init__(
        self, home: Home, pidfile: str | None = None, in_foreground: bool = True, events: str | None = None
    ) -> None:
        super().__init__()
        self.home = home
        self._pidfile = pidfile
        self._in_foreground = in_foreground
        self._terminating = False
        self.manager = ServiceManager(os.environ, home.reactor)
        self._events = events
        self._event_file: LogFile | None = None

    def reread(self) -> None:
        """HUP."""
        raise NotImplementedError

    def retry_all(self) -> None:
        """ALRM."""
        raise NotImplementedError

    def privilegedStartService(self) -> None:
        self._start(super().privilegedStartService)

    def startService(self) -> None:
        # Modes of queue files and mailboxes are given where they are made; this takes nothing away from them.
        os.umask(0o022)
        _raise_descriptor_limit()
        self._start(super().startService)
        self._handle_signals()
        # Once more, as a reactor that starts installs handlers of its own.
        self.home.reactor.callWhenRunning(self._handle_signals)

    def stopService(self) -> Deferred[object]:
        self.manager.stopping()
        stopped: Deferred[object] = super().stopService()

        def close(result: object) -> object:
            self.manager.close()
            if self._event_file is not None and self.home.events is not None:
                globalLogPublisher.removeObserver(self.home.events)
                self._event_file.close()
            return result

        return stopped.addBoth(close)

    def _start(self, start: Callable[[], None]) -> None:
        try:
            start()
        except (StartError, ControlError) as error:
            self._refuse(str(error))

    def _refuse(self, text: str) -> NoReturn:
        """End the process with one line on standard error; twistd would show a traceback."""
        if not self._in_foreground:
            raise StartError(text)  # twistd's parent process prints it
        os.write(2, f"qtwist: {text}\n".encode("utf-8", "surrogateescape"))
        if self._pidfile:
            try:
                os.unlink(self._pidfile)
            except OSError as error:
                _log.warn("cannot remove {path}: {error}", path=self._pidfile, error=error)
        raise SystemExit(1)

    def _handle_signals(self) -> None:
        reactor = self.home.reactor

        def handle(number: int, call: Callable[[], None]) -> None:
            signal.signal(number, lambda *_: reactor.callFromThread(call))

        handle(signal.SIGHUP, self._reload)
        handle(signal.SIGALRM, self.retry_all)
        # twistd would end the process by the same signal; a clean stop exits 0.
        handle(signal.SIGTERM, self._terminate)
        handle(signal.SIGINT, self._terminate)

    def open_events(self) -> None:
        """Begin to write events, if that is asked for; as the account that writes them. StartError."""
        if self._events is not None:
            try:
                self._event_file = LogFile(self._events)
            except OSError as error:
                raise StartError(f"{self._events}: {error.strerror}, expected a file to append events to") from error
            self.home.events = Events(self._event_file.write)
            globalLogPublisher.addObserver(self.home.events)

    def _reload(self) -> None:
        self.manager.reloading()
        if self._event_file is not None:
            try:
                self._event_file.reopen()
            except OSError as error:
                _log.error("unable to reopen {path}: {error}", path=self._events, error=error)
        self.reread()
        self.manager.ready()

    def _terminate(self) -> None:
        if not self._terminating:
            self._terminating = True
            self.home.reactor.stop()


class EmbeddedService(RootService):
    """All roles in one process, as an ordinary user."""

    def __init__(
        self, home: Home, pidfile: str | None = None, in_foreground: bool = True, events: str | None = None
    ) -> None:
        super().__init__(home, pidfile, in_foreground, events)
        ClockWatch(home.reactor).setServiceParent(self)
        self.sender: SendService = home.send()
        self.sender.setServiceParent(self)
        # After the queue manager: whoever has the queue's lock may open the queue's door.
        home.desk(self.sender).setServiceParent(self)
        home.door().setServiceParent(self)
        for server in home.servers():
            server.setServiceParent(self)

    def startService(self) -> None:
        if os.geteuid() == 0:
            self._refuse("twistd --uid gives root's user id, and no mail is delivered as root; leave it away")
        self._start(self.open_events)
        super().startService()
        self.home.reactor.callWhenRunning(self.manager.ready)

    def reread(self) -> None:
        self.sender.reread()

    def retry_all(self) -> None:
        self.sender.retry_all()


class SupervisedService(RootService):
    """The roles as processes, each under its account; for a daemon that is started as root."""

    def __init__(
        self, home: Home, pidfile: str | None = None, in_foreground: bool = True, events: str | None = None
    ) -> None:
        super().__init__(home, pidfile, in_foreground, events)
        opening = self.open_events if events is not None else None
        self.supervisor = Supervisor(home, pidfile, self._give_up, self.manager.ready, opening)
        self.supervisor.setServiceParent(self)
        self._failed = False

    def reread(self) -> None:
        self.supervisor.reread()

    def retry_all(self) -> None:
        self.supervisor.retry_all()

    def _handle_signals(self) -> None:
        super()._handle_signals()
        reactor = self.home.reactor
        signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(self.supervisor.restart_servers))

    def _give_up(self, text: str | None) -> None:
        """End the process with an exit code that tells a service manager to start it again."""
        if not self._failed:
            self._failed = True
            if text is not None:
                os.write(2, f"qtwist: {text}\n".encode("utf-8", "surrogateescape"))
            self.home.reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
            self.home.reactor.stop()
