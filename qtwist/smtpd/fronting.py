"""XCLIENT on an SMTP connection: a trusted front end tells whom it speaks for, and that is the client from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
from twisted.logger import Logger

from qtwist.policy.connection import show
from qtwist.proxying import ClaimedAddresses
from qtwist.wire.proxy_protocol import Proxied
from qtwist.wire.smtp_events import XClient
from qtwist.wire.smtp_server import SMTPServer

if TYPE_CHECKING:
    from qtwist.policy.session import Session
    from qtwist.smtpd.factory import SMTPFactory
    from qtwist.smtpd.settings import Settings

log = Logger(namespace="qtwist.smtpd")


class Fronting:
    """The part of a connection that takes XCLIENT. What the policies have said of the front end itself is void for its
    clients, and so are its login and its certificate: each client is a new session, whose `connect` hooks are asked."""

    factory: SMTPFactory
    session: Session
    _engine: SMTPServer
    _settings: Settings | None
    _log_out: Callable[[], None]
    _prepare_logins: Callable[[Settings], None]

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[bytes, bytes | None] = {}

    def _on_xclient(self, event: XClient) -> None:
        told = self._told
        if b"ADDR" in event.attributes:
            told.clear()  # it was said of another one
        told.update(event.attributes)
        self._log_out()
        old, new = self.session, self._session_told()
        log.info("{id}: {front} speaks for {ip}", id=old.id, front=old.remote_ip, ip=new.remote_ip, told=self._shown())
        factory: Any = self.factory  # which takes an SMTPProtocol, of which this is a part
        factory.change_session(self, new)
        assert self._settings is not None
        self._prepare_logins(self._settings)
        self._engine.offer_etrn = bool(factory.etrn.get().domains(new.remote_ip))
        self._engine.accept()

    def _session_told(self) -> Session:
        """The session of the client that was told of."""
        told, old = self._told, self.session

        def text(name: bytes, default: str) -> str:
            return (told.get(name) or default.encode()).decode("ascii")

        port = "0" if b"ADDR" in told else str(old.remote_port)
        claim = Proxied(
            text(b"ADDR", old.remote_ip),
            int(text(b"PORT", port)),
            text(b"DESTADDR", old.local_ip),
            int(text(b"DESTPORT", str(old.local_port))),
        )
        session = self.factory.make_session(ClaimedAddresses(claim))
        session.id = old.id
        session.helo = told.get(b"HELO")
        session.extended = told.get(b"PROTO") == b"ESMTP"
        session.tls = None if old.tls is None else attrs.evolve(old.tls, client=None)
        name = told.get(b"NAME")
        if name is not None:
            session.environment[b"TCPREMOTEHOST"] = name
        return session

    def _shown(self) -> str:
        return " ".join(f"{show(name)}={show(value or b'-')}" for name, value in self._told.items())

    xclient_handlers: ClassVar[dict[type, Callable[[Any, Any], None]]] = {XClient: _on_xclient}
