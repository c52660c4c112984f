"""The roles as services: servers with their ports, the queue's door, and the queue manager with all that it needs."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from qtwist.control import ControlError, Listener
from qtwist.events import EventfulSendLog
from qtwist.interfaces import ISpawner
from qtwist.local.spawn import LocalSpawner
from qtwist.mail.envelope import Origin
from qtwist.policy.watched import Watched
from qtwist.proxying import ProxyingFactory
from qtwist.queue.door import DoorFactory, DoorPlace
from qtwist.queue.memory import Memory
from qtwist.queue.peers import origin_of, owner
from qtwist.queue.room import Reserve, Room
from qtwist.remote.spawn import RemoteSpawner
from qtwist.send.desk import DeskFactory
from qtwist.send.log import GatheredLines, LogFile, SendLog
from qtwist.send.manager import QueueManager
from qtwist.send.steering import Steering
from qtwist.serving import DrainingFactory, ImplicitTLSFactory

if TYPE_CHECKING:
    from qtwist.home import Home


#: How long clients may take to end a message that is coming in, once we want to stop (seconds).
STOP_PATIENCE = 30
#: How many connections may wait for us in the kernel (which has a limit of its own, net.core.somaxconn). With Twisted's
#: 50, of a hundred clients that came at once some had their SYN dropped, and tried again seconds later.
BACKLOG = 1024


class StartError(Exception):
    """Why a service cannot start, in one line for the administrator."""


def _open(place: DoorPlace, home: Home, factory: Factory) -> IListeningPort:
    """Listen on a Unix socket in HOME/run. StartError when that cannot be."""
    try:
        return place.listen(home.reactor, factory)
    except (OSError, CannotListenError) as error:
        cause = error.socketError if isinstance(error, CannotListenError) else error
        text = getattr(cause, "strerror", None) or str(cause)
        raise StartError(f"{place.path}: {text}, expected to open a socket there") from error


async def _close(place: DoorPlace, port: IListeningPort | None) -> None:
    """Listen no longer; harmless where nothing was opened."""
    if port is not None:
        # The port removes its socket; somebody else may have done so.
        await maybeDeferred(port.stopListening).addErrback(lambda failure: failure.trap(FileNotFoundError))
    place.close()


async def _drain(factory: DrainingFactory[Any], home: Home) -> None:
    """Wait until the clients are gone; those that take longer than our patience are cut off."""
    patience = home.reactor.callLater(STOP_PATIENCE, factory.abort)
    await factory.drain()
    if patience.active():
        patience.cancel()


def with_backlog(endpoint: str) -> str:
    """An endpoint's description, with a :data:`BACKLOG` for a TCP port that names none."""
    if endpoint.startswith(("tcp:", "tcp6:")) and ":backlog=" not in endpoint:
        return f"{endpoint}:backlog={BACKLOG}"
    return endpoint


def open_port(home: Home, listener: Listener, factory: Factory) -> IListeningPort:
    """Listen as a line of control/listen says. ControlError or StartError when that cannot be."""
    path = home.control.path("listen")
    try:
        endpoint = serverFromString(home.reactor, with_backlog(listener.endpoint))
    except (ValueError, TypeError, KeyError, LookupError) as error:
        raise ControlError(
            path, listener.line, f"{listener.endpoint!r} ({error})", "an endpoint such as tcp:25"
        ) from error
    ports: list[IListeningPort] = []
    failures: list[Failure] = []
    endpoint.listen(factory).addCallbacks(ports.append, failures.append)
    if failures:
        reason = failures[0].value
        cause = reason.socketError if isinstance(reason, CannotListenError) else reason
        text = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else str(cause)
        raise StartError(f"{path}, line {listener.line}: cannot listen on {listener.endpoint}: {text}")
    [port] = ports
    return port


class ServerService(Service):
    """The ports of one role of control/listen, with its factory behind them.

    Ports are opened while the process still has the right to (privilegedStartService). A stop closes them, lets
    messages that are coming in end, and sends everybody else away. `queueing` says whether the factory puts messages
    into the queue of `home`.
    """

    def __init__(
        self, home: Home, factory: DrainingFactory[Any], listeners: Sequence[Listener], *, queueing: bool = True
    ) -> None:
        self.home = home
        self.factory = factory
        self.ports: list[IListeningPort] = []
        self._listeners = listeners
        self._queueing = queueing

    def adopt(self, listening: socket.socket, *, implicit_tls: bool = False) -> None:
        """Serve a socket that somebody else has opened, who keeps it; in place of those of control/listen."""
        self._listeners = ()
        factory = self._behind(implicit_tls)
        self.ports.append(self.home.reactor.adoptStreamPort(listening.fileno(), listening.family, factory))

    def privilegedStartService(self) -> None:
        super().privilegedStartService()
        self._listen()

    def startService(self) -> None:
        super().startService()
        if self._queueing:
            self.home.use_queue()
        self._listen()

    def _listen(self) -> None:
        """Open the ports, once. ControlError or StartError when one cannot be opened."""
        if self.ports:
            return
        for listener in self._listeners:
            self.ports.append(open_port(self.home, listener, self._behind(listener.implicit_tls)))

    def _behind(self, implicit_tls: bool) -> Factory:
        """What stands behind a port."""
        factory = ImplicitTLSFactory(self.factory) if implicit_tls else self.factory
        return ProxyingFactory(factory, self.home.control, self.home.reactor)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        ports, self.ports = self.ports, []
        await gatherResults([maybeDeferred(port.stopListening) for port in ports])
        await _drain(self.factory, self.home)
        if self._queueing:
            await maybeDeferred(self.home.leave_queue)


def reserves(home: Home) -> tuple[Reserve, ...]:
    """What has to be free for mail to be taken by those who ask no policies: disk and memory."""

    def least(name: str) -> Callable[[], int]:
        return Watched(home.control, (name,), lambda: home.control.integer(name)).get

    seconds = home.reactor.seconds
    return Room(home.queue_path, least("queueminfree"), seconds), Memory(least("memoryminfree"), seconds)


class DoorService(Service):
    """The queue's door, for the commands that hand in mail and for servers of other accounts: HOME/run/queue.

    `network` are the user ids of those servers.

    Opened when the process has its final account, which has to own HOME/run. A stop lets messages that are coming in
    end.
    """

    def __init__(self, home: Home, network: frozenset[int] = frozenset()) -> None:
        self.home = home
        self.place = DoorPlace(os.path.join(home.path, "run"))
        self.factory = DoorFactory(
            home.queue, self._origin, clock=home.reactor, network=network, reserves=reserves(home)
        )
        self._network = network
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """StartError when the socket cannot be made, or another daemon listens there."""
        super().startService()
        self._own = os.geteuid()
        self._alias = owner(os.path.join(self.home.path, "alias"))
        self.home.use_queue()
        self._port = _open(self.place, self.home, self.factory)

    def _origin(self, uid: int) -> Origin:
        return origin_of(uid, self._own, self._alias, self._network)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        port, self._port = self._port, None
        await _close(self.place, port)
        await _drain(self.factory, self.home)
        await maybeDeferred(self.home.leave_queue)


class DeskService(Service):
    """The socket HOME/run/control, where `qtwist queue` asks the queue manager of `send`, which has to start first; and
    servers ask with the user ids in `network` where control/etrnclients or control/autoturn lets them."""

    def __init__(self, home: Home, send: SendService, network: frozenset[int] = frozenset()) -> None:
        asked = network and any(home.control.list(name) for name in ("etrnclients", "autoturn"))
        self.place = DoorPlace(os.path.join(home.path, "run"), "control", 0o666 if asked else 0o600)
        self._network = network
        self._home = home
        self._send = send
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """StartError when the socket cannot be made."""
        super().startService()
        factory = DeskFactory(
            Steering(self._send.manager),
            frozenset((0, os.geteuid())),
            network=self._network,
            clock=self._home.reactor,
        )
        self._port = _open(self.place, self._home, factory)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        port, self._port = self._port, None
        await _close(self.place, port)


class SendService(Service):
    """The queue manager with its spawners and its log.

    They are made when the service starts, when the process has its final account.
    """

    manager: QueueManager

    def __init__(self, home: Home, local: ISpawner | None, remote: ISpawner | None) -> None:
        self.home = home
        self._local = local
        self._remote = remote

    def startService(self) -> None:
        """StartError when another queue manager runs on this queue, or a file that is needed cannot be opened."""
        home = self.home
        settings = home.send_settings()
        home.check_queue()  # now that this is the account that will work on it
        try:
            if home.maillog is not None:
                os.makedirs(os.path.dirname(home.maillog), exist_ok=True)
            self.log_file = LogFile(home.maillog)
        except OSError as error:
            raise StartError(f"{home.maillog}: {error.strerror}, expected a log file to append to") from error
        self.spawners: dict[str, ISpawner] = {
            "local": self._local or LocalSpawner(home.path, home.control, home.queue, home.disk, home.reactor),
            "remote": self._remote or RemoteSpawner(home.control, home.resolver, home.reactor, home.queue_path),
        }
        home.use_queue()
        self._lines = GatheredLines(self.log_file.write, home.reactor)
        write = self._lines.add
        log = SendLog(write) if home.events is None else EventfulSendLog(write, home.events)
        self.manager = QueueManager(home.queue, self.spawners, settings, log, home.reactor, home.rewriter, home.holds)
        try:
            self.manager.startService()
        except BlockingIOError:
            lock = os.path.join(home.queue_path, "lock", "sendmutex")
            raise StartError(f"{lock}: locked, another qtwist or qmail-send is running on this queue") from None
        except OSError as error:
            raise StartError(
                f"{error.filename or home.queue_path}: {error.strerror}, expected the queue's lock"
            ) from error
        super().startService()

    def reread(self) -> None:
        """HUP: locals and virtualdomains again, and the log file by its name."""
        self.manager.reread()
        self._lines.flush()
        try:
            self.log_file.reopen()
        except OSError as error:
            self.manager.log.alert(f"unable to reopen {self.home.maillog}: {error.strerror}")

    def retry_all(self) -> None:
        """ALRM: every queued message is due now."""
        self.manager.retry_all()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.manager.stopService()
        await gatherResults([spawner.stop() for spawner in self.spawners.values()])
        await maybeDeferred(self.home.leave_queue)
        self._lines.flush()
        self.log_file.close()
