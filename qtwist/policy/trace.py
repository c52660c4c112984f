"""What one client and the server say to each other, in recordio's manner (spec/related.md §4.6), secrets left out.

control/trace lists the addresses and networks whose connections are written to the log from their beginning;
`qtwist log trace` puts them there for as long as it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.logger import Logger

from qtwist.control import ControlError
from qtwist.policy.relay import Networks
from qtwist.policy.watched import Watched

if TYPE_CHECKING:
    from qtwist.control import Control

#: Octets in one line of the log, as recordio has it.
LINE = 256
#: Octets of one connection that are written, in both directions together.
MOST = 1 << 20

_SECRET = re.compile(rb"(?i)(AUTH[ \t]+[^ \t\r\n]+|PASS|APOP[ \t]+[^ \t\r\n]+)([ \t]+[^\r\n]*)?")
_MASKED = b"***"


_log = Logger(namespace="qtwist.trace")


class Traces:
    """Whose connections control/trace has written down."""

    def __init__(self, control: Control) -> None:
        self._networks = Watched(control, ("trace",), lambda: Networks.read(control, "trace"))

    def listed(self) -> Networks:
        """The addresses and networks. ControlError when the file is wrong."""
        return self._networks.get()

    def begin(self, name: str, ip: str) -> Tracer | None:
        """The tracer of a connection that the log calls `name`; None when its client is not listed."""
        try:
            traced = self.listed().has(ip)
        except ControlError as error:
            _log.error("{error}", error=error)
            return None
        return Tracer(lambda direction, text: _write(name, ip, direction, text)) if traced else None


def _write(name: str, ip: str, direction: str, text: str) -> None:
    _log.info("{id}: {ip} {direction} {line}", id=name, ip=ip, direction=direction, line=text)


class Tracer:
    """Writes one connection down, a line at a time, through `write`: the direction, ``<`` from the client or ``>`` to
    it, and the text. `` +`` at its end says that the line goes on.

    What follows AUTH, PASS and APOP is not written, nor is what the client says in the middle of an AUTH dialogue.
    """

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self._write = write
        self._left = MOST
        self._rest = {"<": b"", ">": b""}
        self._authenticating = False
        self._hidden = False  # the rest of this line of the client's is secret

    def received(self, data: bytes) -> None:
        """From the client."""
        self._take("<", data)

    def sent(self, data: bytes) -> None:
        """To the client."""
        self._take(">", data)

    def end(self) -> None:
        """The connection is gone."""
        for direction, rest in self._rest.items():
            if rest:
                self._line(direction, rest, False)
        self._write("<", "[EOF]")

    def _take(self, direction: str, data: bytes) -> None:
        if self._left <= 0:
            return
        self._left -= len(data)
        *lines, rest = (self._rest[direction] + data).split(b"\n")
        for line in lines:
            self._line(direction, line, True)
        # A command may come in pieces, and a piece of it must not escape the mask; no command is longer than this.
        if len(rest) > 4 * LINE:
            self._line(direction, rest, False)
            rest = b""
        self._rest[direction] = rest
        if self._left <= 0:
            self._write(direction, "[the rest of this connection is not written]")

    def _line(self, direction: str, line: bytes, complete: bool) -> None:
        line = line.rstrip(b"\r")
        if direction == "<":
            line = _MASKED if self._hidden else self._masked(line)
            self._hidden = not complete and line.endswith(_MASKED)
        elif self._authenticating and not line.startswith((b"334", b"+ ")):
            self._authenticating = False
        for start in range(0, max(len(line), 1), LINE):
            part = line[start : start + LINE]
            text = part.decode("ascii", "backslashreplace").translate(_CONTROLS)
            self._write(direction, text + ("" if complete and start + LINE >= len(line) else " +"))

    def _masked(self, line: bytes) -> bytes:
        if self._authenticating:
            return _MASKED
        match = _SECRET.match(line)
        if match is None:
            return line
        self._authenticating = line[:4].upper() == b"AUTH"
        return match[1] + b" " + _MASKED if match[2] else line


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
