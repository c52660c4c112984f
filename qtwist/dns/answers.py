"""What a reply means for the question: records, nothing, or "ask for this other name".

Follows CNAME chains inside one reply (RFC 1034 §3.6.2). Pure: no sockets, no clock.
"""

from __future__ import annotations

import attrs

from qtwist.dns.message import CNAME, NXDOMAIN, Question, Reply
from qtwist.interfaces import Answer, DNSTemporaryError

MAX_ALIASES = 16


@attrs.frozen
class Alias:
    """The reply leads to `target` and says nothing of it.

    `ttl` and `authenticated` are those of the chain so far; `hops` counts its CNAME records.
    """

    target: bytes
    ttl: int
    authenticated: bool
    hops: int


def conclude(reply: Reply, question: Question, hops: int = 0) -> Answer | Alias:
    """The answer in a NOERROR or NXDOMAIN reply. `hops` CNAME records were followed before this reply.

    The TTL is the smallest on the way; without records it is the negative TTL, 0 when the reply has no SOA record
    (such answers must not be cached, RFC 2308 §5). DNSTemporaryError when a chain passes 16 CNAME records, as a loop
    does.
    """
    name = question.name
    ttl = None
    aliases = {record.name: record for record in reversed(reply.answers) if record.type == CNAME}
    while True:
        found = [record for record in reply.answers if record.type == question.type and record.name == name]
        if found:
            ttls = [record.ttl for record in found]
            if ttl is not None:
                ttls.append(ttl)
            return Answer("ok", tuple(record.value for record in found), reply.authenticated, min(ttls))
        alias = aliases.get(name)
        if alias is None:
            break
        hops += 1
        if hops > MAX_ALIASES:
            raise DNSTemporaryError("CNAME chain is too long")
        assert isinstance(alias.value, bytes)
        name = alias.value.lower()
        ttl = alias.ttl if ttl is None else min(ttl, alias.ttl)
    if reply.rcode != NXDOMAIN and ttl is not None and reply.negative_ttl is None:
        return Alias(name, ttl, reply.authenticated, hops)
    negative = reply.negative_ttl or 0
    if ttl is not None:
        negative = min(negative, ttl)
    return Answer("nxdomain" if reply.rcode == NXDOMAIN else "nodata", (), reply.authenticated, negative)
