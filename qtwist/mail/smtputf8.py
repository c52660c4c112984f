"""Whether a message needs SMTPUTF8 on its way (RFC 6531, RFC 6532). Pure.

That it came with it is kept where every queue leaves it alone: in the protocol of our own Received line (RFC 6531
§4.3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qtwist.mail.address import split
from qtwist.mail.domains import is_utf8

_MARKED = re.compile(rb"^Received:(?:[^\n]|\n[ \t])*[ \t]with[ \t]+UTF8[A-Z]*SMTP", re.MULTILINE | re.IGNORECASE)


def needs_utf8(addresses: Iterable[bytes], head: bytes) -> bool:
    """Whether a message with these addresses in its envelope, and with the beginning `head` (LF line ends), can go only
    to servers that know SMTPUTF8.

    Domains need nothing, as they have a form in ASCII. A local part that is neither ASCII nor UTF-8 cannot be sent by
    SMTPUTF8 either: it goes as it ever did, and so does a header of whose letters nobody has said anything.
    """
    for address in addresses:
        local = split(address)[0]
        if not local.isascii() and is_utf8(local):
            return True
    if head.isascii():
        return False
    header = head.partition(b"\n\n")[0]
    return not header.isascii() and is_utf8(header) and _MARKED.search(header) is not None
