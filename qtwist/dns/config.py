"""Which DNS servers to ask: a list given by the administrator, or the nameserver lines of /etc/resolv.conf.

Nothing else of resolv.conf counts (no search domains, no options), and /etc/hosts is never read.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Iterable

import attrs

DNS_PORT = 53
MAX_SERVERS = 16  # as ucspi-tcp and djbdns do (spec/related.md §4.10)
MAX_FILE = 65536

RESOLV_CONF = "/etc/resolv.conf"


@attrs.frozen
class Server:
    """A DNS server: an IP address in its shortest form, and a port."""

    host: str
    port: int = DNS_PORT

    def __str__(self) -> str:
        if self.port == DNS_PORT:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


LOCAL = Server("127.0.0.1")


def parse_server(text: str) -> Server:
    """`text` is ``ip``, ``ip:port``, ``[ipv6]`` or ``[ipv6]:port``. ValueError says what was expected.

    The unspecified address (0.0.0.0 or ::) means this host, as everywhere in resolver configurations.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            raise ValueError(f"expected [ipv6]:port, not {text!r}")
        port = rest[1:]
        colon = bool(rest)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        colon = True
    else:
        colon = False
    if colon and not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f"expected a port from 1 to 65535 in {text!r}")
    return Server(_address(host, text), int(port) if colon else DNS_PORT)


def parse_servers(texts: Iterable[str]) -> tuple[Server, ...]:
    """All servers of a list, in order; without any, the one on this host. ValueError as in :func:`parse_server`."""
    return _bounded(parse_server(text) for text in texts)


def parse_resolv_conf(data: bytes) -> tuple[Server, ...]:
    """The servers of the nameserver lines; lines that make no sense are skipped; none at all: the one on this host."""
    servers = []
    for line in data.split(b"\n"):
        words = line.split()
        if len(words) >= 2 and words[0] == b"nameserver":
            try:
                host = words[1].decode("ascii")
                servers.append(Server(_address(host, host)))
            except ValueError:
                continue
    return _bounded(servers)


def _address(host: str, text: str) -> str:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"expected an IP address, not {text!r}") from None
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_unspecified:
        return "127.0.0.1" if ip.version == 4 else "::1"
    return str(ip)


def _bounded(servers: Iterable[Server]) -> tuple[Server, ...]:
    return tuple(dict.fromkeys(servers))[:MAX_SERVERS] or (LOCAL,)


def fixed(servers: tuple[Server, ...]) -> Callable[[], tuple[Server, ...]]:
    """A source of servers that never change, to stand where a :class:`ResolvConf` can stand."""
    return lambda: servers


class ResolvConf:
    """The servers of a resolv.conf file, read again whenever the file has changed.

    Calling it gives the servers in order. A file that cannot be read leaves the servers as they were; before it was
    ever read, that is the one on this host.
    """

    def __init__(self, path: str = RESOLV_CONF) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._servers: tuple[Server, ...] = (LOCAL,)

    def __call__(self) -> tuple[Server, ...]:
        try:
            status = os.stat(self.path)
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                with open(self.path, "rb") as file:
                    self._servers = parse_resolv_conf(file.read(MAX_FILE))
                self._stamp = stamp
        except OSError:
            pass
        return self._servers
