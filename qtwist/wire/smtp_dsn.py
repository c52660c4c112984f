"""The parameters of MAIL and RCPT that ask for reports (RFC 3461 §4): checked, and brought to one form. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qtwist.mail.asked import ascii_orcpt, parse_envid, parse_notify, parse_orcpt, parse_ret
from qtwist.wire.smtp_parameters import BadParameter, Check

#: The keyword in EHLO.
DSN = b"DSN"


def _checked(parse: Callable[[bytes], object], text: bytes) -> Check:
    def check(value: bytes) -> None:
        try:
            parse(value)
        except ValueError:
            raise BadParameter(501, text) from None

    return check


MAIL_DSN_CHECKS: dict[bytes, Check] = {
    b"RET": _checked(parse_ret, b"RET is FULL or HDRS (#5.5.4)"),
    b"ENVID": _checked(parse_envid, b"ENVID is printable text as xtext, at most 100 octets (#5.5.4)"),
}
RCPT_DSN_CHECKS: dict[bytes, Check] = {
    b"NOTIFY": _checked(parse_notify, b"NOTIFY is NEVER, or some of SUCCESS, FAILURE and DELAY (#5.5.4)"),
    b"ORCPT": _checked(
        lambda value: parse_orcpt(ascii_orcpt(value)),
        b"ORCPT is a type and an address as xtext, at most 500 octets (#5.5.4)",
    ),
}


def kept_mail(params: Mapping[bytes, bytes]) -> bytes:
    """What :mod:`qtwist.mail.asked` keeps of the checked parameters of MAIL."""
    words = []
    if b"RET" in params:
        words.append(b"RET=" + params[b"RET"].upper())
    if b"ENVID" in params:
        words.append(b"ENVID=" + params[b"ENVID"])
    return b" ".join(words)


def kept_rcpt(params: Mapping[bytes, bytes]) -> bytes:
    """What is kept of the checked parameters of RCPT."""
    words = []
    if b"NOTIFY" in params:
        words.append(b"NOTIFY=" + params[b"NOTIFY"].upper())
    if b"ORCPT" in params:
        words.append(b"ORCPT=" + ascii_orcpt(params[b"ORCPT"]))
    return b" ".join(words)
