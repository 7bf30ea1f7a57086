"""Reports negative thresholds, which may be the logarithms that some trainings store."""

from torch import Tensor

from ..original.hooked_sae import HookedSAE


def note_thresholds(sae: HookedSAE) -> list[str]:
    """Return a sentence about negative thresholds; none if there are none, or the SAE does not have thresholds."""
    threshold: Tensor | None = getattr(sae, "threshold", None)
    if threshold is None or not (negative := int((threshold < 0).sum())):
        return []
    are = "is" if negative == 1 else "are"
    return [
        f"{negative:,} of {threshold.numel():,} thresholds {are} negative, which has the effect of 0: a feature is on "
        "above 0 only. If the checkpoint holds logarithms of thresholds, store torch.exp of them."
    ]
