"""Features that are watched: a model of their part of the encoder, which is all that a call runs."""

from typing import Any, NoReturn, final, overload

from ..arrays.tensor import Array, TensorValue
from ..errors import InputError
from .batch import Batch
from .forward import active_interventions, encode_selection
from .graphs import Graphs
from .hooks import HookRegistry
from .interventions import as_feature_ids


@final
class FeatureWatch:
    """Computes the activations of some features of an SAE; see `SAESession.watch`.

    It may be called from several threads at once, until its session is closed.

    Attributes:
        ids: Ids of the features, `(m,)` int64, in the order of the results.
    """

    def __init__(self, graphs: Graphs, hooks: HookRegistry, ids: Any) -> None:
        self.ids: Array = as_feature_ids(ids, graphs.manifest.sae.d_sae)
        if not self.ids.size:
            raise InputError("The list of feature ids is empty; watch at least one feature.")
        self.ids.flags.writeable = False
        self._graphs = graphs
        self._hooks = hooks
        self._selection = graphs.select(self.ids)

    @overload
    def __call__(self, x: Array) -> Array: ...
    @overload
    def __call__(self, x: Any) -> TensorValue: ...
    def __call__(self, x: Any) -> TensorValue:
        """Return the activations of the features, `(..., m)`.

        Args:
            x: Activations, as for `SAESession.encode`.

        Raises:
            InputError: `x` has another shape or dtype than `SAESession.encode` takes.
            SAEError: The session is closed.
            ArtifactError: This is the first call with many tokens, and the weights were changed since `watch`.
        """
        graphs, selection, edits = self._graphs, self._selection, active_interventions(self._hooks)
        if not edits and (rows := selection.rows_of(x)) is not None:
            values = graphs.run_at_once(selection, rows)
            return values if rows is x else values.reshape(*x.shape[: x.ndim + 1 - rows.ndim], len(self.ids))
        batch = Batch.of(x, graphs.manifest.sae, given=graphs.backend.import_array)
        return encode_selection(graphs, batch, selection, edits)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied.

        Raises:
            InputError: Always.
        """
        raise InputError("A FeatureWatch belongs to its session. Copy the session, and call its watch(ids).")

    def __repr__(self) -> str:
        return f"FeatureWatch({self.ids.tolist()})"
