"""control/rcpthosts and morercpthosts.cdb: the domains that mail is taken for (spec/qmail.md §16.5).

Two deviations from qmail, both so that no combination of files makes an open relay:

- Without control/rcpthosts qmail takes mail for every domain. Here the domains of control/locals and
  control/virtualdomains are then the list; a catch-all line of virtualdomains does not count as one.
- When a domain is listed in control/percenthack, the address that ``user%elsewhere@domain`` will be rewritten to
  (§9.3) must be taken here as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from qtwist.control import suffixes
from qtwist.files.cdb import CDB, CDBError
from qtwist.mail.address import Address
from qtwist.policy.base import Opinion, Policy
from qtwist.policy.session import Session
from qtwist.policy.watched import Watched
from qtwist.wire.smtp_server import Reply

if TYPE_CHECKING:
    from qtwist.control import Control

REFUSAL = Reply(553, b"this server does not take mail for that domain (#5.7.1)")
TROUBLE = Reply(421, b"cannot read the list of domains (#4.3.0)")

_FILES = ("me", "rcpthosts", "morercpthosts.cdb", "locals", "virtualdomains", "percenthack", "envnoathost")


@attrs.frozen
class Domains:
    """The rules as they were read. `rcpthosts` is None when there is no such file; all keys are in lower case."""

    rcpthosts: frozenset[bytes] | None
    more: CDB | None = None
    locals: frozenset[bytes] = frozenset()
    virtual: Mapping[bytes, bytes] = attrs.field(factory=dict)
    percenthack: frozenset[bytes] = frozenset()
    envnoathost: bytes = b"envnoathost"

    def take(self, address: bytes) -> bool:
        """Is mail for `address` taken from clients that may not relay? CDBError when the cdb is damaged."""
        address = address.lower()
        if b"@" not in address:
            # qmail takes it; what it will become decides about the percent hack.
            address += b"@" + self.envnoathost
        elif not self._lists(address):
            return False
        while True:
            local, _, domain = address.rpartition(b"@")
            if domain not in self.percenthack or b"%" not in local:
                return True
            user, _, elsewhere = local.rpartition(b"%")
            address = user + b"@" + elsewhere
            if not self._lists(address):
                return False

    def _lists(self, address: bytes) -> bool:
        domain = address[address.rfind(b"@") + 1 :]
        if self.rcpthosts is not None:
            keys = list(suffixes(domain, False))
            if any(key in self.rcpthosts for key in keys):
                return True
            return self.more is not None and any(self.more.get(key) is not None for key in keys)
        if domain in self.locals:
            return True
        for key in (address, *suffixes(domain, False)):
            if key in self.virtual:
                return bool(self.virtual[key])  # empty: an exception, not virtual (§9.3)
        return False


class RcptHosts(Policy):
    """Refuses recipients in other people's domains, unless the client may relay (RELAYCLIENT)."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._domains = Watched(control, _FILES, self._read)

    @classmethod
    def from_control(cls, control: Control) -> RcptHosts:
        return cls(control)

    def _read(self) -> Domains:
        control = self._control
        percenthack = _lowered(control.list("percenthack"))
        envnoathost = (control.line("envnoathost") or b"").lower()
        rcpthosts = control.list("rcpthosts")
        if rcpthosts is not None:
            more = None
            if control.stamp("morercpthosts.cdb") is not None:
                more = CDB(control.path("morercpthosts.cdb"))
            return Domains(_lowered(rcpthosts), more, percenthack=percenthack, envnoathost=envnoathost)
        return Domains(
            None,
            locals=_lowered(control.list("locals")),
            virtual=dict(control.map("virtualdomains") or {}),
            percenthack=percenthack,
            envnoathost=envnoathost,
        )

    def connect(self, session: Session) -> Opinion:
        self._domains.get()  # files that cannot be read show now, not in the middle of a transaction
        return None

    def rcpt(self, session: Session, recipient: Address) -> Opinion:
        if session.may_relay:
            return None
        try:
            return None if self._domains.get().take(recipient.raw) else REFUSAL
        except CDBError:
            return TROUBLE


def _lowered(lines: list[bytes] | tuple[bytes, ...] | None) -> frozenset[bytes]:
    return frozenset(line.lower() for line in lines or ())
