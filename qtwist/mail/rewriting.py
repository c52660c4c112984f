"""Where a recipient goes: the rewriting of envelope recipients (spec/qmail.md §9.3), and back for notices (§9.10)."""

from __future__ import annotations

import attrs

from qtwist.mail.constmap import ConstantMap, suffixes
from qtwist.mail.domains import ascii_domain

LOCAL = "local"
REMOTE = "remote"


@attrs.frozen
class Rewriter:
    """The control files that decide about recipients. `virtualdomains` maps domains, or addresses, to prefixes."""

    envnoathost: bytes
    locals: ConstantMap
    percenthack: ConstantMap = attrs.field(factory=ConstantMap)
    virtualdomains: ConstantMap = attrs.field(factory=ConstantMap)

    def route(self, recipient: bytes) -> tuple[str, bytes]:
        """Channel (``"local"`` or ``"remote"``) and rewritten address of a recipient; its letter case is kept."""
        if b"@" not in recipient:
            recipient += b"@" + self.envnoathost
        box, _, domain = recipient.rpartition(b"@")
        while b"%" in box and domain in self.percenthack:
            box, _, domain = box.rpartition(b"%")
            recipient = box + b"@" + domain
        # What stood behind the % may hold an @ itself; the last one decides (§30).
        domain = recipient.rpartition(b"@")[2]
        if domain in self.locals:
            return LOCAL, recipient
        prefix = self.virtualdomains.get(recipient)
        if prefix is None:
            prefix = self._prefix(domain)
        return (LOCAL, prefix + b"-" + recipient) if prefix else (REMOTE, recipient)

    def original(self, recipient: bytes) -> bytes:
        """A rewritten address as senders know it: without the prefix that its domain has in virtualdomains.

        Prefixes that belong to one ``user@domain`` are not taken off, as in qmail (§9.10).
        """
        _, at, domain = recipient.rpartition(b"@")
        prefix = self._prefix(domain) if at else b""
        return recipient.removeprefix(prefix + b"-") if prefix else recipient

    def _prefix(self, domain: bytes) -> bytes:
        """The prefix of the first hit for the domain; empty when nothing hits, and when the hit excepts the domain."""
        for key in suffixes(ascii_domain(domain), True):
            prefix = self.virtualdomains.get(key)
            if prefix is not None:
                return prefix
        return b""
