"""The contenders in turn: rounds in random order, by two clocks, and the ratios of what they took."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu import contenders as names
from benchmarks.gpu.contenders import ALTERNATIVES, COMPILES, Way, fastest, ours
from benchmarks.gpu.device import Call, Device
from benchmarks.shared.machine import quartiles
from runtime.arrays.tensor import Array

Rounds = dict[str, Array]
"""Milliseconds of each contender, by round."""

WARM_UP = 1  # rounds that do not count
CALLS, TURN = 5, 4.0  # the calls of a contender before the next one's turn, fewer from so many milliseconds on
LONG = 20.0
"""Milliseconds from which on a call is not timed by the host's clock too: beside that, queueing it takes no time."""


@dataclass(frozen=True)
class Effort:
    """How long it is measured.

    Attributes:
        seconds: of a line of the table, at least.
        rounds: of a line of the table, at least.
    """

    seconds: float
    rounds: int


def interleave(ways: Mapping[str, Way], device: Device, effort: Effort) -> tuple[Rounds, Rounds]:
    """Return each contender's median milliseconds by round: of calls that were queued, and of awaited ones."""
    queued: dict[str, list[float]] = {name: [] for name in ways}
    awaited: dict[str, list[float]] = {name: [] for name in ways}
    order, end = np.random.default_rng(0), time.perf_counter() + effort.seconds
    rounds = 0
    while rounds < effort.rounds + WARM_UP or time.perf_counter() < end:
        for name in map(str, order.permutation(list(ways))):
            queued[name].append(_turn(ways[name], device.queued, rounds))
            long = queued[name][-1] > LONG
            awaited[name].append(queued[name][-1] if long else _turn(ways[name], device.awaited, rounds))
        rounds += 1
    return _measured(queued), _measured(awaited)


def _turn(way: Way, clock: Callable[[Call], float], start: int) -> float:
    """Return the median of some calls, each with the next set of inputs."""
    times: list[float] = []
    while not times or (len(times) < CALLS and sum(times) < TURN):
        x = way.inputs[(start + len(times)) % len(way.inputs)]
        times.append(clock(functools.partial(way.run, x)))
    return float(np.median(times))


def _measured(times: dict[str, list[float]]) -> Rounds:
    return {name: np.array(values[WARM_UP:]) for name, values in times.items()}


def summary(queued: Rounds, awaited: Rounds) -> dict[str, object]:
    """Return times and ratios as median and quartiles over the rounds; the ratio of a round is that of its medians."""
    return {
        "rounds": len(next(iter(queued.values()))),
        "ms": {name: quartiles(times) for name, times in queued.items()},
        "wall_ms": {name: quartiles(times) for name, times in awaited.items()},
        "ratios": ratios(queued),
        "wall_ratios": ratios(awaited),
    }


def medians(times: Rounds) -> dict[str, float]:
    """Return each contender's median over the rounds."""
    return {name: float(np.median(values)) for name, values in times.items()}


def ratios(times: Rounds) -> dict[str, list[float]]:
    """Return how many times this project's time the others take, by the other's name.

    Beside them `compile`, the fastest of torch.compile's modes, and `saved`, this project's encoder over its
    `top_features`.
    """
    known = medians(times)
    pairs = dict.fromkeys(ALTERNATIVES, ours(known))
    pairs |= {names.TORCH_HOST: names.THIS_HOST, names.TORCH_ENCODE: names.THIS_ENCODE,
              names.TORCH_TOP: names.THIS_TOP, names.THIS: names.THIS_GRAPH}  # fmt: skip
    found = {name: quartiles(times[name] / times[base]) for name, base in pairs.items() if {name, base} <= set(times)}
    best = fastest(known, COMPILES)
    if best in found:
        found["compile"] = found[best]
    if {names.THIS_ENCODE, names.THIS_TOP} <= set(times):
        found["saved"] = quartiles(times[names.THIS_ENCODE] / times[names.THIS_TOP])
    return found
