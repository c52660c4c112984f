"""One label of a domain in ASCII. Apart from domains.py for commands that must start fast: hardly any mail needs it."""

from __future__ import annotations

from functools import lru_cache

import idna


@lru_cache(maxsize=1024)  # one domain is looked up in many files
def ascii_label(label: str) -> bytes:
    """The label in lower case, as an A-label if it is not ASCII; UnicodeError for what can be none."""
    if label.isascii():
        return label.encode("ascii").lower()
    # The second step refuses what looks like a letter and becomes something else, such as a wide ``@`` or ``[``.
    return idna.alabel(idna.uts46_remap(label, std3_rules=False, transitional=False))


def utf8_label(label: bytes) -> bytes:
    """The U-label that an A-label in lower case stands for, in UTF-8; anything else as it is."""
    try:
        return idna.ulabel(label).encode("utf-8") if label.startswith(b"xn--") else label
    except UnicodeError:
        return label
