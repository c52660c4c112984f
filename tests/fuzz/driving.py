"""One execution: a target, an input and the way it is cut; and the driver that makes inputs by mutation."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.fuzz import engines, parsers
from tests.fuzz.mutation import mutate, pieces

SEEDS = {**engines.SEEDS, **parsers.SEEDS}
TARGETS = sorted(SEEDS)
#: Seconds of processor that one execution may take: inputs have 20 kB at most.
SLOW = 1.0


class Finding(AssertionError):
    """An input for which the invariant does not hold."""

    def __init__(self, target: str, parts: list[bytes]) -> None:
        super().__init__(f"{target}: {parts!r}")


def execute(target: str, parts: list[bytes]) -> None:
    """Give an input to a target. Finding when it raises, breaks its word, takes too long, or minds how it is cut."""
    began = time.process_time()
    try:
        if target in engines.ENGINES:
            outcome = engines.ENGINES[target]
            cut, whole = outcome(parts), outcome([b"".join(parts)])
            assert cut == whole, f"cut: {cut!r}\nwhole: {whole!r}"
        else:
            parsers.PARSERS[target](b"".join(parts))
        taken = time.process_time() - began
        assert taken < SLOW, f"{taken:.1f} s"
    except Exception as error:
        raise Finding(target, parts) from error


def inputs(target: str, chance: random.Random) -> Iterator[list[bytes]]:
    """Inputs without end: the seeds, then mutations of seeds and of mutations."""
    seeds = SEEDS[target]
    others = [seed for group in SEEDS.values() for seed in group]
    for seed in seeds:
        yield [seed]
    while True:
        data = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 4))):
            data = mutate(data, others, chance)
        yield pieces(data, chance)
