"""What the queue manager and its spawners say to each other, one packet each (SOCK_SEQPACKET; spec/qmail.md §11.1).

A request carries the message as an open descriptor beside these octets; packets keep their bounds, so nothing here is
read in pieces. ValueError for a packet that is none. Without Twisted: the process that runs as root imports this.
"""

from __future__ import annotations

import struct

#: No packet is longer (octets).
LONGEST = 65536

#: The octets of a delivery's output that go into a reply; a report shows about 3,000 (§11.2).
LONGEST_OUTPUT = 10_000

_REQUEST = struct.Struct("!IQ")
_REPLY = struct.Struct("!Ii")


def request(
    delivery: int,
    number: int,
    sender: bytes,
    recipient: bytes,
    siblings: int = 1,
    parameters: tuple[bytes, bytes] = (b"", b""),
) -> bytes:
    """Asks for delivery `delivery` (any number not in use) of message `number`; `siblings` as in Delivery, `parameters`
    are those of message and recipient (:mod:`qtwist.mail.asked`)."""
    if b"\0" in sender or b"\0" in recipient:
        raise ValueError("an address contains NUL")
    packet = _REQUEST.pack(delivery, number) + sender + b"\0" + recipient
    if parameters != (b"", b""):
        return packet + b"\0%d\0%b\0%b" % (siblings, *parameters)
    return packet + b"\0%d" % siblings if siblings > 1 else packet


def read_request(packet: bytes) -> tuple[int, int, bytes, bytes, int]:
    """What :func:`request` was given, without the parameters."""
    try:
        delivery, number = _REQUEST.unpack_from(packet)
        sender, recipient, *rest = packet[_REQUEST.size :].split(b"\0")
        if len(rest) not in (0, 1, 3):
            raise ValueError("another number of values")
        siblings = int(rest[0]) if rest else 1
    except (struct.error, ValueError) as error:
        raise ValueError(f"no request for a delivery: {packet[:100]!r}") from error
    return delivery, number, sender, recipient, siblings


def read_parameters(packet: bytes) -> tuple[bytes, bytes]:
    """The parameters in a packet that :func:`read_request` has read."""
    values = packet[_REQUEST.size :].split(b"\0")
    return (values[3], values[4]) if len(values) == 5 else (b"", b"")


def reply(delivery: int, code: int, output: bytes) -> bytes:
    """Answers a request: an exit code (negative: killed by a signal) and what the delivery had to say."""
    return _REPLY.pack(delivery, code) + output[:LONGEST_OUTPUT]


def read_reply(packet: bytes) -> tuple[int, int, bytes]:
    """What :func:`reply` was given."""
    try:
        delivery, code = _REPLY.unpack_from(packet)
    except struct.error as error:
        raise ValueError(f"no reply to a delivery: {packet[:100]!r}") from error
    return delivery, code, packet[_REPLY.size :]


def fields(*values: bytes) -> bytes:
    """Values without NUL as one packet."""
    if any(b"\0" in value for value in values):
        raise ValueError("a value contains NUL")
    return b"\0".join(values)


def read_fields(packet: bytes, count: int) -> list[bytes]:
    """The `count` values of a packet of :func:`fields`."""
    values = packet.split(b"\0")
    if len(values) != count:
        raise ValueError(f"{len(values)} values in place of {count}: {packet[:100]!r}")
    return values
