"""The tests of qtwist, run by trial.

Property tests try the same examples in every run, so that a failure is a failure of the change at hand; with
QTWIST_RANDOM=1 in the environment they try others each time; `make fuzz` and `make soak` go on for as long as asked.
How long an example takes says nothing on a busy machine.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

settings.register_profile(
    "qtwist",
    deadline=None,
    derandomize="QTWIST_RANDOM" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("qtwist")

# Hypothesis strews the constants of the modules that happen to be imported into its examples. Which ones are imported
# depends on what trial's worker has run before, so that it would try other examples each time. There is no setting.
if "QTWIST_RANDOM" not in os.environ and hasattr(providers, "_get_local_constants"):
    providers._get_local_constants = lambda: providers._local_constants  # as it is without any
