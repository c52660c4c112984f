"""What a POP3 session asks of a mailbox: the avatar of somebody who has logged in.

A mailbox of another kind needs an IMaildrop, and a realm that hands it out. All calls are made in the reactor thread,
one after the other: the next one when the last one's Deferred has fired. The exceptions named here have a text for the
log; any other one is logged with its traceback and answered as a temporary trouble.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from twisted.internet.defer import Deferred
from zope.interface import Interface


class MaildropError(Exception):
    """It does not work, and will not until somebody changes something (no such folder, no permission)."""


class MaildropTrouble(Exception):
    """It does not work now (an error of the disk, too many files open)."""


class MaildropInUse(Exception):
    """Somebody else has the mailbox to himself just now."""


class MessageGone(Exception):
    """The message is no longer there: somebody else has removed it."""


class IMessageSource(Interface):
    """A message that is being sent."""

    def read() -> Deferred[bytes]:
        """Fires with the next octets, as stored with LF line ends; empty at the end."""

    def close() -> None:
        """No more is read. Called once, at any time when no read is under way."""


class IMaildrop(Interface):
    """A mailbox of one session. Messages are counted from 0 and stay as they were when it was opened."""

    def open() -> Deferred[int]:
        """Fires with the number of messages. Called first. MaildropError, MaildropTrouble, MaildropInUse."""

    def sizes() -> Deferred[Sequence[int]]:
        """Fires with the octets of each message with each LF counted as CRLF (RFC 1939 §11)."""

    def uids() -> Deferred[Sequence[bytes]]:
        """Fires with, for each message what it is known by in all sessions.

        1 to 70 printable ASCII characters without blanks, none twice (RFC 1939 §7).
        """

    def fetch(index: int) -> Deferred[IMessageSource]:
        """Open a message. MessageGone, MaildropTrouble."""

    def finish(deleted: Collection[int], retrieved: Collection[int]) -> Deferred[int]:
        """The session has ended with QUIT: remove the messages with the indices `deleted`, and note that `retrieved`
        have been read. Fires with how many could not be removed; those that were gone already do not count."""

    def close() -> None:
        """The session is over; without finish() nothing may have changed. Called once, maybe while a call above is
        still under way."""
