"""Where the login that is being checked comes from, for checkers that want to know.

twisted.cred hands a checker the credentials and nothing else; checkpassword programs expect more in their environment.
"""

from __future__ import annotations

from contextvars import ContextVar

import attrs

#: The ports by which vchkpw and others tell the services apart (spec/related.md §6).
_PORTS = {"pop3": b"110", "pop3s": b"995", "smtp": b"25", "submission": b"587", "smtps": b"465"}


@attrs.frozen
class Origin:
    """The client's address and the service that it uses (``pop3``)."""

    remote_ip: str = ""
    service: str = ""

    def environment(self) -> dict[bytes, bytes]:
        """What a program under tcpserver would find of this: TCPREMOTEIP, TCPLOCALPORT."""
        known = {
            b"TCPREMOTEIP": self.remote_ip.encode("ascii", "replace"),
            b"TCPLOCALPORT": _PORTS.get(self.service, b""),
        }
        return {name: value for name, value in known.items() if value}


#: Set while an Authenticator asks its portal.
current_origin: ContextVar[Origin] = ContextVar("current_origin", default=Origin())  # noqa: B039 - Origin is frozen
