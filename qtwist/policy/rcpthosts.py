"""control/rcpthosts and morercpthosts.cdb: the domains that mail is taken for (spec/qmail.md §16.5).

Two deviations from qmail, both so that no combination of files makes an open relay:

- Without control/rcpthosts qmail takes mail for every domain. Here the domains of control/locals and
  control/virtualdomains are then the list; a catch-all line of virtualdomains does not count as one.
- When a domain is listed in control/percenthack, the address that ``user%elsewhere@domain`` will be rewritten to
  (§9.3) must be taken here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from qtwist.files.cdb import CDB, CDBError
from qtwist.mail.address import Address, split
from qtwist.mail.constmap import ConstantMap, suffixes
from qtwist.mail.domains import ascii_domain
from qtwist.mail.rewriting import Rewriter
from qtwist.policy.base import Opinion, Policy
from qtwist.policy.session import Session
from qtwist.policy.watched import Watched
from qtwist.wire.smtp_reply import Reply

if TYPE_CHECKING:
    from qtwist.control import Control

REFUSAL = Reply(553, b"this server does not take mail for that domain (#5.7.1)")
TROUBLE = Reply(421, b"cannot read the list of domains (#4.3.0)")

_FILES = ("me", "rcpthosts", "morercpthosts.cdb", "locals", "virtualdomains", "percenthack", "envnoathost")


@attrs.frozen
class Domains:
    """The rules as they were read. `rcpthosts` is None when there is no such file.

    `rewriter` knows nothing but envnoathost and percenthack: it tells what send will make of an address.
    """

    rewriter: Rewriter
    rcpthosts: ConstantMap | None = None
    more: CDB | None = None
    locals: ConstantMap = attrs.field(factory=ConstantMap)
    virtual: ConstantMap = attrs.field(factory=ConstantMap)

    def take(self, address: bytes) -> bool:
        """Is mail for `address` taken from clients that may not relay? CDBError when the cdb is damaged."""
        if b"@" not in address:
            address += b"@" + self.rewriter.envnoathost  # taken, as in qmail, wherever the administrator sends it
        elif not self._lists(address):
            return False
        final = self.rewriter.route(address)[1]
        return final == address or self._lists(final)

    def _lists(self, address: bytes) -> bool:
        domain = ascii_domain(split(address)[1])
        if not domain:  # the key of a catch-all
            return False
        if self.rcpthosts is not None:
            keys = list(suffixes(domain, False))
            if any(key in self.rcpthosts for key in keys):
                return True
            return self.more is not None and any(self.more.get(key) is not None for key in keys)
        if domain in self.locals:
            return True
        for key in (address, *suffixes(domain, False)):
            prefix = self.virtual.get(key)
            if prefix is not None:
                return bool(prefix)  # empty: an exception, not virtual (§9.3)
        return False


class RcptHosts(Policy):
    """Refuses recipients in other people's domains, unless the client may relay (RELAYCLIENT)."""

    name = "rcpthosts"

    def __init__(self, control: Control) -> None:
        self._control = control
        self._domains = Watched(control, _FILES, self._read)

    @classmethod
    def from_control(cls, control: Control) -> RcptHosts:
        return cls(control)

    def _read(self) -> Domains:
        control = self._control
        rewriter = Rewriter(
            envnoathost=control.line("envnoathost") or b"",
            locals=ConstantMap(),
            percenthack=ConstantMap.plain(control.list("percenthack") or ()),
        )
        rcpthosts = control.list("rcpthosts")
        if rcpthosts is None:
            return Domains(
                rewriter,
                locals=ConstantMap.plain(control.list("locals") or ()),
                virtual=ConstantMap.colon(control.list("virtualdomains") or ()),
            )
        more = None
        if control.stamp("morercpthosts.cdb") is not None:
            more = CDB(control.path("morercpthosts.cdb"))
        return Domains(rewriter, ConstantMap.plain(rcpthosts), more)

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
