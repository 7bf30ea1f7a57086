"""Chooses the graph that answers a request: `choose_graph`, a pure function, and `Plan`, its result in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..artifact.contracts import CPU_VARIANTS, STEER, contracts_of
from ..artifact.manifest import Manifest
from ..artifact.names import FEATURE_HOOKS, HOOK_INPUT, INPUT, TARGET
from ..devices.blocks import Blocks
from ..devices.options import Options
from ..devices.threads import thread_limit
from ..errors import ArtifactError


@dataclass(frozen=True)
class Plan:
    """How a request is carried out.

    Attributes:
        graph: Name of the graph that runs; None if nothing has to be computed.
        device: Name of the device, "cpu", "cuda:N" or "tensorrt:N".
        threads: Number of CPU threads; None leaves it to ONNX Runtime, one per core.
        blocks: Number of tokens in each block, a sequence.
        why: Reason why this graph is run.
    """

    graph: str | None
    device: str
    threads: int | None
    blocks: Blocks
    why: str

    @classmethod
    def of(cls, choice: "Choice", device: str, options: Options, for_cpu: bool, blocks: Blocks) -> "Plan":
        """Return the plan of a request that `choice` answers; `for_cpu` says that CPU variants are preferred."""
        why = choice.why
        if choice.graph is not None:
            family = "CPU variants" if for_cpu else "portable graphs"
            because = f'graphs="{options.graphs}"' + (f" on {device}" if options.graphs == "auto" else "")
            why += f"; {family} are preferred ({because})."
            if blocks.tokens in options.cuda_graph:
                why += " Its launches are captured at the first call and replayed."
        return cls(choice.graph, device, options.threads or thread_limit(), blocks, why)

    def __str__(self) -> str:
        """Return the plan as a sentence."""
        if self.graph is None:
            return f"Nothing is run: {self.why}"
        threads = "a thread per core" if self.threads is None else "1 thread" if self.threads == 1 else \
            f"{self.threads} threads"  # fmt: skip
        where = f"cpu with {threads}" if self.device == "cpu" else self.device
        total = self.blocks.tokens
        tokens = f"{total} token{'s' * (total != 1)}"
        parts = "at once" if len(self.blocks) == 1 else f"in {len(self.blocks)} blocks of at most {self.blocks[-1]}"
        return f"{self.graph} on {where}, {tokens} {parts}: {self.why}"


class Choice(NamedTuple):
    """The graph that answers a request.

    Attributes:
        graph: Name of the graph; None if nothing has to be computed.
        steers: Whether the graph carries out the intervention.
        why: Reason why this graph answers the request.
    """

    graph: str | None
    steers: bool
    why: str


def choose_graph(
    manifest: Manifest, names: Sequence[str], for_cpu: bool, *, steered: bool = False, in_numpy: bool = True
) -> Choice:
    """Return the cheapest graph that computes hooks.

    Args:
        manifest: Manifest of the artifact.
        names: Hooks that are asked for.
        for_cpu: Whether CPU variants are preferred.
        steered: Whether an intervention is carried out.
        in_numpy: Whether the batch is a numpy array. If so, an intervention on features alone does not need a decoder:
            numpy edits the activations that the encoder computed.

    Raises:
        ArtifactError: No graph computes these hooks.
    """
    computed = [name for name in names if name != HOOK_INPUT]
    if not computed:
        return Choice(None, False, "hook_sae_input is what was given.")
    if steered and not (set(computed) <= set(FEATURE_HOOKS) and in_numpy):
        return Choice(variant_of(manifest, STEER, for_cpu), True, "it carries out interventions")
    graph = smallest_graph(manifest, computed, for_cpu)
    return Choice(graph, False, f"it is the smallest graph that computes {', '.join(computed)}")


def smallest_graph(manifest: Manifest, names: Sequence[str], for_cpu: bool) -> str:
    """Return the graph with the fewest outputs that computes `names` from the input, and the target if it is needed.

    If two graphs have equally many outputs, the CPU variant is chosen where CPU variants are preferred.

    Raises:
        ArtifactError: No graph computes these hooks.
    """
    contracts = contracts_of(manifest.sae.dtype)
    candidates = {}
    for graph, spec in manifest.graphs.items():
        is_for_cpu = graph in contracts and contracts[graph].for_cpu
        if (
            {tensor.name for tensor in spec.inputs} <= {INPUT, TARGET}
            and set(names) <= {tensor.name for tensor in spec.outputs}
            and (for_cpu or not is_for_cpu)
        ):
            candidates[graph] = (len(spec.outputs), not is_for_cpu)
    if not candidates:
        raise ArtifactError(f"The artifact does not contain a graph from {INPUT} to {', '.join(names)}.")
    return min(candidates, key=lambda graph: candidates[graph])


def variant_of(manifest: Manifest, graph: str, for_cpu: bool) -> str:
    """Return the CPU variant of a portable graph if there is one and it is preferred, or else the graph itself."""
    return CPU_VARIANTS[manifest.sae.dtype].get(graph, graph) if for_cpu else graph
