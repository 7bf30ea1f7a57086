"""Times the contenders of a GPU in turn, by the device's clock and by the host's, and computes the ratios."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu.contenders import names
from benchmarks.gpu.contenders.names import ALTERNATIVES, COMPILE_MODES, Contender, fastest_setting
from benchmarks.gpu.device import Call, Device
from benchmarks.shared.timing import fastest, quartiles, take_turns
from runtime.arrays.tensor import Array

Rounds = dict[str, Array]
"""Milliseconds of each contender, one per round."""

WARM_UP = 1  # rounds that do not count
CALLS, TURN = 5, 4.0  # a turn is five calls, or fewer once they took four milliseconds
LONG = 20.0
"""Milliseconds from which a call is not timed by the host's clock too, because queueing it takes a negligible part."""


@dataclass(frozen=True)
class Effort:
    """How long the contenders are measured.

    Attributes:
        seconds: Smallest duration of a line of the table.
        rounds: Smallest number of rounds of a line of the table.
    """

    seconds: float
    rounds: int


def interleave(contenders: Mapping[str, Contender], device: Device, effort: Effort) -> tuple[Rounds, Rounds]:
    """Return each contender's median milliseconds by round: of queued calls, and of awaited calls."""
    queued: dict[str, list[float]] = {name: [] for name in contenders}
    awaited: dict[str, list[float]] = {name: [] for name in contenders}
    for done, name in take_turns(contenders, effort.rounds + WARM_UP, effort.seconds):
        time = _take_turn(contenders[name], device.time_queued, done)
        queued[name].append(time)
        awaited[name].append(time if time > LONG else _take_turn(contenders[name], device.time_awaited, done))
    return _without_warm_up(queued), _without_warm_up(awaited)


def _take_turn(contender: Contender, clock: Callable[[Call], float], start: int) -> float:
    """Return the median of some calls, each with the next set of inputs."""
    times: list[float] = []
    while not times or (len(times) < CALLS and sum(times) < TURN):
        x = contender.inputs[(start + len(times)) % len(contender.inputs)]
        times.append(clock(functools.partial(contender.run, x)))
    return float(np.median(times))


def _without_warm_up(times: dict[str, list[float]]) -> Rounds:
    return {name: np.array(values[WARM_UP:]) for name, values in times.items()}


def summarize(queued: Rounds, awaited: Rounds) -> dict[str, object]:
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
    """Return the time of each alternative divided by this project's, by the name of the alternative.

    `compile` is the ratio of the fastest of torch.compile's modes; `saved` is the time of this project's encoder
    divided by that of its `top_features`.
    """
    known = medians(times)
    pairs = dict.fromkeys(ALTERNATIVES, fastest_setting(known))
    pairs |= {names.TORCH_HOST: names.THIS_HOST, names.TORCH_ENCODE: names.THIS_ENCODE,
              names.TORCH_TOP: names.THIS_TOP, names.TORCH_WATCH: names.THIS_WATCH,
              names.THIS: names.THIS_GRAPH}  # fmt: skip
    found = {name: quartiles(times[name] / times[base]) for name, base in pairs.items() if {name, base} <= set(times)}
    best = fastest(known, COMPILE_MODES)
    if best in found:
        found["compile"] = found[best]
    if {names.THIS_ENCODE, names.THIS_TOP} <= set(times):
        found["saved"] = quartiles(times[names.THIS_ENCODE] / times[names.THIS_TOP])
    return found
