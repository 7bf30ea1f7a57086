"""Whether contenders compute the same, which is asked on the device before any of them is timed.

All are compared with the original in full float32, and may differ by what their precision allows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.contenders import TITLES, K, Way
from benchmarks.gpu.equations import original, top_features
from benchmarks.shared.agreement import CLOSE, DisagreementError
from runtime.arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from runtime.devices.options import TF32

BOUNDS = {FLOAT32: CLOSE, TF32: 5e-3, FLOAT16: 5e-3, BFLOAT16: 4e-2}
"""The norm of a difference, over that of the float32 original's hook, up to which two results are the same. A factor
rounded to 11 significant bits (TF32, float16) is off by 3e-4 of itself, to 8 bits by 2e-3 (root mean square of a half
unit), and what a ReLU lets through is the small rest of a preactivation, some times its relative error."""

CHECKED_ROWS = 512
TOP = "top_features"


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let PyTorch compute products of float32 numbers in full, or in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == TF32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def every(rows: int) -> int:
    """Return that every n-th row is compared."""
    return -(-rows // CHECKED_ROWS)


def reference(x: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what all are compared with: the hooks of some rows of `x` in full float32, and the strongest features.

    Raises:
        DisagreementError: there is nothing to compare, because nothing is on or everything is.
    """
    with precision(FLOAT32), torch.inference_mode():
        hooks = dict(zip(HOOK_NAMES, original(x[:: every(len(x))].float(), *weights.values()), strict=True))
        acts_post = hooks[HOOK_ACTS_POST]
        share = (acts_post != 0).float().mean().item()
        if not 0 < share < 0.9:
            raise DisagreementError(f"{share:.1%} of the features are on: the inputs are not what they should be.")
        return hooks | {TOP: dense(*top_features(acts_post, min(K, acts_post.shape[1]))[:2], acts_post.shape[1])}


def dense(indices: Tensor, values: Tensor, d_sae: int) -> Tensor:
    """Return the strongest features among zeros, `(rows, d_sae)`, for the rows that are compared.

    Each is less by the weakest: of two that are equally strong rounding may choose either, and neither then counts.
    """
    n = every(len(values))
    indices, values = indices[::n], values[::n] - values[::n, -1:]
    return values.new_zeros((len(values), d_sae)).scatter_(1, indices, values)


def agree(
    title: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype: torch.dtype, bound: float
) -> float:
    """Return the largest relative difference of what a contender `found` from what is expected under the same name.

    Raises:
        DisagreementError: a tensor has another shape or dtype, or differs by more than the bound.
    """
    worst = 0.0
    for hook, tensor in found.items():
        y, truth = tensor[:: every(len(tensor))], expected[hook]
        if (y.shape, y.dtype) != (truth.shape, dtype):
            raise DisagreementError(
                f"{title}: {hook} is {tuple(y.shape)} {y.dtype}; it must be {tuple(truth.shape)} {dtype}."
            )
        difference, norm = (
            torch.linalg.vector_norm(z, dtype=torch.float64).item()
            for z in (y.to(truth.device, torch.float32) - truth, truth)
        )
        error = difference / norm if norm else (0.0 if difference == 0 else float("inf"))
        if not error <= bound:  # NaN is not, either
            raise DisagreementError(
                f"{title}: {hook} differs from the float32 original's by {error:.1e} of its norm; up to {bound:.0e} "
                "would be rounding."
            )
        worst = max(worst, error)
    return worst


def bind(
    makers: Mapping[str, Callable[[], Way]], expected: Sequence[dict[str, Tensor]], dtype: torch.dtype, bound: float
) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """Return who can run and agrees, by how much each differs, and why the others are left out.

    Each is asked twice, with inputs that differ, so that one which gives its last answer again is found.
    """
    ways, agreement, absent = {}, {}, {}
    for name, make in makers.items():
        try:
            way = make()
            assert way.hooks is not None
            errors = [
                agree(TITLES.get(name, name), way.hooks(way.run(x)), wanted, dtype, bound)
                for x, wanted in zip(way.inputs, expected, strict=False)
            ]
        except DisagreementError as error:
            absent[name] = f"wrong: {error}"
        except Exception as error:  # of many kinds; one that cannot run must not cost the others their figures
            absent[name] = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        else:
            ways[name], agreement[name] = way, float(f"{max(errors):.1e}")
    return ways, agreement, absent
