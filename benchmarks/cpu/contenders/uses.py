"""What an SAE is used for: the three uses in which the contenders are compared."""

from dataclasses import dataclass

from runtime.artifact.names import HOOK_ACTS_POST, HOOK_NAMES, VALUES

ALL_HOOKS, FEATURES, WATCH = "all_hooks", "features", "watch"
FEW = 64
"""Number of features that `FEATURES` returns for each token, and that `WATCH` watches."""


@dataclass(frozen=True)
class Use:
    """A use of an SAE.

    Attributes:
        title: What is computed.
        outputs: Tensors that a contender returns, to be compared with the original's.
        largest: Largest number of rows for which the use is measured.
    """

    title: str
    outputs: tuple[str, ...]
    largest: int


USES = {
    ALL_HOOKS: Use("all six hooks", HOOK_NAMES, 4096),
    FEATURES: Use(f"the {FEW} strongest features", (VALUES,), 512),
    WATCH: Use(f"{FEW} watched features", (HOOK_ACTS_POST,), 512),
}
