"""control/relayclients: the clients that may send mail to anywhere."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

import attrs

from qtwist.control import ControlError
from qtwist.policy.base import Opinion, Policy
from qtwist.policy.session import Session, plain_ip
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control


class RelayClients(Policy):
    """Sets RELAYCLIENT, empty, for clients whose address is listed or lies in a listed network (``192.0.2.0/24``).

    Nobody may relay unless listed, loopback neither. An IPv4 address counts the same when it comes mapped into IPv6.
    """

    name = "relayclients"
    idle_without = ("relayclients",)

    def __init__(self, control: Control) -> None:
        self._networks = Watched(control, ("relayclients",), lambda: Networks.read(control, "relayclients"))

    @classmethod
    def from_control(cls, control: Control) -> RelayClients:
        return cls(control)

    def connect(self, session: Session) -> Opinion:
        if self._networks.get().has(session.remote_ip):
            session.environment.setdefault(b"RELAYCLIENT", b"")
        return None


class LoginMayRelay(Policy):
    """Who has logged in may send mail to anywhere, and is named as an IDENT server would name them (spec/related.md
    §14.3)."""

    def auth(self, session: Session) -> Opinion:
        assert session.user is not None
        session.environment.setdefault(b"RELAYCLIENT", b"")
        session.environment[b"TCPREMOTEINFO"] = session.user
        return None


@attrs.frozen
class Networks:
    """The addresses and networks that a control file lists."""

    listed: tuple[IPv4Network | IPv6Network, ...]

    @classmethod
    def read(cls, control: Control, name: str) -> Networks:
        """What control/`name` says; no file is an empty one. ControlError when a line is wrong."""
        networks = []
        for number, line in control.numbered(name) or ():
            try:
                networks.append(network(line))
            except ValueError as error:
                raise ControlError(control.path(name), number, str(error), "an IP address or a network") from error
        return cls(tuple(networks))

    def has(self, address: str) -> bool:
        """Is this IP address listed? What is no address, such as that of a Unix socket, is not."""
        if not self.listed:
            return False
        try:
            client = ip_address(address)
        except ValueError:
            return False
        return any(client in listed for listed in self.listed)


def network(line: bytes) -> IPv4Network | IPv6Network:
    """The network that a line of relayclients or qmqpclients names; ValueError when it names none."""
    text = line.decode("ascii", "replace").strip()
    address, slash, length = text.partition("/")
    plain = plain_ip(address)
    if slash and plain != address:  # ::ffff:192.0.2.0/120 is 192.0.2.0/24
        if not (length.isdigit() and 96 <= int(length) <= 128):
            raise ValueError(f"{text!r} is not a network of IPv4 addresses mapped into IPv6")
        length = str(int(length) - 96)
    return ip_network(plain + slash + length, strict=False)
