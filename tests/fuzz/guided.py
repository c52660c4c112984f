"""Fuzzing guided by the lines of code that inputs reach, where atheris is installed; one process for one target.

``python -m tests.fuzz.guided TARGET SECONDS SEED`` begins with our seeds and the past findings. It ends with 0, or with
what atheris makes of a finding: a traceback, the input in a file, and another exit code.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import zlib
from typing import NoReturn

#: Inputs have so many octets at most, and may take so many seconds.
LONGEST = 20_000
SLOWEST = 10


def main(target: str, seconds: int, seed: int) -> NoReturn:
    """Fuzz one target."""
    import atheris

    with atheris.instrument_imports(include=["qtwist"]):
        from tests.fuzz.driving import SEEDS, execute
        from tests.fuzz.findings import FINDINGS
    from tests.fuzz.mutation import pieces

    def one(data: bytes) -> None:
        # How an input is cut hangs on the input alone, so that the file of a finding shows it again.
        execute(target, pieces(data, random.Random(zlib.crc32(data))))

    with tempfile.TemporaryDirectory(prefix="qtwist-fuzz-") as corpus:
        past = [data for name, data in FINDINGS if name == target]
        for number, data in enumerate([*SEEDS[target], *past]):
            with open(os.path.join(corpus, str(number)), "wb") as file:
                file.write(data)
        options = [f"-max_total_time={seconds}", f"-seed={seed % (1 << 31) or 1}", f"-max_len={LONGEST}"]
        options += [f"-timeout={SLOWEST}", f"-artifact_prefix={tempfile.gettempdir()}/qtwist-{target}-", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", corpus], one)
        atheris.Fuzz()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
