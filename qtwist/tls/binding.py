"""Channel binding: what both ends of a TLS connection know, and nobody between them (RFC 5929 §4, RFC 9266)."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

_LABEL = b"EXPORTER-Channel-Binding"
_SIZE = 32


def channel_bindings(connection: SSL.Connection) -> dict[bytes, bytes]:
    """The data by types, as SCRAM names these, of a server's connection whose handshake is over.

    ``tls-exporter`` is there with TLS 1.3, where it needs no extension that the client may lack.
    """
    found = {}
    if connection.get_protocol_version_name() == "TLSv1.3":
        found[b"tls-exporter"] = connection.export_keying_material(_LABEL, _SIZE, b"")
    shown = connection.get_certificate()
    if shown is not None:
        certificate = shown.to_cryptography()
        algorithm = certificate.signature_hash_algorithm
        if algorithm is None or algorithm.digest_size < hashes.SHA256.digest_size:
            algorithm = hashes.SHA256()  # for MD5 and SHA-1 too (RFC 5929 section 4.1)
        found[b"tls-server-end-point"] = certificate.fingerprint(algorithm)
    return found
