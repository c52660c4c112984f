"""What the control files say about one SMTP connection (spec/qmail.md §3, read per connection)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from qtwist.control import ControlError

if TYPE_CHECKING:
    from qtwist.control import Control

FILES = (
    "me",
    "smtpgreeting",
    "databytes",
    "timeoutsmtpd",
    "maxrecipients",
    "localiphost",
    "concurrencyincoming",
    "plaintextauth",
    "smtpauth",
    "ehlodiscard",
)


@attrs.frozen
class Settings:
    """`databytes` 0 means no limit, `timeout` is in seconds, `localiphost` None turns that feature off.

    `auth` says whether there is AUTH, `plaintext` whether it takes passwords in the clear from everywhere. `discard`
    are the keywords, in capitals, that EHLO does not announce.
    """

    greeting: bytes
    databytes: int
    timeout: int
    recipients: int
    localiphost: bytes | None
    connections: int
    auth: bool
    plaintext: bool
    discard: frozenset[bytes] = frozenset()


def read_settings(control: Control) -> Settings:
    """Read them. ControlError when a file cannot be read, or there is no name to greet with."""
    greeting = control.line("smtpgreeting")
    if greeting is None:
        raise ControlError(control.path("smtpgreeting"), None, "no such file, nor control/me", "the host's name")
    return Settings(
        greeting=greeting,
        databytes=control.integer("databytes"),
        timeout=max(control.integer("timeoutsmtpd"), 1),
        recipients=control.integer("maxrecipients"),
        localiphost=control.line("localiphost"),
        connections=control.integer("concurrencyincoming"),
        auth=control.integer("smtpauth") > 0,
        plaintext=control.integer("plaintextauth") > 0,
        discard=frozenset(line.upper() for line in control.list("ehlodiscard") or ()),
    )
