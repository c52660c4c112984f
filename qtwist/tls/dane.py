"""Certificates held against TLSA records (RFC 6698, RFC 7671, and RFC 7672 for mail). No sockets, no clock of ours.

For mail only DANE-TA(2), "this authority", and DANE-EE(3), "this very certificate or key", mean something; the two PKIX
usages do not (RFC 7672 §3.1.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

DANE_TA, DANE_EE = 2, 3
FULL_CERTIFICATE, PUBLIC_KEY = 0, 1
EXACT, SHA256, SHA512 = 0, 1, 2

NO_MATCH = "the certificate does not match the TLSA records"

MOST_RECORDS = 32
"""Usable records of one host that are looked at."""

MOST_CERTIFICATES = 16
"""Certificates that a host shows that are looked at."""


@attrs.frozen
class TLSA:
    """A TLSA record (RFC 6698 §2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        """Whether it can be held against a certificate (RFC 7671 §4, RFC 7672 §3.1)."""
        if self.usage not in (DANE_TA, DANE_EE) or self.selector not in (FULL_CERTIFICATE, PUBLIC_KEY):
            return False
        length = {SHA256: 32, SHA512: 64}.get(self.matching)
        if length is not None:
            return len(self.data) == length
        return self.matching == EXACT and bool(self.data)

    def matches(self, certificate: x509.Certificate) -> bool:
        """Whether a usable record is about `certificate`."""
        if self.selector == FULL_CERTIFICATE:
            selected = certificate.public_bytes(Encoding.DER)
        else:
            selected = public_key_info(certificate.tbs_certificate_bytes)
        if self.matching == SHA256:
            selected = hashlib.sha256(selected).digest()
        elif self.matching == SHA512:
            selected = hashlib.sha512(selected).digest()
        return selected == self.data


def usable(records: Sequence[TLSA]) -> tuple[TLSA, ...]:
    """The records that count, a bounded number. Where a selector has digests of both kinds, the stronger ones alone do
    (RFC 7671 §9)."""
    found = [record for record in records if record.usable]
    strong = {(record.usage, record.selector) for record in found if record.matching == SHA512}
    found = [
        record for record in found if not (record.matching == SHA256 and (record.usage, record.selector) in strong)
    ]
    return tuple(found[:MOST_RECORDS])


def problem(
    chain: Sequence[x509.Certificate], records: Sequence[TLSA], name_problem: Callable[[], str | None]
) -> str | None:
    """Why a host that shows `chain`, its own certificate first, is not the one that `records` tell of; None if it is.

    `records` are usable ones, at least one must hold. With DANE-EE the name and the dates of the certificate do not
    count (RFC 7671 §5.1); with DANE-TA both do, and `name_problem` says what is wrong with the name, None for nothing.
    """
    if not chain:
        return NO_MATCH
    own, others = chain[0], chain[1:MOST_CERTIFICATES]
    if any(record.usage == DANE_EE and record.matches(own) for record in records):
        return None
    found = NO_MATCH
    for record in records:
        if record.usage != DANE_TA:
            continue
        anchors = [certificate for certificate in others if record.matches(certificate)]
        if not anchors and (record.selector, record.matching) == (FULL_CERTIFICATE, EXACT):
            anchors = _certificate(record.data)  # the record has it, so the host may leave it out (RFC 7671 §5.2.3)
        for anchor in anchors:
            why = _path_problem(own, others, anchor) or name_problem()
            if why is None:
                return None
            found = why
    return found


def public_key_info(tbs: bytes) -> bytes:
    """The subjectPublicKeyInfo of a certificate's signed part, octet for octet (RFC 5280 §4.1), which
    is what digests are made of. ValueError when it is not DER."""
    start, end = _element(tbs, 0)
    position = start
    if tbs[position : position + 1] == b"\xa0":  # the version, which old certificates leave out
        position = _element(tbs, position)[1]
    for _field in ("serialNumber", "signature", "issuer", "validity", "subject"):
        position = _element(tbs, position)[1]
    key_end = _element(tbs, position)[1]
    if key_end > end:
        raise ValueError("a certificate that ends early")
    return tbs[position:key_end]


def _element(data: bytes, position: int) -> tuple[int, int]:
    """Where the contents of the DER element at `position` begin and end."""
    if position + 2 > len(data):
        raise ValueError("a certificate that ends early")
    first = data[position + 1]
    start = position + 2
    length = first
    if first & 0x80:
        octets = first & 0x7F
        length = int.from_bytes(data[start : start + octets], "big")
        start += octets
    if start + length > len(data):
        raise ValueError("a certificate that ends early")
    return start, start + length


def _certificate(der: bytes) -> list[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(der)]
    except ValueError:
        return []


def _path_problem(own: x509.Certificate, others: Sequence[x509.Certificate], anchor: x509.Certificate) -> str | None:
    """Why no path leads from `own` to `anchor`, None if one does and all dates are right."""
    store = crypto.X509Store()
    store.add_cert(crypto.X509.from_cryptography(anchor))
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    between = [crypto.X509.from_cryptography(certificate) for certificate in others]
    try:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(own), between).verify_certificate()
    except crypto.X509StoreContextError as error:
        return f"the certificate is not good by the TLSA records: {error}"
    return None
