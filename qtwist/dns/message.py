"""DNS messages: a question in wire form, and a reply checked against its question and taken apart.

Built on Twisted's public codec, twisted.names.dns.Message, with its leniency taken out: the codec forgives messages
that end early and records whose data is longer or shorter than they say. Pure: no sockets, no clock.
"""

from __future__ import annotations

import socket
import struct
from typing import IO, Any

import attrs
from twisted.names import dns

A = dns.A
AAAA = dns.AAAA
CNAME = dns.CNAME
MX = dns.MX
PTR = dns.PTR
SOA = dns.SOA
TLSA = 52
TXT = dns.TXT

NOERROR = dns.OK
FORMERR = dns.EFORMAT
SERVFAIL = dns.ESERVER
NXDOMAIN = dns.ENAME
NOTIMP = dns.ENOTIMP
REFUSED = dns.EREFUSED
BADVERS = 16

_RCODE_NAMES = {
    FORMERR: "FORMERR",
    SERVFAIL: "SERVFAIL",
    NXDOMAIN: "NXDOMAIN",
    NOTIMP: "NOTIMP",
    REFUSED: "REFUSED",
    BADVERS: "BADVERS",
}

# Fits an IPv6 packet of minimal MTU, so that no path has to fragment it (the "DNS flag day 2020" figure).
UDP_PAYLOAD = 1232


class MalformedReply(Exception):
    """The reply to our question does not decode. `args[0]` says why."""


@attrs.frozen
class Question:
    """What is asked: a canonical name (see :mod:`qtwist.dns.names`) and a record type; the class is always IN."""

    name: bytes
    type: int


@attrs.frozen
class Record:
    """A record of the answer section. `name` is in lower case, `ttl` in seconds.

    `value` is a str for A and AAAA, bytes for CNAME, PTR and TXT (strings joined), ``(preference, exchange)`` for MX
    and ``(usage, selector, matching type, data)`` for TLSA.
    """

    name: bytes
    type: int
    ttl: int
    value: object


@attrs.frozen
class Reply:
    """A reply that belongs to the question. A truncated one has no records: ask again over TCP.

    `negative_ttl` is how long the absence of records holds, in seconds, by the SOA record of the authority section
    (RFC 2308 §5), or None without one.
    """

    rcode: int
    truncated: bool
    authenticated: bool
    authoritative: bool
    recursive: bool
    answers: tuple[Record, ...] = ()
    negative_ttl: int | None = None

    @property
    def rcode_name(self) -> str:
        return _RCODE_NAMES.get(self.rcode, f"rcode {self.rcode}")


class _StrictMessage(dns.Message):
    """A message whose records must be complete and exactly as long as they say."""

    # Types whose data holds names, which only the codec can uncompress, and addresses. All others stay raw octets.
    _DECODERS: dict[int, Any] = {
        A: dns.Record_A,
        AAAA: dns.Record_AAAA,
        CNAME: dns.Record_CNAME,
        MX: dns.Record_MX,
        PTR: dns.Record_PTR,
        SOA: dns.Record_SOA,
    }

    def lookupRecordType(self, type: int) -> Any:
        return self._DECODERS.get(type, dns.UnknownRecord)

    def parseRecords(self, list: list[dns.RRHeader], num: int, strio: IO[bytes]) -> None:
        if self.trunc:
            return  # may end anywhere, and is not used
        for _ in range(num):
            header = dns.RRHeader(auth=bool(self.auth))
            header.decode(strio)
            length = header.rdlength or 0
            end = strio.tell() + length
            payload = self.lookupRecordType(header.type)(ttl=header.ttl)
            payload.decode(strio, length)
            if strio.tell() != end:
                raise MalformedReply("record of the wrong length")
            header.payload = payload
            list.append(header)


def encode_query(question: Question, number: int, *, edns: bool) -> bytes:
    """The query in wire form, with `number` as its id.

    RD asks for recursion. AD asks to be told whether the answer was validated, without the signatures themselves
    (RFC 6840 §5.7). `edns` adds an OPT record that allows UDP replies of 1232 octets (RFC 6891).
    """
    message = dns.Message(id=number, recDes=1, authenticData=1)
    message.addQuery(question.name, question.type, dns.IN)
    if edns:
        message.additional.append(dns.RRHeader(type=dns.OPT, cls=UDP_PAYLOAD, payload=dns.UnknownRecord(b"")))
    return message.toStr()


def decode_reply(wire: bytes, question: Question, number: int) -> Reply | None:
    """Take apart what came back.

    None when it is not a reply to this question: another id, another question, not a reply at all; whoever waits goes
    on waiting. MalformedReply when it is one but does not decode. Names are compared without regard to case.
    """
    if len(wire) < dns.Message.headerSize or int.from_bytes(wire[:2], "big") != number or not wire[2] & 0x80:
        return None
    message = _StrictMessage()
    try:
        message.fromStr(wire)
        if not _is_asked(message, question):
            return None
        return _reply(message)
    except (EOFError, ValueError, struct.error) as error:
        raise MalformedReply(str(error) or "ends early") from error


def _is_asked(message: dns.Message, question: Question) -> bool:
    if len(message.queries) != 1 or message.opCode != dns.OP_QUERY:
        # A server that cannot even read the query may leave the question out (RFC 1035 §4.1.1): that says FORMERR.
        return not message.queries and message.rCode == FORMERR and not message.answers
    asked = message.queries[0]
    return asked.type == question.type and asked.cls == dns.IN and asked.name.name.lower() == question.name


def _reply(message: dns.Message) -> Reply:
    rcode = message.rCode
    for header in message.additional:
        if header.type == dns.OPT:
            rcode |= header.ttl >> 24 << 4  # the upper bits of the code (RFC 6891 §6.1.3)
    records = [_record(header) for header in message.answers if header.cls == dns.IN]
    return Reply(
        rcode,
        bool(message.trunc),
        bool(message.authenticData),
        bool(message.auth),
        bool(message.recAv),
        tuple(record for record in records if record is not None),
        _negative_ttl(message),
    )


def _record(header: dns.RRHeader) -> Record | None:
    payload: Any = header.payload
    value: object
    if header.type == A:
        value = socket.inet_ntop(socket.AF_INET, payload.address)
    elif header.type == AAAA:
        value = socket.inet_ntop(socket.AF_INET6, payload.address)
    elif header.type in (CNAME, PTR):
        value = payload.name.name
    elif header.type == MX:
        value = (payload.preference, payload.name.name)
    elif header.type == TXT:
        value = _joined_strings(payload.data)
    elif header.type == TLSA:
        if len(payload.data) < 3:
            raise MalformedReply("TLSA record of the wrong length")
        value = (payload.data[0], payload.data[1], payload.data[2], payload.data[3:])
    else:
        return None
    return Record(header.name.name.lower(), header.type, _ttl(header.ttl), value)


def _joined_strings(data: bytes) -> bytes:
    strings = []
    position = 0
    while position < len(data):
        end = position + 1 + data[position]
        if end > len(data):
            raise MalformedReply("TXT record of the wrong length")
        strings.append(data[position + 1 : end])
        position = end
    return b"".join(strings)


def _negative_ttl(message: dns.Message) -> int | None:
    for header in message.authority:
        if header.type == SOA and header.cls == dns.IN:
            soa: Any = header.payload
            return min(_ttl(header.ttl), _ttl(soa.minimum))
    return None


def _ttl(value: int) -> int:
    # Values with the top bit set count as zero (RFC 2181 §8).
    return value if 0 <= value < 1 << 31 else 0
