"""SASLprep (RFC 4013): one form of a password, whatever keyboard it was typed on. Pure, standard library only."""

from __future__ import annotations

import stringprep
import unicodedata


def prepared(password: bytes) -> bytes:
    """SASLprep for a password (RFC 4013), so that it is the same on all keyboards. ValueError when it has none."""
    text = password.decode("utf-8")
    if text.isascii() and text.isprintable():
        return password
    text = "".join(" " if stringprep.in_table_c12(one) else one for one in text if not stringprep.in_table_b1(one))
    text = unicodedata.ucd_3_2_0.normalize("NFKC", text)
    if not text or any(forbidden(one) for one in text for forbidden in _FORBIDDEN):
        raise ValueError("a password that SASLprep takes (RFC 4013)")
    if any(map(stringprep.in_table_d1, text)):  # RFC 3454 section 6
        ends = stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])
        if not ends or any(map(stringprep.in_table_d2, text)):
            raise ValueError("a password whose writing direction does not change (RFC 3454 section 6)")
    return text.encode("utf-8")


_FORBIDDEN = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
