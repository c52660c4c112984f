"""Credentials that twisted.cred does not have itself.

A name with its password is :class:`twisted.cred.credentials.UsernamePassword`; CRAM-MD5 is its CramMD5Credentials.
"""

from __future__ import annotations

import hashlib
import hmac

import attrs
from twisted.cred.credentials import IUsernameHashedPassword
from zope.interface import implementer


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
