"""How control files name services that look at messages: where each is, how long it may take, and what counts while it
gives no answer. Pure.

A line is ``ADDRESS [tempfail|accept|reject] [timeout=SECONDS]``. ADDRESS is ``/path`` or ``unix:/path`` for a socket of
this host, ``HOST:PORT`` or ``inet:HOST:PORT`` else (as Postfix writes it), ``inet:PORT@HOST`` (as Sendmail does); an
IPv6 address stands in brackets.
"""

from __future__ import annotations

import re

import attrs

WITHOUT_ANSWER = ("tempfail", "accept", "reject")

_SOCKET = re.compile(r"(?:unix:|local:)?(/.*)")
_HOST_PORT = re.compile(r"(?:inet6?:)?(\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]]+):([0-9]{1,5})")
_PORT_HOST = re.compile(r"inet6?:([0-9]{1,5})@(\[[0-9A-Fa-f:.]+\]|[^\s:@\[\]]+)")


@attrs.frozen
class Service:
    """`path` is that of a socket, or None; then there are `host` and `port`. `timeout` is in seconds. `otherwise` is
    what counts when there is no answer: one of WITHOUT_ANSWER."""

    path: str | None
    host: str
    port: int
    otherwise: str
    timeout: int

    @property
    def name(self) -> str:
        """As an administrator would write it."""
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


def parse_service(line: str, timeout: int) -> Service:
    """ValueError, in words for the administrator, when `line` is none; `timeout` is how many seconds there are where it
    does not say."""
    words = line.split()
    address, options = words[0] if words else "", words[1:]
    otherwise = WITHOUT_ANSWER[0]
    for option in options:
        name, _, value = option.partition("=")
        if option in WITHOUT_ANSWER:
            otherwise = option
        elif name == "timeout" and re.fullmatch("[0-9]{1,5}", value) and int(value) > 0:
            timeout = int(value)
        else:
            raise ValueError(f"{option} is neither {', '.join(WITHOUT_ANSWER)} nor timeout=SECONDS")
    socket = _SOCKET.fullmatch(address)
    if socket is not None:
        return Service(socket[1], "", 0, otherwise, timeout)
    found = _HOST_PORT.fullmatch(address)
    host, port = (found[1], int(found[2])) if found is not None else ("", 0)
    if found is None and (found := _PORT_HOST.fullmatch(address)) is not None:
        host, port = found[2], int(found[1])
    if not 0 < port < 65536:
        raise ValueError(f"{address or 'nothing'} is neither the path of a socket nor HOST:PORT")
    return Service(None, host.strip("[]"), port, otherwise, timeout)
