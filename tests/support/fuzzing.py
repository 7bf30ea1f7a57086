"""The length of the fuzzing tests: `FUZZ_PROFILE=ci`, the default, is short and repeatable, `soak` long and random."""

import os

from hypothesis import HealthCheck, Phase, settings

PROFILE = os.environ.get("FUZZ_PROFILE", "ci")
TIMES = {"ci": 1, "soak": 50}[PROFILE]


def fuzz(examples, shrink=True):
    """Return the settings of a test that tries this many examples in the profile `ci`.

    Without `shrink` the first failure is not made smaller, which takes long, for tests that expect one.
    """
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=PROFILE == "ci",
        phases=[phase for phase in Phase if shrink or phase is Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
