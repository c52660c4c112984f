"""The parameters of MAIL and RCPT (RFC 5321 §4.1.1.11), taken apart and checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from qtwist.wire.smtp_chunking import BINARYMIME

Check = Callable[[bytes], None]
"""Looks at the value of one parameter, which is empty when there is none: BadParameter when it will not do."""

#: What MAIL says of the sender by RFC 4954 §5.
_MAILBOX = re.compile(rb"<>|(?:[!-*,-<>-~]|\+[0-9A-F]{2}){1,500}")


class BadParameter(ValueError):
    """A parameter is refused: the reply's `code` and its `text`."""

    def __init__(self, code: int, text: bytes) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def split_parameters(words: bytes) -> dict[bytes, bytes]:
    """The parameters behind a path: keywords in capitals, and their values. BadParameter when one was given twice."""
    params: dict[bytes, bytes] = {}
    for word in words.split():
        keyword, _, value = word.partition(b"=")
        keyword = keyword.upper()
        if keyword in params:
            raise BadParameter(501, b"a parameter was given twice (#5.5.4)")
        params[keyword] = value
    return params


def check_parameters(params: Mapping[bytes, bytes], checks: Mapping[bytes, Check]) -> None:
    """BadParameter for the first one that `checks` does not know, or does not let pass."""
    for keyword, value in params.items():
        check = checks.get(keyword)
        if check is None:
            raise BadParameter(555, b"unknown parameter (#5.5.4)")
        check(value)


def check_size(value: bytes) -> None:
    """SIZE: 1 to 20 digits (RFC 1870 §4)."""
    if not (value.isdigit() and len(value) <= 20):
        raise BadParameter(501, b"SIZE is a number (#5.5.4)")


def check_text_body(value: bytes) -> None:
    """BODY: what the message consists of, lines in any case (RFC 6152)."""
    if value.upper() not in (b"7BIT", b"8BITMIME"):
        raise BadParameter(501, b"BODY is none that EHLO has announced (#5.5.4)")


def check_any_body(value: bytes) -> None:
    """BODY where octets that are no lines are taken, too (RFC 3030)."""
    if value.upper() != BINARYMIME:
        check_text_body(value)


def check_no_value(value: bytes) -> None:
    """For keywords that stand alone, as REQUIRETLS and SMTPUTF8 do."""
    if value:
        raise BadParameter(501, b"a parameter has a value that it does not take (#5.5.4)")


def check_mailbox(value: bytes) -> None:
    """AUTH: ``<>`` or a mailbox as xtext (RFC 4954 §5)."""
    if not _MAILBOX.fullmatch(value):
        raise BadParameter(501, b"AUTH is <> or a mailbox as xtext (#5.5.4)")


MAIL_CHECKS: dict[bytes, Check] = {b"SIZE": check_size, b"BODY": check_text_body, b"SMTPUTF8": check_no_value}
"""What MAIL may have on every connection that knows extensions."""
