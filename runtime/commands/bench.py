"""How fast an artifact is on this machine: latency and throughput by number of tokens."""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays.tensor import feed_of
from ..artifact.names import HOOK_INPUT
from ..parity.golden import load_golden
from ..session.session import SAESession


@dataclass(frozen=True)
class Timing:
    """Times of one call with `tokens` tokens, in milliseconds."""

    tokens: int
    calls: int
    median_ms: float
    p90_ms: float

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median."""
        return self.tokens / self.median_ms * 1000


def bench(session: SAESession, hooks: Sequence[str], tokens: Sequence[int], seconds: float) -> Iterator[Timing]:
    """Yield the timing of `compute(x, hooks)` for each number of tokens; x repeats the golden batch.

    Args:
        seconds: how long each number of tokens is measured, after two calls that do not count.
    """
    golden = load_golden(session.artifact).original[HOOK_INPUT]
    for count in tokens:
        x = feed_of(np.resize(golden, (count, *golden.shape[1:])), session.cfg.dtype)
        times = _times(functools.partial(session.compute, x, hooks), seconds)
        yield Timing(count, len(times), float(np.median(times)) * 1e3, float(np.quantile(times, 0.9)) * 1e3)


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def table(timings: Sequence[Timing]) -> str:
    """Return the timings as text."""
    lines = [f"{'tokens':>8} {'calls':>7} {'median ms':>11} {'p90 ms':>10} {'tokens/s':>12}"]
    lines += [
        f"{t.tokens:>8} {t.calls:>7} {t.median_ms:>11.3f} {t.p90_ms:>10.3f} {t.tokens_per_second:>12,.0f}"
        for t in timings
    ]
    return "\n".join(lines)
