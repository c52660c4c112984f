"""How many connections one client, and one network, may have at once and begin in a minute.

The variables are those of the limits patch for tcpserver: MAXCONNIP and MAXCONNC in a rule of control/tcp.smtp override
control/maxconnip and control/maxconnc for a client. Several processes that serve a port count together, in
HOME/greylist.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

import attrs
from twisted.logger import Logger

from qtwist.mail.networks import network_of
from qtwist.policy.base import Opinion, Policy, refuse
from qtwist.policy.connection import leading_number
from qtwist.policy.session import Session
from qtwist.policy.shared_counts import SharedCounts, SharedRates
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

FILES = ("maxconnip", "maxconnc", "connrateip", "connratec")

#: Seconds over which connections that begin are counted.
WINDOW = 60.0
#: Of how many clients and networks it is remembered when they came; the ones not seen for longest are forgotten.
MOST_REMEMBERED = 20_000

_log = Logger(namespace="qtwist.policy")

S = TypeVar("S", SharedCounts, SharedRates)

_LOOPBACK = ("127.", "::1")


@attrs.frozen
class _Limits:
    """0 is no limit."""

    at_once: dict[str, int]
    in_window: dict[str, int]


class Rate:
    """Counts what happens to each of many keys in a sliding window: the last window counts by the part of it that is
    still within reach. What others have counted in the same windows counts, too. Pure: the time is an argument."""

    def __init__(self, window: float = WINDOW, most: int = MOST_REMEMBERED) -> None:
        self._window = window
        self._most = most
        self._counts: OrderedDict[str, tuple[int, int, int]] = OrderedDict()  # window, in it, in the one before

    def add(self, key: str, now: float, others: SharedRates | None = None) -> float:
        """Count one; how many there were lately, this one included."""
        number, into = divmod(now, self._window)
        current = int(number)
        window, count, before = self._counts.get(key, (current, 0, 0))
        if window != current:
            count, before = 0, count if window == current - 1 else 0
        count += 1
        self._counts[key] = (current, count, before)
        self._counts.move_to_end(key)
        if len(self._counts) > self._most:
            self._counts.popitem(last=False)
        if others is not None:
            others.add(key, current)
            count += others.others(key, current)
            before += others.others(key, current - 1)
        return count + before * (1 - into / self._window)


class ConnectionCounts:
    """How many connections the clients of one service have, and how often they come, against what the files allow.

    A network is an IPv4 /24 or an IPv6 /64. Clients that may relay are not limited, nor is this host itself, unless a
    variable says so.
    """

    def __init__(self, surroundings: Surroundings, service: str) -> None:
        control = surroundings.control
        self._service = service
        self._shared: SharedCounts | None = None
        self._shared_rates: SharedRates | None = None
        self._alone = False  # the counters of all processes cannot be had
        self._surroundings = surroundings
        self._limits = Watched(
            control,
            FILES,
            lambda: _Limits(
                {"ip": control.integer("maxconnip"), "c": control.integer("maxconnc")},
                {"ip": control.integer("connrateip"), "c": control.integer("connratec")},
            ),
        )
        self._here: dict[str, int] = {}
        self._rate = Rate()

    def arrive(self, ip: str, known: Mapping[bytes, bytes], may_relay: bool = False) -> str | None:
        """Count in a connection from `ip`, for which a rule has set the variables in `known`. If there is no room for
        it: why, for the administrator, and it is not counted. ControlError when a file is wrong."""
        limits = self._limits.get()
        exempt = may_relay or ip.startswith(_LOOPBACK)
        refusal: str | None = None
        for kind, key in _keys(ip).items():
            variable = known.get(b"MAXCONN" + kind.upper().encode())
            most = leading_number(variable) if variable is not None else 0 if exempt else limits.at_once[kind]
            shared = self._counts() if most else None
            there = self._here.get(key, 0) + (0 if shared is None else shared.others(key))
            if most and there >= (self._share(most) if shared is None else most):
                file = "MAXCONN" + kind.upper() if variable is not None else f"control/maxconn{kind}"
                refusal = refusal or f"{key} has {there} connections here ({file} is {most})"
            often = 0 if exempt else limits.in_window[kind]
            rates = self._rates() if often else None
            lately = self._rate.add(key, self._surroundings.clock.seconds(), rates) if often else 0
            if lately > (self._share(often) if rates is None else often):
                refusal = refusal or f"{key} comes too often (control/connrate{kind} is {often})"
        if refusal is None:
            for key in _keys(ip).values():
                self._here[key] = self._here.get(key, 0) + 1
                if self._shared is not None:
                    self._shared.add(key)
        return refusal

    def leave(self, ip: str) -> None:
        """Count one out that was counted in."""
        for key in _keys(ip).values():
            left = self._here[key] - 1
            if self._shared is not None:
                self._shared.remove(key)
            if left:
                self._here[key] = left
            else:
                del self._here[key]

    def _counts(self) -> SharedCounts | None:
        """The connections in all processes; None for one alone, and where they cannot be had."""
        if self._shared is None and (path := self._file("connections")) is not None:
            self._shared = shared = self._open(SharedCounts, path)
            if shared is not None:
                for key, number in self._here.items():
                    for _ in range(number):
                        shared.add(key)
        return self._shared

    def _rates(self) -> SharedRates | None:
        """How often clients come to all processes; None for one alone, and where that cannot be had."""
        if self._shared_rates is None and (path := self._file("rates")) is not None:
            self._shared_rates = self._open(SharedRates, path)
        return self._shared_rates

    def _file(self, kind: str) -> str | None:
        if self._alone or self._surroundings.share() == 1:
            return None
        return os.path.join(self._surroundings.home, "greylist", f"{kind}.{self._service}")

    def _open(self, kind: type[S], path: str) -> S | None:
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            return kind(path)
        except OSError as error:
            self._alone = True
            _log.error("each process counts its own connections: {path}: {error}", path=path, error=error)
            return None

    def _share(self, limit: int) -> int:
        """What this process allows of it: rounded up, so that every limit lets somebody in."""
        return -(-limit // self._surroundings.share())


def _keys(ip: str) -> dict[str, str]:
    return {"ip": ip, "c": network_of(ip)}


class ClientLimits(Policy):
    """Sends away clients that have too many connections, or come too often: 421, which is temporary."""

    name = "limits"

    def __init__(self, surroundings: Surroundings, service: str = "smtp") -> None:
        self.counts = ConnectionCounts(surroundings, service)

    def connect(self, session: Session) -> Opinion:
        if not session.remote_ip:
            return None
        known = session.environment
        reason = self.counts.arrive(session.remote_ip, known, session.may_relay)
        if reason is None:
            session.notes[self] = session.remote_ip
            return None
        text = known.get(b"DIEMSG") or b"too many connections from you, try again later"
        return refuse(421, text + b" (#4.7.0)", reason)

    def end(self, session: Session) -> None:
        if session.notes.pop(self, None) is not None:  # type: ignore[attr-defined]
            self.counts.leave(session.remote_ip)
