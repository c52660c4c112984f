"""control/relayclients: the clients that may send mail to anywhere."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

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

    def __init__(self, control: Control) -> None:
        self._control = control
        self._networks = Watched(control, ("relayclients",), self._read)

    @classmethod
    def from_control(cls, control: Control) -> RelayClients:
        return cls(control)

    def _read(self) -> tuple[IPv4Network | IPv6Network, ...]:
        networks = []
        for number, line in self._control.numbered("relayclients") or ():
            try:
                networks.append(network(line))
            except ValueError as error:
                path = self._control.path("relayclients")
                raise ControlError(path, number, str(error), "an IP address or a network") from error
        return tuple(networks)

    def connect(self, session: Session) -> Opinion:
        networks = self._networks.get()
        if not networks:
            return None
        try:
            client = ip_address(session.remote_ip)
        except ValueError:  # a Unix socket has no address
            return None
        if any(client in listed for listed in networks):
            session.environment.setdefault(b"RELAYCLIENT", b"")
        return None


def network(line: bytes) -> IPv4Network | IPv6Network:
    """The network that a line of relayclients names; ValueError when it names none."""
    text = line.decode("ascii", "replace").strip()
    address, slash, length = text.partition("/")
    plain = plain_ip(address)
    if slash and plain != address:  # ::ffff:192.0.2.0/120 is 192.0.2.0/24
        if not (length.isdigit() and 96 <= int(length) <= 128):
            raise ValueError(f"{text!r} is not a network of IPv4 addresses mapped into IPv6")
        length = str(int(length) - 96)
    return ip_network(plain + slash + length, strict=False)
