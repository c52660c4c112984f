"""A home directory, and the services that it describes.

`Home(path)` is the way in for whoever builds a mail system of their own in a ``.tac`` file or a plugin::

    home = Home("/srv/mail")
    home.smtpd(policies=[Quiet()]).setServiceParent(application)
    home.send().setServiceParent(application)

Every part can be replaced: `queue` and `resolver` are attributes to set before a service is made, factories and
spawners are arguments. What they must do is in :mod:`qtwist.interfaces`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred

from qtwist.auth.addresses import Addresses
from qtwist.auth.authenticator import Authenticator
from qtwist.auth.checkers import Threads
from qtwist.auth.making import make_authenticator
from qtwist.control import Control, ControlError, Listener
from qtwist.dns.resolver import make_resolver
from qtwist.events import Events
from qtwist.files.disk import RealDisk
from qtwist.interfaces import IQueue, IResolver, ISpawner
from qtwist.local.looking import Lookup
from qtwist.mail.constmap import ConstantMap
from qtwist.mail.holds import Holds
from qtwist.mail.rewriting import Rewriter
from qtwist.policy import Policy
from qtwist.policy.recipients import InThread
from qtwist.policy.serving import PolicyFactory
from qtwist.pop3d.factory import POP3Factory
from qtwist.pop3d.maildrop import make_maildrops
from qtwist.qmqpd.factory import QMQPFactory
from qtwist.qmtpd.factory import QMTPFactory
from qtwist.queue.files import FileQueue
from qtwist.queue.journaled import JournaledQueue
from qtwist.queue.layout import LayoutError, check_access
from qtwist.roles import DeskService, DoorService, SendService, ServerService, StartError, reserves
from qtwist.send.bounces import BounceSettings
from qtwist.send.manager import SendSettings
from qtwist.smtpd.factory import SMTPFactory
from qtwist.submission.factory import SubmissionFactory

#: The roles of control/listen, and the method of :class:`Home` that makes the server of each.
SERVED = {
    "smtp": "smtpd",
    "smtps": "smtpd",
    "submission": "submission",
    "submissions": "submission",
    "qmtp": "qmtpd",
    "qmtps": "qmtpd",
    "qmqp": "qmqpd",
    "pop3": "pop3d",
    "pop3s": "pop3d",
}


class Home:
    """The directory with control/, users/, alias/ and queue/, and what is built from it.

    `path` is made absolute. `reactor` is Twisted's unless another one is given. `maillog` is the file that qmail's
    log lines go to, None for standard output.
    """

    def __init__(self, path: str, reactor: Any = None, maillog: str | None = None) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.path = os.path.abspath(path)
        self.reactor: Any = reactor
        self.maillog = maillog
        self.events: Events | None = None  # where what happens to messages is told as JSON
        self.control = Control(os.path.join(self.path, "control"))
        self.disk = RealDisk()
        self.queue_path = os.path.join(self.path, "queue")
        self._queue_users = 0

    @cached_property
    def queue(self) -> IQueue:
        """The queue. StartError when queue/ is not one."""
        try:
            in_use = bool(self.control.integer("journal"))
            return JournaledQueue(self.queue_path, self.disk, self.reactor, in_use=in_use)
        except LayoutError as error:
            raise StartError(str(error)) from error

    @cached_property
    def resolver(self) -> IResolver:
        """Asks the servers of control/dnsservers, or those of the system."""
        servers = [line.decode("ascii") for line in self.control.list("dnsservers") or ()]
        return make_resolver(self.reactor, servers)

    @cached_property
    def authenticator(self) -> Authenticator:
        """Who may log in, by the credential store and control files (doc/users.md)."""
        return make_authenticator(self.control, self.path, self.reactor, make_maildrops(self.reactor))

    def check(self) -> None:
        """StartError or ControlError when this is not a home that can be served."""
        for part, purpose in (("control", "control files"), ("queue", "the queue")):
            directory = os.path.join(self.path, part)
            if not os.path.isdir(directory):
                raise StartError(
                    f"{directory}: no such directory, expected {purpose}; "
                    f"`qtwist init {self.path} --me NAME` makes a home"
                )
        errors = self.control.check()
        if errors:
            raise errors[0]
        for listener in self.control.listeners():
            certificate = self.control.path("servercert.pem")
            if listener.implicit_tls and not os.path.exists(certificate):
                expected = f"a certificate, for {listener.role} in control/listen, line {listener.line}"
                raise ControlError(certificate, None, "nothing", expected)
        self.send_settings()
        self.check_queue()
        self.check_lock()

    def check_queue(self) -> None:
        """StartError when queue/ is no queue, or not one that this process may work on."""
        queue = self.queue
        if isinstance(queue, FileQueue):
            try:
                check_access(queue.layout)
            except LayoutError as error:
                raise StartError(str(error)) from error

    def check_lock(self) -> None:
        """StartError when another queue manager is running. The lock itself is taken at the start."""
        lock = os.path.join(self.queue_path, "lock", "sendmutex")
        try:
            fd = self.disk.open(lock, os.O_WRONLY)
            try:
                self.disk.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                self.disk.close(fd)
        except BlockingIOError:
            raise StartError(f"{lock}: locked, another qtwist or qmail-send is running on this queue") from None
        except OSError as error:
            raise StartError(f"{lock}: {error.strerror}, expected the queue's lock") from error

    def smtpd(
        self, policies: Sequence[Policy] = (), factory: Callable[..., SMTPFactory] = SMTPFactory
    ) -> ServerService:
        """The service that listens on all ``smtp`` and ``smtps`` lines of control/listen.

        `policies` are asked before those of control/policies and the standard ones. `factory` is called like
        :class:`~qtwist.smtpd.factory.SMTPFactory`, of which it may be a subclass.
        """
        made = factory(self.control, self.queue, policies, clock=self.reactor, authenticator=self.authenticator)
        self._surround(made)
        return ServerService(self, made, self.listeners("smtpd"))

    def submission(
        self, policies: Sequence[Policy] = (), factory: Callable[..., SubmissionFactory] = SubmissionFactory
    ) -> ServerService:
        """The service that listens on all ``submission`` and ``submissions`` lines of control/listen.

        `policies` are asked after the one that wants a login, and before those of control/submissionpolicies.
        """
        made = factory(
            self.control,
            self.queue,
            policies,
            clock=self.reactor,
            authenticator=self.authenticator,
            addresses=Addresses(self.path),
            run=Threads(self.reactor).quick,
        )
        self._surround(made)
        return ServerService(self, made, self.listeners("submission"))

    def qmtpd(
        self, policies: Sequence[Policy] = (), factory: Callable[..., QMTPFactory] = QMTPFactory
    ) -> ServerService:
        """The service that listens on all ``qmtp`` and ``qmtps`` lines; policies as for :meth:`smtpd`."""
        made = factory(self.control, self.queue, policies, clock=self.reactor)
        self._surround(made)
        return ServerService(self, made, self.listeners("qmtpd"))

    def _surround(self, factory: PolicyFactory[Any]) -> None:
        """Give the policies of a factory what they may use of this home."""
        surroundings = factory.surroundings
        surroundings.make = lambda: self.resolver
        surroundings.lookup = InThread(surroundings, Lookup(self.path))

    def qmqpd(self, factory: Callable[..., QMQPFactory] = QMQPFactory) -> ServerService:
        """The service that listens on all ``qmqp`` lines of control/listen, for the clients of control/qmqpclients."""
        made = factory(self.control, self.queue, clock=self.reactor, reserves=reserves(self))
        made.surroundings.make = lambda: self.resolver
        return ServerService(self, made, self.listeners("qmqpd"))

    def pop3d(self, factory: Callable[..., POP3Factory] = POP3Factory) -> ServerService:
        """The service that listens on all ``pop3`` and ``pop3s`` lines of control/listen."""
        made = factory(self.control, self.authenticator, clock=self.reactor)
        made.surroundings.make = lambda: self.resolver
        return ServerService(self, made, self.listeners("pop3d"), queueing=False)

    def send(self, local: ISpawner | None = None, remote: ISpawner | None = None) -> SendService:
        """The service that delivers what is in the queue; spawners that are given take the place of our own."""
        return SendService(self, local, remote)

    def door(self, network: frozenset[int] = frozenset()) -> DoorService:
        """The service through which mail is handed in on this host: HOME/run/queue.

        `network` are the user ids of servers that are processes of their own.
        """
        return DoorService(self, network)

    def desk(self, send: SendService, network: frozenset[int] = frozenset()) -> DeskService:
        """The service that `qtwist queue` asks: HOME/run/control."""
        return DeskService(self, send, network)

    def service(self) -> MultiService:
        """All of it, as `twistd qtwist` runs it."""
        services = MultiService()
        send = self.send()
        send.setServiceParent(services)
        self.desk(send).setServiceParent(services)
        self.door().setServiceParent(services)
        for server in self.servers():
            server.setServiceParent(services)
        return services

    def servers(self) -> list[ServerService]:
        """All services for what control/listen names."""
        return [self.server(name) for name in dict.fromkeys(SERVED.values()) if self.listeners(name)]

    def server(self, name: str) -> ServerService:
        """The service of this name: smtpd, qmtpd …"""
        service: ServerService = getattr(self, name)()
        return service

    def listeners(self, name: str) -> list[Listener]:
        """The lines of control/listen that the service of this name serves."""
        return [listener for listener in self.control.listeners() if SERVED.get(listener.role) == name]

    # What the services below share.

    def use_queue(self) -> None:
        """Start the queue's threads, for the first of its users."""
        if not self._queue_users:
            self.queue.start()  # type: ignore[attr-defined]
        self._queue_users += 1

    def leave_queue(self) -> Deferred[None] | None:
        """Stop the queue's threads when its last user has gone."""
        self._queue_users -= 1
        if self._queue_users:
            return None
        stopped: Deferred[None] = self.queue.stop()  # type: ignore[attr-defined]
        return stopped

    def rewriter(self) -> Rewriter:
        """The rules for envelope recipients as control files have them now. ControlError when one of them is wrong."""
        self.control.ensure("envnoathost", "locals", "percenthack", "virtualdomains")
        locals_ = self.control.map("locals")
        if locals_ is None:
            raise ControlError(self.control.path("locals"), None, "nothing, and no control/me", "the local domains")
        return Rewriter(
            self._line("envnoathost"),
            locals_,
            self.control.map("percenthack") or ConstantMap(),
            self.control.map("virtualdomains") or ConstantMap(),
        )

    def holds(self) -> Holds:
        """What is to be kept back. ControlError when control/holds is wrong."""
        self.control.ensure("holds")
        return Holds.parse(self.control.list("holds") or ())

    def _line(self, name: str) -> bytes:
        value = self.control.line(name)
        assert value is not None, f"control/{name} has a default"
        return value

    def send_settings(self) -> SendSettings:
        """What the queue manager takes from control files at its start. ControlError when one cannot be read."""
        return SendSettings(
            rewriter=self.rewriter(),
            concurrency={channel: self.control.integer(f"concurrency{channel}") for channel in ("local", "remote")},
            lifetime=self.control.integer("queuelifetime"),
            bounces=BounceSettings(
                self._line("bouncefrom"),
                self._line("bouncehost"),
                self._line("doublebounceto"),
                self._line("doublebouncehost"),
                self.control.integer("delaywarn"),
                self.control.integer("dsnbounces") > 0,
            ),
        )
