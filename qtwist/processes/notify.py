"""What a service manager is told, in the form of sd_notify: that we are ready, reload, stop, and are alive.

Datagrams of ``NAME=value`` lines to the socket that $NOTIFY_SOCKET names: a path, or after ``@`` a name in Linux's
abstract namespace. Nothing is told where there is no such variable.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_log = Logger()


class ServiceManager:
    """Whoever started us and wants to know. Silent, and harmless to use, where nobody does."""

    def __init__(self, environ: MutableMapping[str, str], clock: Any) -> None:
        """Connect while we have the rights to. What concerns us is taken out of `environ`: it is not for programs that
        we start."""
        address, period, pid = (environ.pop(name, "") for name in _NAMES)
        self._socket = _connect(address)
        self._watchdog: LoopingCall | None = None
        if self._socket is not None and period.isdecimal() and int(period) and pid in ("", str(os.getpid())):
            self._watchdog = LoopingCall(self._tell, "WATCHDOG=1")
            self._watchdog.clock = clock
            self._period = int(period) / 1_000_000

    def ready(self) -> None:
        """All that was asked for is served; from now on we say regularly that we are alive."""
        self._tell("READY=1")
        if self._watchdog is not None and not self._watchdog.running:
            self._watchdog.start(self._period / 2)

    def reloading(self) -> None:
        """Control files are being reread; :meth:`ready` says when that is done."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun. We go on saying that we are alive, as it may take a while."""
        self._tell("STOPPING=1")

    def close(self) -> None:
        """Nothing more is said."""
        if self._watchdog is not None and self._watchdog.running:
            self._watchdog.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, text: str) -> None:
        if self._socket is not None:
            try:
                self._socket.send(text.encode("ascii"))
            except OSError as error:
                _log.warn("the service manager cannot be told {text!r}: {error}", text=text, error=error)


def _connect(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError as error:
        sock.close()
        _log.warn("the service manager cannot be told anything at {address}: {error}", address=address, error=error)
        return None
    return sock
