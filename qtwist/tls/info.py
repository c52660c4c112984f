"""What is known of an encrypted connection: plain values, so that sessions can have them without loading OpenSSL."""

from __future__ import annotations

import attrs


@attrs.frozen
class ClientCertificate:
    """A certificate that a client has shown and that an authority of control/clientca.pem vouches for.

    `subject` is its name as RFC 4514 writes it, `emails` the addresses in it, `fingerprint` its SHA-256 in hexadecimal.
    """

    subject: str
    emails: tuple[bytes, ...]
    fingerprint: str


@attrs.frozen
class TLSInfo:
    """How a connection is encrypted. `version` and `cipher` are OpenSSL's names (``TLSv1.3``,
    ``TLS_AES_256_GCM_SHA384``); `server_name` is what the client asked for (SNI, RFC 6066 §3), None if for nothing;
    `client` is None unless its certificate was verified."""

    version: str
    cipher: str
    server_name: str | None = None
    client: ClientCertificate | None = None
