"""control/tcp.smtp and its like: what rules about clients say, by address, name and IDENT (spec/related.md §4.1, §4.2).

The files lie in control/, where all that decides about mail lies; old servers have them in /etc. A compiled database,
``tcp.smtp.cdb``, is used where there is one, as tcpserver does, else the text itself.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qtwist.control import ControlError
from qtwist.control_reading import read, unreadable
from qtwist.files.cdb import CDB, CDBError
from qtwist.files.tcprules import RuleError, Rules, Verdict, compile_rules
from qtwist.policy.base import Answer, Opinion, Policy, drop, refuse
from qtwist.policy.clients import remote_info, remote_name
from qtwist.policy.kept import Kept
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings

if TYPE_CHECKING:
    from qtwist.control import Control

#: Seconds that a look-up may take which only the rules ask for.
PATIENCE = 5

_log = Logger(namespace="qtwist.policy")


def read_rules(control: Control, service: str) -> Rules | None:
    """The rules for a service (``smtp``: control/tcp.smtp.cdb, else control/tcp.smtp); None without a file.

    ControlError when the file that counts cannot be read or is wrong.
    """
    compiled, text = f"tcp.{service}.cdb", f"tcp.{service}"
    path = control.path(compiled)
    try:
        with CDB(path) as database:
            rules = Rules(database)
    except FileNotFoundError:
        return _from_text(control.path(text))
    except OSError as error:
        raise unreadable(path, error) from error
    except CDBError as error:
        raise ControlError(path, None, str(error).removeprefix(f"{path} is "), "what tcprules writes") from error
    if _newer(control.stamp(text), control.stamp(compiled)):
        _log.warn(
            "control/{text} is newer than {text}.cdb, which is what counts: `qmailctl cdb` compiles it", text=text
        )
    return rules


def _newer(text: tuple[int, int, int] | None, compiled: tuple[int, int, int] | None) -> bool:
    return text is not None and compiled is not None and text[0] > compiled[0]


def _from_text(path: str) -> Rules | None:
    text = read(path)
    if text is None:
        return None
    try:
        return Rules(compile_rules(text))
    except RuleError as error:
        raise ControlError(path, error.number, repr(error.line)[1:], "ADDRESS:allow or ADDRESS:deny") from error


async def look_up(surroundings: Surroundings, session: Session, name: int, info: int) -> None:
    """Ask who the client is, each for so many seconds at most, 0 for not at all: sets TCPREMOTEHOST and TCPREMOTEINFO
    in the session's environment where there is an answer in time."""
    clock = surroundings.clock

    async def nothing() -> None:
        return None

    asked: list[Coroutine[Any, Any, bytes | None]] = [
        remote_name(surroundings.resolver, session.remote_ip, clock, name) if name else nothing(),
        remote_info(session, clock, info) if info else nothing(),
    ]
    answers: list[Deferred[bytes | None]] = [Deferred.fromCoroutine(one) for one in asked]
    for variable, answer in zip((b"TCPREMOTEHOST", b"TCPREMOTEINFO"), answers, strict=True):
        known = await answer
        if known is not None:
            session.environment[variable] = known


def apply(session: Session, rules: Rules) -> Verdict:
    """What the rules say of a client; the variables of one that is allowed are in the session's environment then."""
    known = session.environment
    name, info = known.get(b"TCPREMOTEHOST"), known.get(b"TCPREMOTEINFO")
    verdict = rules.find(session.remote_ip.encode("ascii"), name, info)
    if verdict.allow:
        for variable in verdict.variables:
            key, _, value = variable.partition(b"=")
            known[key] = value
    return verdict


@attrs.frozen
class _Settings:
    rules: Rules | None
    name: int  # seconds for the name of a client; 0: only for rules
    info: int


class TCPRules(Policy):
    """Closes the connections of those whom a rule denies, and sets the variables of the others' rules.

    Names and IDENT answers are looked up only where a rule is about such, or where control/tcpremotehost and
    control/tcpremoteinfo say so, and not for long: what is not known in time is not known. Both go into the Received
    line. RELAYCLIENT in a rule lets a client relay.
    """

    name = "tcprules"

    def __init__(self, surroundings: Surroundings, service: str = "smtp") -> None:
        control = self._control = surroundings.control
        self._surroundings = surroundings
        self._service = service
        names = (f"tcp.{service}", f"tcp.{service}.cdb", "tcpremotehost", "tcpremoteinfo")
        self.idle_without = names
        self._settings = Kept(control, names, self._read)

    def _read(self) -> _Settings:
        control = self._control
        rules = read_rules(control, self._service)
        return _Settings(rules, control.integer("tcpremotehost"), control.integer("tcpremoteinfo"))

    def connect(self, session: Session) -> Answer:
        try:
            settings = self._settings.get()
        except ControlError as error:
            _log.error("{id}: refused, {error}", id=session.id, error=error)
            return refuse(421, b"the configuration cannot be read (#4.3.0)", str(error))
        rules = settings.rules
        name = settings.name or (PATIENCE if rules is not None and rules.asks_name else 0)
        info = settings.info or (PATIENCE if rules is not None and rules.asks_ident else 0)
        if session.remote_ip and (name or info):
            return self._look_up(session, rules, name, info)
        return None if rules is None else self._apply(session, rules)

    async def _look_up(self, session: Session, rules: Rules | None, name: int, info: int) -> Opinion:
        await look_up(self._surroundings, session, name, info)
        return None if rules is None else self._apply(session, rules)

    def _apply(self, session: Session, rules: Rules) -> Opinion:
        verdict = apply(session, rules)
        if not verdict.allow:
            return drop(f"the rule {show(verdict)} of control/tcp.{self._service} denies {session.remote_ip}")
        return None


def show(verdict: Verdict) -> str:
    """The rule behind a verdict, for the log."""
    return (verdict.rule or b"").decode("ascii", "backslashreplace") + ":deny"
