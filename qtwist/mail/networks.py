"""Addresses that count as one: a network in place of each of its clients. Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network

_IPV4_BITS = 24
_IPV6_BITS = 64


@lru_cache(maxsize=500)
def network_of(ip: str) -> str:
    """The network that an address counts with: IPv4 /24, IPv6 /64; what is no address counts for itself."""
    try:
        address = ip_address(ip)
    except ValueError:
        return ip
    bits = _IPV4_BITS if address.version == 4 else _IPV6_BITS
    return str(ip_network((address, bits), strict=False))
