"""What happens on the server's side of an SMTP connection: the events of :class:`qtwist.wire.smtp_server.SMTPServer`.

Connect, Helo, StartTLS, XClient, Etrn, Mail, Rcpt, Data and EndOfMessage are questions, and so are those of AUTH.
"""

from __future__ import annotations

import attrs

from qtwist.wire.sasl import SaltWanted
from qtwist.wire.sasl_mechanisms import Claimed, Confirmed
from qtwist.wire.smtp_chunking import Chunk, Data
from qtwist.wire.smtp_etrn import Etrn
from qtwist.wire.smtp_reply import Reply
from qtwist.wire.xclient import XClient

# Those that are written beside what asks them.
__all__ = ["Chunk", "Claimed", "Confirmed", "Data", "Etrn", "SaltWanted", "XClient"]


@attrs.frozen
class Connect:
    """A question: does the connection get its greeting?"""


@attrs.frozen
class Helo:
    """A question: HELO, or EHLO when `extended`. Whatever the answer, the transaction is reset."""

    name: bytes
    extended: bool


@attrs.frozen
class StartTLS:
    """A question: does TLS begin? Yes (:meth:`SMTPServer.accept`) is answered 220; then the shell sends what there is
    to send and starts TLS at once: the machine has forgotten greeting and transaction, and what it is given next
    must have come through TLS (RFC 3207 §4.2)."""


@attrs.frozen
class Mail:
    """A question: a transaction begins. `params` maps upper-case ESMTP keywords to their values."""

    address: bytes
    params: dict[bytes, bytes]


@attrs.frozen
class Rcpt:
    """A question: may the message go to this recipient?"""

    address: bytes
    params: dict[bytes, bytes]


@attrs.frozen
class Reset:
    """The client gave RSET, which is already answered."""


@attrs.frozen
class EndOfMessage:
    """A question: is the message taken? `size` counts its octets, `hops` its Received and Delivered lines.

    When `refusal` is set the message must be thrown away, and `refusal` is what to answer.
    """

    size: int
    hops: int
    refusal: Reply | None


@attrs.frozen
class Quit:
    """The client gave QUIT, which is already answered."""


Event = (
    Connect
    | Helo
    | StartTLS
    | XClient
    | Etrn
    | SaltWanted
    | Claimed
    | Confirmed
    | Mail
    | Rcpt
    | Reset
    | Data
    | Chunk
    | EndOfMessage
    | Quit
)
