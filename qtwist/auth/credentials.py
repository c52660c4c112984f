"""Credentials that twisted.cred does not have itself.

A name with its password is :class:`twisted.cred.credentials.UsernamePassword`. Its CramMD5Credentials are taken by all
checkers that take ours, which compare in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.cred.credentials import ICredentials, IUsernameHashedPassword, UsernamePassword
from zope.interface import Attribute, implementer

from qtwist.mail.domains import ascii_address
from qtwist.wire.sasl import Certificate, Claim, Digest, Secret


@implementer(IUsernameHashedPassword)
@attrs.frozen
class APOPCredentials:
    """What APOP says (RFC 1939 §7): the MD5 of the greeting's `timestamp`, angle brackets included, and the secret.

    `digest` is as the client sent it: 32 hexadecimal digits.
    """

    username: bytes
    timestamp: bytes
    digest: bytes = attrs.field(repr=False)

    def checkPassword(self, password: bytes) -> bool:
        """Whether `password` is the secret. Takes as long for every wrong one."""
        expected = hashlib.md5(self.timestamp + password, usedforsecurity=False).hexdigest().encode("ascii")
        return hmac.compare_digest(expected, self.digest.lower())


@implementer(IUsernameHashedPassword)
@attrs.frozen
class CRAMCredentials:
    """What CRAM-MD5 says (RFC 2195 §2): the HMAC-MD5 of `challenge`, keyed with the secret; 32 hexadecimal digits."""

    username: bytes
    challenge: bytes
    response: bytes = attrs.field(repr=False)

    def checkPassword(self, password: bytes) -> bool:
        """Whether `password` is the secret. Takes as long for every wrong one."""
        expected = hmac.new(password, self.challenge, "md5").hexdigest().encode("ascii")
        return hmac.compare_digest(expected, self.response)


class IScramProof(ICredentials):
    """What SCRAM-SHA-256 says (RFC 5802 §3)."""

    username = Attribute("bytes: the login name")
    message = Attribute("bytes: the AuthMessage")
    proof = Attribute("bytes: the ClientProof")
    signature = Attribute("bytes: the ServerSignature; empty until a checker has found the proof right")


@implementer(IScramProof)
@attrs.define
class ScramCredentials:
    """The proof that a client has given, and our answer to it, which the checker puts here."""

    username: bytes
    message: bytes = attrs.field(repr=False)
    proof: bytes = attrs.field(repr=False)
    signature: bytes = attrs.field(default=b"", repr=False)


class ICertifiedName(ICredentials):
    """What EXTERNAL says, where a certificate that we believe has that name: who it is needs no further proof."""

    username = Attribute("bytes: the login name")


@implementer(ICertifiedName)
@attrs.frozen
class CertifiedName:
    """A name that the client's certificate has."""

    username: bytes


def credentials_of(claim: Claim, emails: Sequence[bytes] = ()) -> Any:
    """The credentials that a claim of SASL is; None for a claim to be whom no certificate shows.

    `emails` are the addresses in the client's certificate, if it is believed.
    """
    if isinstance(claim, Certificate):
        wanted = ascii_address(claim.authzid)
        names = [email for email in emails if wanted in (b"", ascii_address(email))]
        return CertifiedName(names[0]) if names else None
    if isinstance(claim, Secret):
        return UsernamePassword(claim.username, claim.password)
    if isinstance(claim, Digest):
        return CRAMCredentials(claim.username, claim.challenge, claim.digest)
    return ScramCredentials(claim.username, claim.message, claim.proof)
