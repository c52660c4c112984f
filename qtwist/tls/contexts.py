"""Certificate files as OpenSSL contexts (spec/related.md §14.3: servercert.pem, clientca.pem, clientcrl.pem).

TLS 1.2 and newer, no renegotiation, no compression, no session resumption, no ALPN; what OpenSSL has at its security
level for the rest.
"""

from __future__ import annotations

import hashlib
import re

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from OpenSSL import SSL, crypto

from qtwist.control_reading import ControlError, read
from qtwist.tls.info import ClientCertificate, TLSInfo

#: Key exchange with forward secrecy, authenticated encryption first; CBC for hosts that have nothing newer. It is about
#: TLS 1.2, as those of 1.3 are good all.
SERVER_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AES:!aNULL:!eNULL"

#: The other way, encryption with whatever there is is better than none.
CLIENT_CIPHERS = b"DEFAULT:!aNULL:!eNULL"

_KEY = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)


@attrs.frozen
class Identity:
    """A certificate, those between it and its authority, and its private key."""

    chain: tuple[x509.Certificate, ...]
    key: crypto.PKey = attrs.field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def names(self) -> set[str]:
        """The host names that the certificate is for, in lower case."""
        try:
            others = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (x509.ExtensionNotFound, ValueError):
            return set()
        return {name.lower() for name in others.get_values_for_type(x509.DNSName)}

    @property
    def tlsa(self) -> str:
        """What a TLSA record for the key says: ``3 1 1`` and its SHA-256 (RFC 6698 §2.1, RFC 7671 §5.1)."""
        key = self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"3 1 1 {hashlib.sha256(key).hexdigest()}"


@attrs.frozen
class Authorities:
    """Who vouches for clients, and what they have revoked (`revoked` is None where nobody asks)."""

    certificates: tuple[x509.Certificate, ...]
    revoked: x509.CertificateRevocationList | None = None


def read_pem(path: str) -> bytes:
    """The contents of a file. ControlError when it is not there or cannot be read."""
    text = read(path)
    if text is None:
        raise ControlError(path, None, "nothing", "a PEM file")
    return text


def read_certificates(path: str) -> tuple[x509.Certificate, ...]:
    """All certificates of a PEM file, at least one. ControlError."""
    return _certificates(path, read_pem(path))


def read_identity(path: str) -> Identity:
    """The certificate in `path` (first its own, then the others of its chain) with its private key, which stands in the
    same file, before or behind. ControlError."""
    text = read_pem(path)
    chain = _certificates(path, text)
    found = _KEY.search(text)
    if found is None:
        raise ControlError(path, None, "no private key", "one in the file, beside its certificate")
    try:
        key = load_pem_private_key(found[0], None)
    except TypeError as error:
        raise ControlError(path, None, "a private key with a passphrase", "one without") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ControlError(path, None, "a private key that cannot be read", "one in PEM") from error
    if key.public_key() != chain[0].public_key():
        raise ControlError(path, None, "a private key that is not the first certificate's", "its own")
    return Identity(chain, crypto.PKey.from_cryptography_key(key))  # type: ignore[arg-type]


def read_authorities(path: str, revoked: str | None = None) -> Authorities:
    """The authorities in `path`; `revoked` is a file with a list of what they have revoked. ControlError."""
    certificates = read_certificates(path)
    if revoked is None:
        return Authorities(certificates)
    try:
        return Authorities(certificates, x509.load_pem_x509_crl(read_pem(revoked)))
    except ValueError as error:
        raise ControlError(revoked, None, "no list of revoked certificates", "one in PEM") from error


def _certificates(path: str, text: bytes) -> tuple[x509.Certificate, ...]:
    try:
        return tuple(x509.load_pem_x509_certificates(text))
    except ValueError as error:
        raise ControlError(path, None, "no certificate that can be read", "one in PEM") from error


def base_context(method: int, ciphers: bytes, path: str) -> SSL.Context:
    """What all our contexts have in common. ControlError, with `path`, when OpenSSL knows none of `ciphers`."""
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    try:
        context.set_cipher_list(ciphers)
    except SSL.Error as error:
        raise ControlError(path, None, repr(ciphers)[1:], "ciphers as `openssl ciphers` takes them") from error
    return context


def use_identity(context: SSL.Context, identity: Identity, path: str) -> None:
    """Show `identity` to the other side. ControlError, with `path`, when OpenSSL thinks it too weak."""
    try:
        context.use_certificate(crypto.X509.from_cryptography(identity.chain[0]))
        for certificate in identity.chain[1:]:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(certificate))
        context.use_privatekey(identity.key)
    except SSL.Error as error:
        raise ControlError(path, None, reasons(error), "a certificate that OpenSSL takes") from error


def server_context(
    identity: Identity, path: str, ciphers: bytes, ciphers_path: str, authorities: Authorities | None = None
) -> SSL.Context:
    """A context that shows `identity`. With `authorities` it asks clients for a certificate; one that nobody vouches
    for is as good as none. ControlError, with the path of the file that is wrong."""
    context = base_context(SSL.TLS_SERVER_METHOD, ciphers, ciphers_path)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    use_identity(context, identity, path)
    if authorities is not None:
        store = context.get_cert_store()
        assert store is not None
        for certificate in authorities.certificates:
            store.add_cert(crypto.X509.from_cryptography(certificate))
            context.add_client_ca(crypto.X509.from_cryptography(certificate))
        if authorities.revoked is not None:
            store.add_crl(authorities.revoked)
            store.set_flags(crypto.X509StoreFlags.CRL_CHECK)
        context.set_verify(SSL.VERIFY_PEER, _note)
    return context


def client_context(
    authorities: str | None, ciphers: bytes, ciphers_path: str, identity_path: str | None
) -> SSL.Context:
    """A context for connections to other hosts, whose certificates are looked at but never end the handshake.

    `authorities` is a file with those that count, or with the very certificate that is expected; None stands for those
    of the system. `identity_path` is a file with our own certificate for those who ask for one. ControlError, with the
    path of the file that is wrong.
    """
    context = base_context(SSL.TLS_CLIENT_METHOD, ciphers, ciphers_path)
    if identity_path is not None:
        use_identity(context, read_identity(identity_path), identity_path)
    if authorities is None:
        context.set_default_verify_paths()
    else:
        store = context.get_cert_store()
        assert store is not None
        for certificate in read_certificates(authorities):
            store.add_cert(crypto.X509.from_cryptography(certificate))
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    context.set_verify(SSL.VERIFY_PEER, _note)
    return context


class CheckedConnection(SSL.Connection):
    """One side of a connection that begins with `context`. `problem` is why the other side's certificate is not
    believed, as far as its authorities and its dates are concerned.

    The attributes are ours because Twisted uses the application data that OpenSSL offers. `first_context` is kept
    because OpenSSL goes on calling what belongs to it, even when another certificate was chosen and the context itself
    is no longer in use elsewhere.
    """

    def __init__(self, context: SSL.Context) -> None:
        super().__init__(context, None)
        self.first_context = context
        self.problem: str | None = None


def _note(connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, ok: int) -> bool:
    """Verification goes on, whatever is wrong: mail must not be lost because somebody shows a strange certificate."""
    if not ok:
        assert isinstance(connection, CheckedConnection)
        connection.problem = connection.problem or _PROBLEMS.get(
            number, f"the certificate is not good (error {number})"
        )
    return True


# By OpenSSL's numbers (x509_vfy.h).
_PROBLEMS = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate comes from an unknown authority",
    20: "the certificate comes from an unknown authority",
    21: "the certificate comes from an unknown authority",
    23: "the certificate was revoked",
}


def describe(connection: SSL.Connection) -> TLSInfo:
    """What a server knows of a connection once its handshake is over."""
    name = connection.get_servername()
    return TLSInfo(
        version=connection.get_protocol_version_name(),
        cipher=connection.get_cipher_name() or "unknown",
        server_name=None if name is None else name.decode("ascii", "backslashreplace"),
        client=_client(connection),
    )


def _client(connection: SSL.Connection) -> ClientCertificate | None:
    shown = connection.get_peer_certificate()
    if shown is None or not isinstance(connection, CheckedConnection) or connection.problem is not None:
        return None
    certificate = shown.to_cryptography()
    return ClientCertificate(
        subject=certificate.subject.rfc4514_string(),
        emails=tuple(_emails(certificate)),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _emails(certificate: x509.Certificate) -> list[bytes]:
    """The addresses that a certificate is for: in its subject, as the TLS patch looks for them, and its other names."""
    found = [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.EMAIL_ADDRESS)]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found += names.get_values_for_type(x509.RFC822Name)
    except (x509.ExtensionNotFound, ValueError):
        pass  # none, or what cannot be read
    return [email.encode("utf-8") for email in dict.fromkeys(found)]


def reasons(error: Exception) -> str:
    """What OpenSSL says of an error, in words."""
    stack = error.args[0] if error.args else ()
    if isinstance(stack, list) and stack:
        return "; ".join(dict.fromkeys(str(entry[-1]) for entry in stack))
    return str(error) or "no reason given"
