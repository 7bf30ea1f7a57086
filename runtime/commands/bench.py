"""`python -m runtime bench`: latency and throughput by number of tokens per call."""

import argparse
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from tqdm import tqdm

from ..arrays.limits import check_fits
from ..arrays.tensor import feed_of
from ..artifact.names import HOOK_INPUT
from ..errors import SAEError
from ..parity.golden import load_golden
from ..session.session import SAESession
from ..tables import format_table


@dataclass(frozen=True)
class Timing:
    """Measured duration of calls with the same number of tokens.

    Attributes:
        tokens: Number of tokens per call.
        calls: Number of calls that were measured.
        median_ms: Median duration of a call, in milliseconds.
        p90_ms: 90th percentile of the duration, in milliseconds.
    """

    tokens: int
    calls: int
    median_ms: float
    p90_ms: float

    @property
    def tokens_per_second(self) -> float:
        """Throughput at the median duration."""
        return self.tokens / self.median_ms * 1000


def bench_command(options: argparse.Namespace) -> int:
    """Print which graph computes the hooks and how long it takes."""
    if min(options.tokens) < 1:
        raise SAEError(f"--tokens is {min(options.tokens)}; it must be at least 1.")
    with SAESession(
        options.artifact,
        options.device,
        precision=options.precision,
        threads=options.threads,
        graphs=options.graphs,
        cuda_graph=options.tokens if options.cuda_graph else (),
    ) as session:
        hooks = session.hook_names if options.hooks is None else options.hooks
        plan = session.explain(hooks, max(options.tokens))
        print(f"{session!r}, onnxruntime {onnxruntime.__version__}")
        print(plan)
        timings = bench(session, hooks, options.tokens, options.seconds)
        print(format_timings(list(tqdm(timings, total=len(options.tokens), disable=None, leave=False))))
    return 0


def bench(session: SAESession, hooks: Sequence[str], tokens: Sequence[int], seconds: float) -> Iterator[Timing]:
    """Yield the timing of `session.compute(x, hooks, target)` for each number of tokens.

    Args:
        session: The SAE. `x` repeats the inputs of its golden batch, and `target` the targets, if it takes one.
        hooks: Names of the hooks to compute.
        tokens: Numbers of tokens per call.
        seconds: How long to measure each number of tokens, after two calls that are not counted.

    Raises:
        InputError: A batch does not fit in memory.
    """
    golden, dtype = load_golden(session.artifact), session.cfg.dtype
    for count in tokens:
        check_fits(f"A batch of {count} tokens", count * golden.original[HOOK_INPUT][0].nbytes)
        x, target = (
            None if given is None else feed_of(np.resize(given, (count, *given.shape[1:])), dtype)
            for given in (golden.original[HOOK_INPUT], golden.target)
        )
        times = _measure(functools.partial(session.compute, x, hooks, target), seconds)
        yield Timing(count, len(times), float(np.median(times)) * 1e3, float(np.quantile(times, 0.9)) * 1e3)


def format_timings(timings: Sequence[Timing]) -> str:
    """Return the timings as a table."""
    rows = [
        (str(t.tokens), str(t.calls), f"{t.median_ms:.3f}", f"{t.p90_ms:.3f}", f"{t.tokens_per_second:,.0f}")
        for t in timings
    ]
    return format_table(rows, header=("tokens", "calls", "median ms", "p90 ms", "tokens/s"), right=range(5))


def _measure(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the duration of each call in seconds; there are at least three."""
    call()
    call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
