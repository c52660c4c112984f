"""What a server's connection needs to speak TLS: mixed into its protocol (RFC 3207, RFC 2595 §4, RFC 8314 §3)."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qtwist.tls.contexts import describe, reasons
from qtwist.tls.info import TLSInfo

#: How long a handshake may take, and the client's part of the goodbye (seconds).
HANDSHAKE_SECONDS = 60
GOODBYE_SECONDS = 10

_log = Logger(namespace="qtwist.tls")


@implementer(IHandshakeListener)
class TLSConnection:
    """Starts TLS, waits for the end of the handshake, and says what came of it.

    The protocol has `transport`, an engine, and a `factory` with `certificates` and a `clock`. While `handshaking` it
    must not write. `implicit_tls` is set before the connection is made, on ports where TLS begins before the first
    word.
    """

    transport: Any
    factory: Any
    _engine: Any
    _choked: bool

    implicit_tls = False
    proxied: Any = None  # the addresses that a proxy has told (qtwist.proxying), where one did
    handshaking = False
    _tls_id = ""
    _tls_timer: IDelayedCall | None = None
    _tls_in_time = True

    def tls_begins(self, info: TLSInfo) -> None:
        """The handshake is over; the protocol goes on."""
        raise NotImplementedError

    def is_tls_from_the_start(self, name: str) -> bool:
        """Whether the connection, just made, is one with TLS before the first word, which begins now; `name` is how it
        is called in the log. Where there is no certificate, all is over."""
        self._tls_id = name
        if self.implicit_tls:
            creator = self.factory.certificates.creator()
            if creator is None:
                _log.error("{id}: closed, TLS was expected but there is no certificate that can be used", id=name)
                self._engine.close()
            else:
                self.start_tls(creator)
            return True
        if ISSLTransport.providedBy(self.transport):  # an ssl: endpoint
            self._wait_for_handshake()
            return True
        return False

    def start_tls(self, creator: Any) -> None:
        """Begin, as what was to be sent in the clear has been written. `creator` is what Certificates gave."""
        self.transport.startTLS(creator)
        # The transport has hooked us up anew: it will not say again that it can take more.
        self._choked = False
        self._wait_for_handshake()

    def _wait_for_handshake(self) -> None:
        self.handshaking = True
        self._tls_timer = self.factory.clock.callLater(HANDSHAKE_SECONDS, self._tls_too_slow)

    def handshakeCompleted(self) -> None:
        """As IHandshakeListener says."""
        self.handshaking = False
        self._stop_tls_timer()
        info = describe(self.transport.getHandle())
        _log.debug("{id}: {version} {cipher}", id=self._tls_id, version=info.version, cipher=info.cipher)
        self.tls_begins(info)

    def leave_tls(self) -> None:
        """Close the connection; over TLS, wait a while for the client's goodbye, not as long as it likes."""
        transport: Any = self.transport
        encrypted: bool = ISSLTransport.providedBy(transport)
        if encrypted:
            transport.resumeProducing()
            self._tls_timer = self.factory.clock.callLater(GOODBYE_SECONDS, self._tls_too_slow)
        transport.loseConnection()

    def tls_lost(self, reason: Failure) -> None:
        """The connection is gone. A handshake that failed gets its line in the log."""
        self._stop_tls_timer()
        if self.handshaking:
            self.handshaking = False
            _log.info(
                "{id}: TLS handshake with {ip} failed: {why}",
                id=self._tls_id,
                ip=getattr((self.proxied or self.transport).getPeer(), "host", "a local client"),
                why=self._why(reason.value),
            )

    def _why(self, error: BaseException | None) -> str:
        if not self._tls_in_time:
            return f"not over in {HANDSHAKE_SECONDS} seconds"
        if isinstance(error, SSL.Error):
            return reasons(error)
        return "the client has gone"

    def _tls_too_slow(self) -> None:
        self._tls_timer = None
        self._tls_in_time = False
        self.transport.abortConnection()

    def _stop_tls_timer(self) -> None:
        timer, self._tls_timer = self._tls_timer, None
        if timer is not None:
            timer.cancel()
