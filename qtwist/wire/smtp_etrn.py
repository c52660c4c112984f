"""ETRN, as the part of an SMTP server's engine by which a host asks for its mail (RFC 1985)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from qtwist.mail.domains import ascii_domain

_NODE = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,253}[A-Za-z0-9])?")


@attrs.frozen
class Etrn:
    """May the mail for `domain`, in small letters and ASCII, be sent now? :meth:`SMTPServer.reply` answers."""

    domain: bytes


class Turning:
    """What the engine needs to take ETRN: for a domain by its name. There are no queues with names of their own
    (``#``), and no ETRN for all domains below one (``@``)."""

    #: Set by the shell, for clients that may ask.
    offer_etrn = False

    _has_sender: bool
    _error: Callable[[int, bytes], None]

    def _ask(self, question: Any) -> Any:
        raise NotImplementedError

    def _etrn(self, argument: bytes) -> Etrn | None:
        node = ascii_domain(argument.strip())
        if not self.offer_etrn:
            self._error(502, b"unimplemented (#5.5.1)")
        elif self._has_sender:
            self._error(503, b"not in the middle of a transaction (#5.5.1)")
        elif not _NODE.fullmatch(node):
            self._error(501, b"the name of a domain is needed (#5.5.4)")
        else:
            asked: Etrn = self._ask(Etrn(node))
            return asked
        return None
