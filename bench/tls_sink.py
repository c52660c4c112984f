"""An SMTP server that offers STARTTLS and throws mail away: `python -m bench.tls_sink PORT CERTIFICATE KEY`."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.protocols.basic import LineReceiver

reactor: Any = _reactor
OFFERS = b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 STARTTLS"
SECURED_OFFERS = b"250-sink.test\r\n250-PIPELINING\r\n250 8BITMIME"


class Sink(LineReceiver):
    """Yes to everything; nothing but the dialogue is checked, and only its first letters."""

    MAX_LENGTH = 1 << 20
    secured = False
    end = b""

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.sendLine(b"220 sink.test ESMTP")

    def lineReceived(self, line: bytes) -> None:
        verb = line[:4].upper()
        if verb == b"EHLO":
            self.sendLine(SECURED_OFFERS if self.secured else OFFERS)
        elif verb == b"STAR":
            self.sendLine(b"220 go")
            self.secured = True
            self.transport.startTLS(self.factory.contexts)
        elif verb == b"DATA":
            self.sendLine(b"354 go")
            self.end = b"\r\n"
            self.setRawMode()
        elif verb == b"QUIT":
            self.sendLine(b"221 bye")
            self.transport.loseConnection()
        else:
            self.sendLine(b"250 ok")

    def rawDataReceived(self, data: bytes) -> None:
        data = self.end + data
        at = data.find(b"\r\n.\r\n")
        if at < 0:
            self.end = data[-4:]
        else:
            self.sendLine(b"250 ok")
            self.setLineMode(data[at + 5 :])


def main() -> None:
    port, certificate, key = sys.argv[1:]
    factory: Any = Factory.forProtocol(Sink)
    factory.noisy = False
    factory.contexts = DefaultOpenSSLContextFactory(key, certificate)
    reactor.listenTCP(int(port), factory, 1024, "127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
