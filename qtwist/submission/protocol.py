"""One connection of somebody who submits mail: SMTP, with the header made whole on the way into the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.logger import Logger

from qtwist.files.cdb import CDBError
from qtwist.inject.submitted import HeaderTooLong, Submitted, completed
from qtwist.mail.address import Address
from qtwist.smtpd.protocol import SMTPProtocol
from qtwist.wire import smtp_events as wire
from qtwist.wire.smtp_reply import Reply

if TYPE_CHECKING:
    from qtwist.submission.factory import SubmissionFactory

log = Logger(namespace="qtwist.submission")

TOO_LONG = Reply(554, b"the header of the message is too long (#5.6.0)")
TROUBLE = Reply(451, b"the header cannot be completed now, try again later (#4.3.0)")


class SubmissionProtocol(SMTPProtocol):
    """Completes the addresses of the envelope and the header of the message."""

    factory: SubmissionFactory

    def __init__(self) -> None:
        super().__init__()
        self._submitted: Submitted | None = None
        self._refusal: Reply | None = None  # why the header cannot be taken

    def _on_mail(self, event: wire.Mail) -> None:
        super()._on_mail(attrs.evolve(event, address=self._completed(event.address)))

    def _on_rcpt(self, event: wire.Rcpt) -> None:
        super()._on_rcpt(attrs.evolve(event, address=self._completed(event.address)))

    def _completed(self, address: bytes) -> bytes:
        return completed(self.factory.rules.get().complete, address)

    def _on_chunk(self, event: wire.Chunk) -> None:
        data = self._with_header(lambda submitted: submitted.feed(event.data))
        if data:
            super()._on_chunk(wire.Chunk(data))

    def _on_end_of_message(self, event: wire.EndOfMessage) -> None:
        if event.refusal is None:
            data = self._with_header(lambda submitted: submitted.finish())
            if data and self._incoming is not None:
                if self._header is not None:
                    self._header.feed(data)
                # A message without a body: so small that there is no need to wait until it is written.
                self._incoming.write(data)
        if self._submitted is not None:
            self.session.authors = self._submitted.authors
        refusal = event.refusal or self._refusal
        super()._on_end_of_message(attrs.evolve(event, refusal=refusal))

    def _with_header(self, work: Callable[[Submitted], bytes]) -> bytes:
        """What `work` gives of the message; nothing once its header is refused."""
        if self._refusal is None:
            try:
                if self._submitted is None:
                    self._submitted = self._begin()
                return work(self._submitted)
            except HeaderTooLong:
                self._refusal = TOO_LONG
            except (CDBError, OSError) as error:
                log.error("{id}: control/ofmipname.cdb: {error}", id=self.session.id, error=str(error))
                self._refusal = TROUBLE
        return b""

    def _begin(self) -> Submitted:
        """The message begins; the name database may have another sender for it (spec/related.md §9.1)."""
        session = self.session
        assert session.sender is not None
        naming = self.factory.naming(session)
        if naming.name is not None:
            session.sender = Address(naming.sender)
        return Submitted(naming)

    def _forget_message(self) -> None:
        self._submitted = self._refusal = None
        self.session.authors = []
        super()._forget_message()

    handlers: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **SMTPProtocol.handlers,
        wire.Mail: _on_mail,
        wire.Rcpt: _on_rcpt,
        wire.Chunk: _on_chunk,
        wire.EndOfMessage: _on_end_of_message,
    }
