"""Which addresses are tried for a host, and in which order, once the DNS has answered (spec/qmail.md §15.3). Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from qtwist.tls.dane import TLSA

MAX_EXCHANGES = 20
"""Mail exchangers of one host that are looked up."""

MAX_ADDRESSES = 20
"""Addresses of one host that are tried."""

Shuffle = Callable[[list[object]], None]
"""Puts a list into random order, as :func:`random.shuffle` does."""


@attrs.frozen
class Host:
    """An address to try; a lower `preference` is better. `address` is an IPv4 or IPv6 address as text, `name` the
    host's name as the DNS or a route has it (for certificates), empty where there is only the address. `secure` says
    that the DNS has authenticated all answers that led here; `tlsa` are the host's TLSA records that count."""

    address: str
    preference: int = 0
    name: bytes = attrs.field(default=b"", eq=False)
    secure: bool = attrs.field(default=False, eq=False)
    tlsa: tuple[TLSA, ...] = attrs.field(default=(), eq=False)


def parse_address(text: bytes) -> str | None:
    """The address that `text` is, in its usual form, or None: ``1.2.3.4``, ``[1.2.3.4]`` or ``[IPv6:2001:db8::1]``."""
    bare = text[1:-1] if text.startswith(b"[") and text.endswith(b"]") else text
    if len(bare) > 64:
        return None
    try:
        name = bare.decode("ascii")
        if name[:5].lower() == "ipv6:" and bare is not text:
            return str(ipaddress.IPv6Address(name[5:]))
        return str(ipaddress.ip_address(name))
    except ValueError:
        return None


def order_exchanges(records: Iterable[tuple[int, bytes]], shuffle: Shuffle) -> list[tuple[int, bytes]]:
    """MX records by preference, random among equals, without the empty names of null MX records; a bounded number."""
    exchanges: list[object] = [record for record in records if record[1]]
    shuffle(exchanges)
    ordered: list[tuple[int, bytes]] = sorted(exchanges, key=lambda record: record[0])  # type: ignore[index, arg-type]
    return ordered[:MAX_EXCHANGES]


def is_null_mx(records: Sequence[tuple[int, bytes]]) -> bool:
    """Whether the host says that it takes no mail (RFC 7505): one MX record, whose exchange is the root."""
    return len(records) == 1 and not records[0][1]


def shuffle_addresses(addresses: Sequence[str], shuffle: Shuffle) -> list[str]:
    """The addresses of one name: IPv4 before IPv6, random within each, so that the load of a host is spread."""
    old: list[object] = [address for address in addresses if ":" not in address]
    new: list[object] = [address for address in addresses if ":" in address]
    shuffle(old)
    shuffle(new)
    return [str(address) for address in old + new]


def without_own(hosts: Sequence[Host], own: Collection[str]) -> tuple[Host, ...]:
    """`hosts` without those that are no better than ourselves: sending there could only make a loop.

    Empty when we are the best one.
    """
    best = min((host.preference for host in hosts if _plain(host.address) in own), default=None)
    if best is None:
        return tuple(hosts)
    return tuple(host for host in hosts if host.preference < best)


def _plain(address: str) -> str:
    """An address as own addresses are listed: an IPv4 address inside an IPv6 one reaches the same host."""
    if ":" not in address:
        return address
    mapped = ipaddress.IPv6Address(address).ipv4_mapped
    return address if mapped is None else str(mapped)
