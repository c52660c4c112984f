"""Policies that ask a service of somebody else's about a message, and what counts when it gives no answer."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from qtwist.control import ControlError
from qtwist.control_services import Service, parse_service
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.content import Content
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

CONNECT_SECONDS = 30

_log = Logger(namespace="qtwist.policy")

_TEXT = b"the message cannot be looked at now, try again later (#4.7.1)"
_REJECTED = b"the message could not be looked at (#5.7.1)"


class NoAnswer(Exception):
    """The service gave no answer, or one of no use: why, in words for the administrator."""


def endpoint_of(service: Service, reactor: Any) -> Any:
    """The endpoint that leads to `service`."""
    seconds = min(CONNECT_SECONDS, service.timeout)
    if service.path is not None:
        return UNIXClientEndpoint(reactor, service.path, timeout=seconds)
    return HostnameEndpoint(reactor, service.host, service.port, timeout=seconds)


def connected(service: Service, reactor: Any, protocol: Protocol) -> Deferred[Any]:
    """Fires with `protocol` once it is connected; errbacks with ConnectError when that cannot be."""
    factory: Any = Factory.forProtocol(lambda: protocol)
    factory.noisy = False
    connecting: Deferred[Any] = endpoint_of(service, reactor).connect(factory)
    return connecting


def services(surroundings: Surroundings, name: str, timeout: int) -> Watched[tuple[Service, ...]]:
    """Those that the lines of control file `name` are about, as it is now. ControlError when it makes no sense."""
    control = surroundings.control

    def read() -> tuple[Service, ...]:
        found = []
        for number, line in control.numbered(name) or ():
            text = line.decode("utf-8", "surrogateescape")
            try:
                found.append(parse_service(text, timeout))
            except ValueError as error:
                raise ControlError(control.path(name), number, repr(text), f"a service ({error})") from error
        return tuple(found)

    return Watched(control, (name,), read)


async def ask(service: Service, clock: Any, question: Coroutine[Any, Any, Opinion]) -> Opinion:
    """What `question` leads to, within the time that the service has; else what counts without an answer."""
    try:
        return await Deferred.fromCoroutine(question).addTimeout(service.timeout, clock, _too_late)
    except TooLate:
        why = f"no answer in {service.timeout} seconds"
    except (ConnectError, DNSLookupError) as error:
        why = f"no connection ({error})"
    except (NoAnswer, ConnectionClosed) as error:
        why = str(error)
    return unanswered(service, why)


def _too_late(_result: Any, _seconds: float) -> Any:
    """Whatever giving it up has led to."""
    raise TooLate


def unanswered(service: Service, why: str) -> Opinion:
    """What counts when `service` gives no answer; the log says so."""
    _log.error(
        "{name} is of no help: {why}; without it: {otherwise}",
        name=service.name,
        why=why,
        otherwise=service.otherwise,
    )
    if service.otherwise == "accept":
        return None
    reason = f"{service.name}: {why}"
    return refuse(451, _TEXT, reason) if service.otherwise == "tempfail" else refuse(554, _REJECTED, reason)


class Scanner(Policy):
    """Asks the services of the control file that has its name about each message, one after the other. What they cannot
    look at within `timeout` seconds, or what their line says, is treated as their line says."""

    timeout: ClassVar[int]

    def __init__(self, surroundings: Surroundings) -> None:
        self._clock = surroundings.clock
        self._services = services(surroundings, self.name, self.timeout)

    async def content(self, session: Session, content: Content) -> Opinion:
        for service in self._services.get():
            opinion = await ask(service, self._clock, self._scan(service, session, content))
            if opinion is not None:
                return opinion
        return None

    async def _scan(self, service: Service, session: Session, content: Content) -> Opinion:
        """What one service says. NoAnswer, ConnectError, ConnectionClosed; nothing may be left when it is cancelled."""
        raise NotImplementedError
