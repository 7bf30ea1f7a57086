"""Times contenders in turn, round after round, in random order, and computes statistics over the rounds."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from runtime.arrays.tensor import Array

Name = TypeVar("Name")

WARM_UP = 2  # calls of each function that do not count


def take_turns(names: Collection[Name], rounds: int, seconds: float) -> Iterator[tuple[int, Name]]:
    """Yield the round and a name, each name once a round in random order.

    Args:
        names: The contenders.
        rounds: The smallest number of rounds.
        seconds: No round begins after this time, unless `rounds` is not reached.
    """
    order, end, done = np.random.default_rng(0), time.perf_counter() + seconds, 0
    listed = list(names)
    while done < rounds or time.perf_counter() < end:
        for index in order.permutation(len(listed)):
            yield done, listed[index]
        done += 1


def time_in_turn(calls: Mapping[Name, Callable[[], object]], rounds: int, seconds: float) -> dict[Name, Array]:
    """Return the milliseconds of each call, one per round; the arguments are those of `take_turns`."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _, name in take_turns(calls, rounds + WARM_UP, seconds):
        times[name].append(1e3 * seconds_of(calls[name]))
    return {name: np.array(values[WARM_UP:]) for name, values in times.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call takes, the release of its result included."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median(values: Array) -> float:
    """Return the median, rounded to three digits."""
    return round(float(np.median(values)), 3)


def quartiles(values: ArrayLike, digits: int = 4) -> list[float]:
    """Return the median, the lower quartile and the upper quartile."""
    return [round(float(q), digits) for q in np.quantile(np.asarray(values), [0.5, 0.25, 0.75])]


def fastest(milliseconds: Mapping[str, float], names: Sequence[str]) -> str | None:
    """Return the fastest of `names`, or None if none of them was measured."""
    measured = [name for name in names if name in milliseconds]
    return min(measured, key=lambda name: milliseconds[name], default=None)
