"""The check on the device that contenders compute the same values, made before any of them is timed.

All are compared with the original in full float32. Their precision sets the tolerance.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.contenders.names import TITLES, TOP_K, WATCHED, Contender
from benchmarks.shared.agreement import TOLERANCE, DisagreementError, check_agreement, row_stride
from benchmarks.shared.equations import original_hooks, top_features
from runtime.arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES
from runtime.devices.options import TF32

TOLERANCES = {FLOAT32: TOLERANCE, TF32: 5e-3, FLOAT16: 5e-3, BFLOAT16: 4e-2}
"""The largest norm of a difference, divided by the norm of the float32 original's hook, by precision.

A factor rounded to 11 significant bits (TF32, float16) has a relative error of 3e-4, one rounded to 8 bits of 2e-3
(root mean square of half a unit). A ReLU keeps only the small positive part of a preactivation, whose relative error is
several times larger."""

TOP = "top_features"
WATCH = "watch"


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Let PyTorch compute float32 products in full precision, or in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == TF32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def checked_rows(tensor: Tensor) -> Tensor:
    """Return the rows of a tensor that are compared."""
    return tensor[:: row_stride(len(tensor))]


def compute_reference(x: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the expected tensors: the hooks of some rows of `x` in full float32, and the strongest features.

    Raises:
        DisagreementError: No feature is on, or nearly all are, so that a check would see nothing.
    """
    with precision(FLOAT32), torch.inference_mode():
        hooks = dict(zip(HOOK_NAMES, original_hooks(checked_rows(x).float(), *weights.values()), strict=True))
        acts_post = hooks[HOOK_ACTS_POST]
        share = (acts_post != 0).float().mean().item()
        if not 0 < share < 0.9:
            raise DisagreementError(f"{share:.1%} of the features are on: these inputs cannot check anything.")
        width = acts_post.shape[1]
        return hooks | {TOP: scatter_top(*top_features(acts_post, min(TOP_K, width))[:2], width)}


def watched_features(expected: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the ids of the features to watch: the strongest of the first row of each set of inputs.

    Some of them are on in every set, so that a wrong result is noticed.
    """
    each = WATCHED // len(expected)
    return torch.cat([reference[HOOK_ACTS_POST][0].topk(each).indices for reference in expected])


def scatter_top(indices: Tensor, values: Tensor, d_sae: int) -> Tensor:
    """Return the strongest features among zeros, `(rows, d_sae)`, for the rows that are compared.

    The weakest value is subtracted from each: rounding may choose either of two equally strong features, and both then
    count as zero. Places without a feature have the index -1 and the value 0, which adds nothing.
    """
    indices, values = checked_rows(indices), checked_rows(values)
    values = values - values[:, -1:]
    return values.new_zeros((len(values), d_sae)).scatter_add_(1, indices.clamp(min=0), values)


def bind_contenders(
    factories: Mapping[str, Callable[[], Contender]],
    expected: Sequence[dict[str, Tensor]],
    dtype: torch.dtype,
    tolerance: float,
) -> tuple[dict[str, Contender], dict[str, float], dict[str, str]]:
    """Return the contenders that run and agree, the difference of each, and why the rest are left out.

    Each runs with two different inputs, so that one that returns its last result again is found.
    """
    contenders, agreement, absent = {}, {}, {}
    for name, make in factories.items():
        try:
            contender = make()
            assert contender.hooks is not None
            errors = []
            for x, reference in zip(contender.inputs, expected, strict=False):
                found = {hook: checked_rows(tensor) for hook, tensor in contender.hooks(contender.run(x)).items()}
                wanted = {hook: reference[hook] for hook in found}
                errors.append(check_agreement(TITLES.get(name, name), found, wanted, dtype, tolerance))
        except DisagreementError as error:
            absent[name] = f"wrong: {error}"
        except Exception as error:  # of any type: one that cannot run must not cost the figures of the rest
            absent[name] = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        else:
            contenders[name], agreement[name] = contender, float(f"{max(errors):.1e}")
    return contenders, agreement, absent
