"""The length of the fuzzing tests: `FUZZ_PROFILE=ci`, the default, is short and repeatable, `soak` long and random."""

import os

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("FUZZ_PROFILE", "ci")
TIMES = {"ci": 1, "soak": 50}[PROFILE]


def fuzz(examples):
    """Return the settings of a test that tries this many examples in the profile `ci`."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        database=None,
        derandomize=PROFILE == "ci",
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
