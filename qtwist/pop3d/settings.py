"""What the control files say about one POP3 connection (read per connection)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from qtwist.control import ControlError

if TYPE_CHECKING:
    from qtwist.control import Control

FILES = ("me", "timeoutpop3d", "concurrencypop3", "plaintextauth")


@attrs.frozen
class Settings:
    """`host` ends the time stamp of the greeting, `timeout` is in seconds; `plaintext` takes passwords in the clear."""

    host: bytes
    timeout: int
    connections: int
    plaintext: bool


def read_settings(control: Control) -> Settings:
    """Read them. ControlError when a file is wrong or cannot be read, or there is no name to greet with."""
    control.ensure(*FILES)
    host = control.line("me")
    if host is None:
        raise ControlError(control.path("me"), None, "no such file", "the host's name")
    return Settings(
        host=host,
        timeout=max(control.integer("timeoutpop3d"), 1),
        connections=control.integer("concurrencypop3"),
        plaintext=control.integer("plaintextauth") > 0,
    )
