"""The addresses of this machine: mail must not be sent there as if it were elsewhere (spec/qmail.md §15.6).

qmail asks for those of the interfaces that are up, once per delivery; a daemon asks again when its answer is a minute
old. 0.0.0.0 and :: always count. Ports do not: an address is own or not, as with qmail.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import socket
import struct
import sys
import time
from collections.abc import Callable

_SIOCGIFCONF = 0x8912
_SIOCGIFFLAGS = 0x8913
_IFF_UP = 1
_IFREQ = 40 if struct.calcsize("P") == 8 else 32
_IF_INET6 = "/proc/net/if_inet6"
_MOST = 1 << 20  # octets of ifreq that are asked for at most

_UNSPECIFIED = frozenset(("0.0.0.0", "::"))


def own_addresses() -> frozenset[str]:
    """IPv4 and IPv6 addresses of this machine, as text. OSError when the system does not tell."""
    if sys.platform == "linux":
        return _UNSPECIFIED | _linux_v4() | _linux_v6()
    return _UNSPECIFIED | _portable()


class OwnAddresses:
    """Own addresses with a memory of `seconds`; `now` counts seconds, `read` asks the system."""

    def __init__(
        self,
        read: Callable[[], frozenset[str]] = own_addresses,
        now: Callable[[], float] = time.monotonic,
        seconds: float = 60,
    ) -> None:
        self._read = read
        self._now = now
        self._seconds = seconds
        self._until: float | None = None
        self._addresses: frozenset[str] = frozenset()

    def get(self) -> frozenset[str]:
        """The addresses. OSError when the system does not tell."""
        now = self._now()
        if self._until is None or now >= self._until:
            self._addresses = self._read()
            self._until = now + self._seconds
        return self._addresses


def _linux_v4() -> frozenset[str]:
    """SIOCGIFCONF: an array of struct ifreq, each a name of 16 octets and a sockaddr_in."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        room = 4096
        while True:
            memory = array.array("B", bytes(room))
            address, _ = memory.buffer_info()  # the kernel writes there
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFCONF, struct.pack("iP", room, address))
            used = struct.unpack("iP", answer)[0]
            if used + _IFREQ <= room or room >= _MOST:
                break
            room *= 2  # a full buffer may have been too small
        records = memory.tobytes()[:used]
        for start in range(0, used, _IFREQ):
            name = records[start : start + 16]
            with contextlib.suppress(OSError):  # gone in between
                flags = fcntl.ioctl(sock.fileno(), _SIOCGIFFLAGS, name + bytes(_IFREQ - 16))
                if struct.unpack_from("H", flags, 16)[0] & _IFF_UP:
                    found.add(socket.inet_ntoa(records[start + 20 : start + 24]))
    return frozenset(found)


def _linux_v6() -> frozenset[str]:
    """/proc/net/if_inet6: 32 hexadecimal digits at the start of each line; no file where there is no IPv6."""
    try:
        with open(_IF_INET6, encoding="ascii") as file:
            return frozenset(str(ipaddress.IPv6Address(int(line[:32], 16))) for line in file)
    except FileNotFoundError:
        return frozenset()


def _portable() -> frozenset[str]:
    """Loopback, and the addresses that the system would send from; nothing is sent to find that out."""
    found = {"127.0.0.1", "::1"}
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((elsewhere, 9))
            found.add(sock.getsockname()[0].partition("%")[0])
    return frozenset(found)
