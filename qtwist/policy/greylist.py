"""Greylisting: whoever sends for the first time is asked to come again, as mail servers do (spec/related.md §13.6).

It is on where control/greylisting exists; GREYLISTING in a rule turns it on for a client, or off with the value 0. What
was seen is kept in HOME/greylist, in one database that all processes share (:mod:`qtwist.policy.greylist_store`).
"""

from __future__ import annotations

import os
import re
import sqlite3
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qtwist.mail.address import Address
from qtwist.mail.domains import ascii_address
from qtwist.mail.networks import network_of
from qtwist.policy.base import Answer, Opinion, Policy, refuse
from qtwist.policy.greylist_store import GreylistStore, Times
from qtwist.policy.patterns import Patterns
from qtwist.policy.relay import Networks, network
from qtwist.policy.session import Session
from qtwist.policy.surroundings import Surroundings
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control

_MINUTE, _DAY = 60, 86400

#: What control/greylisting may say, in the words of the plug-in that it comes from; the seconds of its units.
KEYS = {b"block_expire": _MINUTE, b"record_expire": _MINUTE, b"record_expire_good": _DAY}

_DIGITS = re.compile(rb"[0-9]+")
_log = Logger(namespace="qtwist.policy")


def read_times(lines: list[bytes]) -> Times:
    """The times that control/greylisting sets. ValueError, with what was expected, for a line that makes no sense."""
    given: dict[str, float] = {}
    for line in lines:
        key, _, value = line.partition(b" ")
        value = value.strip()
        if key not in KEYS or not value.isdigit() or len(value) > 9:
            raise ValueError("block_expire or record_expire and minutes, or record_expire_good and days")
        given[key.decode("ascii")] = int(value) * KEYS[key]
    return attrs.evolve(Times(), **given)  # type: ignore[arg-type]


@attrs.frozen
class _Settings:
    on: bool
    times: Times
    clients: Networks
    recipients: Patterns


def read_exempt(control: Control) -> tuple[Networks, Patterns]:
    """control/greylistexempt: networks of clients, and recipients."""
    networks, recipients = [], []
    for line in control.list("greylistexempt") or ():
        if b"@" in line:
            recipients.append(line)
        else:
            networks.append(network(line))
    return Networks(tuple(networks)), Patterns.parse(recipients)


class Greylist(Policy):
    """Answers 451 to the first try of a client's network (IPv4 /24, IPv6 /64) to send from this sender to this
    recipient, until block_expire has passed. Whoever comes again then is known for record_expire_good.

    Clients that may relay, and those of control/greylistexempt, are not kept waiting. When the database cannot be used,
    nobody is, and the log says so.
    """

    name = "greylisting"
    idle_without = ("greylisting", "GREYLISTING")

    def __init__(self, surroundings: Surroundings) -> None:
        control = self._control = surroundings.control
        self._surroundings = surroundings
        self._settings = Watched(control, ("greylisting", "greylistexempt"), self._read)
        self._store: GreylistStore | None = None

    def _read(self) -> _Settings:
        lines = self._control.list("greylisting")
        return _Settings(lines is not None, read_times(lines or []), *read_exempt(self._control))

    def rcpt(self, session: Session, recipient: Address) -> Answer:
        settings = self._settings.get()
        given = session.environment.get(b"GREYLISTING")
        on = settings.on if given is None else given != b"0"
        if not on or session.may_relay or not session.remote_ip:
            return None
        if settings.clients.has(session.remote_ip) or settings.recipients.find(recipient.raw) is not None:
            return None
        return self._judge(session, recipient, settings.times)

    async def _judge(self, session: Session, recipient: Address, times: Times) -> Opinion:
        if self._store is None:
            self._store = GreylistStore(os.path.join(self._surroundings.home, "greylist"))
        sender = b"" if session.sender is None else session.sender.raw
        # Mailing lists put a number into each sender: VERP would make every message a stranger's.
        key = network_of(session.remote_ip), _DIGITS.sub(b"#", ascii_address(sender)), ascii_address(recipient.raw)
        waited: Deferred[float] = self._surroundings.in_thread(self._store.see, key, self._surroundings.now(), times)
        try:
            left = await waited
        except (sqlite3.Error, OSError) as error:
            _log.error("{id}: no greylisting: {error}", id=session.id, error=error)
            return None
        if left <= 0:
            return None
        return refuse(
            451,
            b"we have not seen you before, please come again in %d seconds (#4.7.1)" % max(1, round(left)),
            f"greylisted: {key[0]} for {left:.0f} s more",
        )
