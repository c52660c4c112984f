"""Inputs that once broke something here or elsewhere, one in a file. Every run of the tests gives them to their targets
again, whole and octet by octet.

``TARGET.WHAT.bin``: the target that takes it, and in a few words what was wrong. Whoever mends a finding of `make fuzz`
puts its input here; libFuzzer's files of crashes are such inputs as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

SUFFIX = ".bin"


def read() -> Iterator[tuple[str, bytes]]:
    """(target, input), in the order of their names."""
    folder = os.path.dirname(os.path.abspath(__file__))
    for name in sorted(os.listdir(folder)):
        if name.endswith(SUFFIX):
            with open(os.path.join(folder, name), "rb") as file:
                yield name.partition(".")[0], file.read()


FINDINGS: tuple[tuple[str, bytes], ...] = tuple(read())
