"""What happens on the server's side of POP3: the events of :class:`qtwist.wire.pop3_server.POP3Server`.

Questions are answered by the methods of it that they name, or by ``refuse`` (spec/qmail.md §18).
"""

from __future__ import annotations

import attrs

from qtwist.wire.sasl import SaltWanted
from qtwist.wire.sasl_mechanisms import Claimed, Confirmed


@attrs.frozen
class StartTLS:
    """A question: does TLS begin? Answered by ``start_tls`` or refuse."""


@attrs.frozen
class Login:
    """A question: is this somebody? Answered by ``logged_in`` or ``refuse``.

    Either `password` or `digest` (APOP: 32 hexadecimal digits) is set. `method` is for the log. AUTH asks the same by
    Claimed and Confirmed, whose positive answer is logged_in, too.
    """

    username: bytes
    password: bytes | None = attrs.field(repr=False)
    digest: bytes | None = attrs.field(repr=False)
    method: str


@attrs.frozen
class MechanismsWanted:
    """A question: which SASL mechanisms work here? Answered by ``give_mechanisms``."""


@attrs.frozen
class SizesWanted:
    """A question: the wire sizes of all messages. Answered by ``give_sizes`` or refuse."""


@attrs.frozen
class UidsWanted:
    """A question: the unique ids of all messages. Answered by ``give_uids`` or refuse."""


@attrs.frozen
class Retrieve:
    """A question: the message at `index` (from 0). Answered by ``begin_message`` or refuse."""

    index: int
    whole: bool


@attrs.frozen
class Listing:
    """A part of a long answer is ready to be sent; more follows."""


@attrs.frozen
class Finish:
    """A question: QUIT was given, so `deleted` are to be removed and `retrieved` count as seen; indices from 0.

    Answered by ``finished``.
    """

    deleted: tuple[int, ...]
    retrieved: tuple[int, ...]


@attrs.frozen
class Quit:
    """QUIT was given before a login, and is already answered."""


Event = (
    StartTLS
    | Login
    | MechanismsWanted
    | SaltWanted
    | Claimed
    | Confirmed
    | SizesWanted
    | UidsWanted
    | Retrieve
    | Listing
    | Finish
    | Quit
)
