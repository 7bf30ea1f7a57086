"""For many tokens, the encoder's bias is added by its product; see `runtime/artifact/folding.py`.

With few tokens, launching one more kernel takes longer than adding the bias, and in float32 the product takes nearly
all of the time. So a graph has a second session for large batches in TF32 and half precision. All of them share one
copy of the matrix with the bias, which is made at the first large batch.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from ...arrays.dtypes import DTYPES, FLOAT32
from ...arrays.tensor import Array, Tensor
from ...artifact.folding import BIAS_ROWS, MATRIX, ONES, FoldedBias, fold_bias
from ...artifact.held import HeldFiles
from ...artifact.manifest import SAEConfig
from ...errors import SAEError
from ..start import is_from_onnx_runtime
from .memory import DeviceMemory
from .weights import DeviceWeights

FEWEST_TOKENS = 128
"""Smallest number of tokens that are run by a folded graph."""

TF32_PIECES = 3
"""Number of TF32 values that add up to a float32: each has 11 of its 24 bits."""

TF32_MASK = np.uint32(0xFFFFE000)
"""The bits of a float32 that TF32 keeps."""

StartFolded = Callable[[str, HeldFiles, bytes], ort.InferenceSession]
"""Starts a session of a model that was made from a graph: `start(graph, files, model)`."""


@dataclass
class _Foldable:
    """A graph that can be folded, and its folded session once there is one."""

    graph: str
    files: HeldFiles
    folded: FoldedBias
    session: ort.InferenceSession | None = None


class FoldedGraphs:
    """The folded sessions of the graphs of one `SAESession`.

    Args:
        memory: Memory of the GPU.
        weights: The parameters on the GPU.
        sae: Configuration of the SAE.
    """

    def __init__(self, memory: DeviceMemory, weights: DeviceWeights, sae: SAEConfig) -> None:
        self._memory, self._weights, self._dtype = memory, weights, sae.dtype
        self._encoder_shape = sae.d_in, sae.d_sae
        self._graphs: weakref.WeakKeyDictionary[ort.InferenceSession, _Foldable] = weakref.WeakKeyDictionary()
        self._matrices: dict[tuple[str, str], Tensor] = {}
        self._ones: Tensor | None = None

    def add(self, session: ort.InferenceSession, graph: str, files: HeldFiles) -> None:
        """Let a graph, which runs in `session`, be folded. Without shared parameters on the GPU none is."""
        shared = self._weights.values()
        folded = fold_bias(files.graphs[graph].content, DTYPES[self._dtype].onnx) if shared else None
        # The decoder of a narrow SAE, or of a transcoder with a wide output, also has more columns than rows.
        if folded is not None and folded.shape == self._encoder_shape and {folded.matrix, folded.bias} <= shared.keys():
            self._graphs[session] = _Foldable(graph, files, folded)

    def choose(
        self, session: ort.InferenceSession, tokens: int, start: StartFolded
    ) -> tuple[ort.InferenceSession, dict[str, Tensor]]:
        """Return the session that runs so many tokens in place of `session`, and the inputs that only it has.

        Where the folded session cannot be made, as on a GPU without memory for one more matrix, that is `session`
        itself, from then on.

        Args:
            session: Session of a graph.
            tokens: Number of tokens.
            start: Starts a folded session. It is not kept, because it refers to the backend, which refers to this: the
                memory of a backend that is dropped would then wait for the garbage collector.
        """
        found = self._graphs.get(session) if tokens >= FEWEST_TOKENS else None
        if found is None:
            return session, {}
        try:
            inputs = {ONES: self._ones_for(tokens), MATRIX: self._matrix_of(found.folded)}
            if found.session is None:
                folded = start(found.graph, found.files, found.folded.model)
                found.files.check_unchanged()  # since the graph was loaded
                found.session = folded
            return found.session, inputs
        except Exception as error:
            if not (isinstance(error, SAEError) or is_from_onnx_runtime(error)):
                raise
            del self._graphs[session]
            return session, {}

    def close(self) -> None:
        """Free the sessions and the matrix."""
        self._graphs.clear()
        self._matrices.clear()
        self._ones = None

    @property
    def _pieces(self) -> int:
        """Number of rows that the bias takes."""
        return TF32_PIECES if self._dtype == FLOAT32 else 1

    def _ones_for(self, tokens: int) -> Tensor:
        if self._ones is None or self._ones.shape[0] < tokens:
            ones = np.zeros((tokens, BIAS_ROWS), DTYPES[self._dtype].numpy)
            ones[:, : self._pieces] = 1
            (self._ones,) = self._memory.tensors([(ones.shape, self._dtype)])
            self._copy(self._ones.pointer, ones)
        return self._ones[:tokens]

    def _matrix_of(self, folded: FoldedBias) -> Tensor:
        key = (folded.matrix, folded.bias)
        if key not in self._matrices:
            (d_in, d_sae), card, stream = folded.shape, self._memory.card, self._memory.stream
            stored, bias = (self._weights.values()[name].data_ptr() for name in key)
            (matrix,) = self._memory.tensors([((d_in + BIAS_ROWS, d_sae), self._dtype)])
            card.copy(matrix.pointer, stored, matrix[:d_in].nbytes, stream)
            on_host = np.empty(d_sae, DTYPES[self._dtype].numpy)
            card.copy(on_host.ctypes.data, bias, on_host.nbytes, stream)
            card.synchronize(stream)
            self._copy(matrix[d_in:].pointer, bias_rows(on_host, self._pieces))
            self._matrices[key] = matrix
        return self._matrices[key]

    def _copy(self, target: int, array: Array) -> None:
        self._memory.card.copy(target, array.ctypes.data, array.nbytes, self._memory.stream)
        self._memory.card.synchronize(self._memory.stream)  # before the array is freed


def bias_rows(bias: Array, pieces: int) -> Array:
    """Return rows that add up to a bias, `(BIAS_ROWS, d_sae)`; several are values of TF32.

    Args:
        bias: The bias, `(d_sae,)`.
        pieces: Number of rows that are not zero.
    """
    rows = np.zeros((BIAS_ROWS, *bias.shape), bias.dtype)
    if pieces == 1:
        rows[0] = bias
        return rows
    rest = bias
    for row in rows[:pieces]:
        row[:] = (rest.view(np.uint32) & TF32_MASK).view(np.float32)
        rest = np.subtract(rest, row, out=np.zeros_like(row), where=np.isfinite(row))
    return rows
