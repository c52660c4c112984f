"""`make soak SECONDS=…`: stories for the crash machine, new ones each time, for as long as asked.

On a failure it prints the shortest story that Hypothesis finds, and the seed that gives it again
(`make soak SECONDS=… SEED=…`).
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.sim.stories import Story, stories

_BATCH = 200


def soak(seconds: float, first: int | None = None) -> int:
    """The exit code: 0 when every story has held."""
    end = time.monotonic() + seconds
    home = tempfile.mkdtemp()
    told = 0

    @settings(
        max_examples=_BATCH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(stories)
    def tell(story: Story) -> None:
        nonlocal told
        told += 1
        story.tell(home)

    try:
        while time.monotonic() < end:
            number = secrets.randbelow(1 << 32) if first is None else first
            first = None
            try:
                seed(number)(tell)()
            except BaseException:
                print(f"FAILED with SEED={number}", flush=True)
                raise
    finally:
        shutil.rmtree(home)
    print(f"{told} stories, no violation")
    return 0


if __name__ == "__main__":
    sys.exit(soak(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None))
