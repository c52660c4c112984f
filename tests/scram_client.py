"""A client's side of SCRAM-SHA-256 for the tests, written from RFC 5802 §3 alone."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode

NONCE = b"rOprNGfwEbeRWgbNEkqO"


class ScramClient:
    """Makes the messages of one exchange. `binding` is the type and the data of a channel binding, for -PLUS."""

    def __init__(
        self, name: bytes, password: bytes, *, binding: tuple[bytes, bytes] | None = None, flag: bytes = b"n"
    ) -> None:
        self.password = password
        kind, self.bound = binding or (b"", b"")
        self.header = (b"p=" + kind if binding else flag) + b",,"
        self.bare = b"n=%b,r=%b" % (name.replace(b"=", b"=3D").replace(b",", b"=2C"), NONCE)

    def first(self) -> bytes:
        """The initial response, in base64."""
        return b64encode(self.header + self.bare)

    def final(self, challenge: bytes) -> bytes:
        """The answer to the server's first message; both in base64."""
        server = b64decode(challenge)
        given = dict(part.split(b"=", 1) for part in server.split(b","))
        assert given[b"r"].startswith(NONCE) and len(given[b"r"]) > len(NONCE)
        salted = hashlib.pbkdf2_hmac("sha256", self.password, b64decode(given[b"s"]), int(given[b"i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        bare = b"c=%b,r=%b" % (b64encode(self.header + self.bound), given[b"r"])
        message = b",".join((self.bare, server, bare))
        mask = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, mask, strict=True))
        self.signature = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
        return b64encode(bare + b",p=" + b64encode(proof))

    def check(self, challenge: bytes) -> bool:
        """Whether the server's last message proves that it knows us."""
        return b64decode(challenge) == b"v=" + b64encode(self.signature)
