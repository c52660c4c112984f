"""Fuzz of all engines and parsers: some hundred inputs each, the same in every run (`make fuzz SECONDS=…` makes more).

The invariants are stated in :mod:`tests.fuzz.engines` and :mod:`tests.fuzz.parsers`.
"""

from __future__ import annotations

import random
import time
from itertools import islice

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz import engines
from tests.fuzz.driving import SEEDS, TARGETS, Finding, execute, inputs
from tests.fuzz.findings import FINDINGS

COUNT = 250
SIZE = 256 * 1024
#: Seconds of processor for that many octets; what is quadratic takes minutes.
BOUND = 3.0


class FuzzTests(SynchronousTestCase):
    def test_mutations(self) -> None:
        for target in TARGETS:
            with self.subTest(target=target):
                for parts in islice(inputs(target, random.Random(f"qtwist {target}")), COUNT):
                    execute(target, parts)

    def test_anything(self) -> None:
        """What Hypothesis thinks of: nothing, one octet, many of the same."""

        @settings(
            max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(parts=st.lists(st.binary(max_size=60), max_size=6))
        def check(parts: list[bytes]) -> None:
            for target in TARGETS:
                execute(target, parts)

        check()

    def test_past_findings(self) -> None:
        self.assertLessEqual({target for target, _ in FINDINGS}, set(TARGETS))
        for target, data in FINDINGS:
            with self.subTest(target=target, data=data[:60]):
                execute(target, [data])
                execute(target, [data[at : at + 1] for at in range(len(data))])

    def test_linear_time(self) -> None:
        """A quarter of a megabyte of the same thing, for each target and each of its seeds."""
        for target in TARGETS:
            run = engines.ENGINES.get(target)
            for seed in SEEDS[target]:
                data = seed * (SIZE // len(seed))
                began = time.process_time()
                if run is not None:
                    run([data])
                else:
                    execute_parser(target, data)
                self.assertLess(time.process_time() - began, BOUND, f"{target} with {seed[:60]!r}")

    def test_a_finding_is_found(self) -> None:
        """The driver tells what does not hold: here, an engine that is cut to pieces by a bug of ours."""
        broken = dict(engines.ENGINES, netstring=lambda parts: (len(list(parts)),))
        self.patch(engines, "ENGINES", broken)
        with self.assertRaises(Finding):
            execute("netstring", [b"5:", b"hello,"])


def execute_parser(target: str, data: bytes) -> None:
    """Without the bound for small inputs."""
    from tests.fuzz.parsers import PARSERS

    PARSERS[target](data)
