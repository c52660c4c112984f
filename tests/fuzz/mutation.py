"""Changing bytes at random, with a taste for what protocols are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence

TOKENS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b".",
        b"\r\n.\r\n",
        b"\n.\n",
        b"\r.\r",
        b"\r\n.\n",
        b"\n.\r\n",
        b"\0",
        b" ",
        b":",
        b",",
        b"-",
    ),
    *(
        b"<",
        b">",
        b"@",
        b'"',
        b"\\",
        b"(",
        b")",
        b"[",
        b"]",
        b"=",
        b"#",
        b"|",
        b"&",
        b"+",
        b"/",
        b"*",
        b"\xff",
        b"\x80",
    ),
    *(
        b"0",
        b"1:",
        b"999999999999999999999",
        b"4294967296",
        b"-1",
        b"18446744073709551616",
        b"default",
        b"Received: x\n",
    ),
)
LONGEST = 20_000


def mutate(data: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` with a few changes; some are pieces of `others`."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 5, 9))):
        size = len(changed)
        at = chance.randint(0, size)
        kind = chance.randrange(8)
        if kind == 0 and size:
            changed[at % size] = chance.randrange(256)
        elif kind == 1 and size:
            changed[at % size] ^= 1 << chance.randrange(8)
        elif kind == 2:
            changed[at:at] = chance.choice(TOKENS)
        elif kind == 3:
            del changed[at : at + chance.choice((1, 2, 7, 40))]
        elif kind == 4:
            other = chance.choice(others)
            start = chance.randint(0, len(other))
            changed[at:at] = other[start : start + chance.choice((3, 20, 200))]
        elif kind == 5:
            piece = bytes(changed[at : at + chance.choice((1, 5, 60))])
            changed[at:at] = piece * chance.choice((2, 10, 300))
        elif kind == 6:
            del changed[at:]
        else:
            changed[at:at] = chance.randbytes(chance.choice((1, 4, 30)))
    return bytes(changed[:LONGEST])


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    """`data` cut at random, as a network would."""
    style = chance.randrange(3)
    if style == 0:
        return [data]
    if style == 1 and len(data) < 3000:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(1, 8)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
