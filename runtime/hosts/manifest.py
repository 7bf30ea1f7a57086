"""`host.json`, the manifest of a grafted host: the host, its SAEs, the graphs, the proof and the checksums.

The classes have the keys of `host.json`, one for one, except for the checksum of its own text. The rules are those of
`sae.json`: unknown keys are ignored, and a change that an older reader would misunderstand raises `FORMAT_VERSION`.
"""

from dataclasses import dataclass, field

from ..artifact.checksum import with_checksum
from ..artifact.folder import HOST_MANIFEST
from ..artifact.manifest import FileRecord, GraphSpec, TensorSpec, to_content
from ..artifact.manifest_format import ManifestFormat

FORMAT = "saeexport.host"
FORMAT_VERSION = 1
MANIFEST = HOST_MANIFEST

HOST_FORMAT = ManifestFormat(MANIFEST, FORMAT_VERSION, "graft the SAEs again")
"""The format of `host.json`."""

ENCODER, DECODER = "encoder", "decoder"
KINDS = (ENCODER, DECODER)

METHODS = ("reference", "golden", "variance_explained", "forced")
"""How the value of a hook was identified: by its activations in PyTorch or in a file, by the variance that the SAE
explains, or not at all, because the user insisted."""


@dataclass(frozen=True)
class CachePair:
    """An input of a decoder with the keys or values of earlier tokens, and the output for the next call."""

    past: str
    present: str


@dataclass(frozen=True)
class Host:
    """The language model's ONNX model into which the SAEs were grafted.

    Attributes:
        name: Name of the model, or of its file.
        sha256: The sha256 of the file of the ungrafted model.
        exporter: Name and version of the program that wrote it; "" if the model does not say.
        opset: Version of ONNX's operators in the graphs.
        kind: "encoder", or "decoder" for a model that predicts the next token.
        inputs: The inputs of the model, in order.
        outputs: The outputs of the model, in order.
        cache: Inputs and outputs with the keys and values of earlier tokens; empty if the model has none.
        dtype: Dtype of the model as it was exported, that of its values that rounds most; "" in older folders. The
            graphs of a model in bfloat16 compute in float32, and have its weights.
    """

    name: str
    sha256: str
    exporter: str
    opset: int
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: tuple[CachePair, ...]
    dtype: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Evidence:
    """How the value of the host's graph at a hook was identified.

    Attributes:
        method: One of `METHODS`.
        error: Largest norm of the difference from the activation at the hook relative to its norm, over tokens; None if
            there was nothing to compare with.
        runner_up: Name of the value that fits second best; None if there is none.
        runner_up_error: Its error; None if there was nothing to compare with.
        variance_explained: Fraction of the variance of the value that the SAE's reconstruction explains; None if it was
            not measured.
        tokens: Number of tokens that were compared.
    """

    method: str
    error: float | None
    runner_up: str | None
    runner_up_error: float | None
    variance_explained: float | None
    tokens: int


@dataclass(frozen=True)
class GraftedTarget:
    """The activation that a transcoder predicts, and that its output replaces.

    Attributes:
        hook: Name of the hook, such as "blocks.2.hook_mlp_out".
        value: Name of the value at the hook in the graph of the ungrafted host.
        dtype: Dtype of the value.
        shape: Shape of the value.
        evidence: How the value was identified.
    """

    hook: str
    value: str
    dtype: str
    shape: tuple[int | str, ...]
    evidence: Evidence


@dataclass(frozen=True)
class GraftedSAE:
    """An SAE and its place in the host.

    Attributes:
        hook: Name of the hook, such as "blocks.2.hook_resid_post".
        folder: Folder of the artifact, relative to that of the host.
        sha256: The sha256 of its `sae.json`, which stands for the whole artifact.
        value: Name of the value at the hook in the graph of the ungrafted host.
        dtype: Dtype of the value.
        shape: Shape of the value.
        heads: Whether the last two dimensions of the value, `(n_heads, d_head)`, are one token's activation.
        evidence: How the value was identified.
        target: For a transcoder, the activation that it predicts; None for an SAE, whose output replaces what it reads,
            and if there is only the graph "features", which does not need it.
    """

    hook: str
    folder: str
    sha256: str
    value: str
    dtype: str
    shape: tuple[int | str, ...]
    heads: bool
    evidence: Evidence
    target: GraftedTarget | None = field(default=None, kw_only=True)

    @property
    def replaced(self) -> str:
        """The hook whose activation the output replaces."""
        return self.hook if self.target is None else self.target.hook

    @property
    def places(self) -> "tuple[GraftedSAE | GraftedTarget, ...]":
        """What the SAE reads, and the target that a transcoder predicts."""
        return (self,) if self.target is None else (self, self.target)


@dataclass(frozen=True)
class HostGolden:
    """The golden batch of a host.

    Attributes:
        file: Name of the file.
        tokens: Number of tokens that are not masked.
        source: Where the feeds come from, such as "sentences" or "reference".
    """

    file: str
    tokens: int
    source: str


@dataclass(frozen=True)
class OutputParity:
    """The errors of one output of the host; `runtime.hosts.rule` says how they are measured.

    Attributes:
        own: Error of the host itself in the same condition, without the graph that is judged.
        error: Error of the grafted host on the machine of the exporter.
        budget: Largest error that is allowed.
    """

    own: float
    error: float
    budget: float


@dataclass(frozen=True)
class GraftParity:
    """The proof made when the SAEs were grafted. Each dict is by output, and empty if its graph was not asked for.

    Attributes:
        device: Where the graphs were run.
        reference: What the spliced outputs were compared with: "pytorch", the model with the SAEs in forward hooks, or
            "stages", the stages of the host with the PyTorch SAEs between them.
        tokens: Number of tokens that are not masked.
        exact: Whether the outputs of the tap had the bits of the ungrafted host's.
        tap: Outputs of the tap.
        detached: Outputs of the splice with no SAE attached.
        splice: Outputs of the splice with every SAE attached, without the error terms.
        edited: The same with an edit of features.
        decoded: Outputs of the splice token by token with the cache.
        moved: How far attaching the SAEs moves each output, measured as an error is.
        inputs: The activation at each hook in the tap or the splice, by hook, targets included. Where there is neither,
            the error is 0.
    """

    device: str
    reference: str
    tokens: int
    exact: bool
    tap: dict[str, OutputParity]
    detached: dict[str, OutputParity]
    splice: dict[str, OutputParity]
    edited: dict[str, OutputParity]
    decoded: dict[str, OutputParity]
    moved: dict[str, float]
    inputs: dict[str, OutputParity] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class HostManifest:
    """The content of `host.json`.

    Attributes:
        host: The language model.
        saes: The SAEs, in the order in which the graph computes what they replace.
        graphs: The graphs, by name: "tap", "splice" and "features" as far as they were asked for, and the stages.
        golden: The golden batch.
        parity: The proof.
        producer: Versions of the software that made the folder, by name.
        files: Checksums, by the path relative to the folder. An SAE's folder is represented by its `sae.json`.
        cuts: The hooks at which the host is cut into stages, in the order of the graph. It is empty if these are the
            hooks of `saes`, as without a transcoder.
        format: Must be `FORMAT`.
        format_version: Version of this format.
    """

    host: Host
    saes: tuple[GraftedSAE, ...]
    graphs: dict[str, GraphSpec]
    golden: HostGolden
    parity: GraftParity
    producer: dict[str, str]
    files: dict[str, FileRecord]
    cuts: tuple[str, ...] = field(default=(), kw_only=True)
    format: str = field(default=FORMAT, kw_only=True)
    format_version: int = field(default=FORMAT_VERSION, kw_only=True)

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks that have an SAE, in the order of the graph."""
        return tuple(sae.hook for sae in self.saes)

    def replacing(self, hook: str) -> GraftedSAE | None:
        """Return the SAE whose output replaces the activation at a hook; None if no output does."""
        return next((sae for sae in self.saes if sae.replaced == hook), None)

    @property
    def all_hooks(self) -> tuple[str, ...]:
        """The hooks whose activations an SAE reads or replaces, in the order of the graph."""
        return self.cuts or self.hooks

    def to_json(self) -> str:
        """Return the text of `host.json` with its checksum, the same bytes for the same manifest."""
        content = to_content(self)
        first = {name: content.pop(name) for name in ("format", "format_version")}
        return with_checksum({**first, **content})
