"""The features of the texts of a file as columns of a Parquet file, by a grafted host."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.dtypes import widened
from ..arrays.tensor import Array
from ..artifact.writing import check_output_file
from ..errors import InputError, SAEError
from ..hosts.names import ATTENTION_MASK
from ..hosts.session import HostSession
from ..hosts.text import EncodedText
from ..session.features import TopFeatures, import_arrow, strongest_features
from .columns import beside, checked_k, metadata, version_of
from .parts import write_in_parts
from .sources import check_other_file
from .texts import open_texts

PART = 1 << 12
"""Texts of a part."""

BATCH_BYTES = 32 << 20
"""Bytes of the activations of the features that are computed at a time."""

TEXTS, TOKENS = ROWS = ("texts", "tokens")
"""What a row is: the features of a text, or those of one of its tokens."""


def write_text_columns(
    host: HostSession,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    hook: str | None = None,
    rows: str = TEXTS,
    k: int | None = None,
    max_length: int | None = None,
    column: str | None = None,
    keep: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> None:
    """Write the features of the texts in `source` to `target`, a Parquet file with a row for each text or each token.

    A row of a text has, of each feature, the activation that is the largest in absolute value over the tokens of the
    text, as SPLADE pools them. Tokens that the tokenizer adds, such as [CLS], are left out. A text without tokens has
    no features.

    The columns are those that are kept; `row`, the number of the text in the source, counted from 0; of tokens also
    `token`, `start` and `end`, its text and its place in code points; and those of `TopFeatures.to_arrow`. The metadata
    of the schema is that of `write_columns`, with `host_sha256`, `rows` and `max_length`.

    Args:
        host: The grafted host, which needs a tokenizer.
        source: A text file in UTF-8 with a text on each line, or a Parquet file.
        target: The file to write. It appears only when it is complete.
        hook: Hook of the SAE; None if there is only one.
        rows: "texts" or "tokens".
        k: Largest number of features of a row; None for all that are on.
        max_length: As for `HostSession.tokenize`.
        column: Column of a Parquet file with the texts; None if only one column has texts.
        keep: Columns of a Parquet file to copy, such as an id.
        overwrite: Whether to replace a target that exists.
        progress: Function that is called with the number of texts done and the total.

    Raises:
        UnknownHookError: No SAE was grafted at this hook.
        InputError: The source does not have texts, one of them is too long for the host, an argument is wrong,
            `target` is the source, another process is writing it, or pyarrow is missing.
        SAEError: `tokenizers` is not installed.
        OSError: The target cannot be written.
    """
    import_arrow()
    source, target = Path(source), Path(os.path.realpath(target))
    hook = host.only_hook(hook)
    sae = host.host.saes[hook]
    k = checked_k(k, sae.manifest.sae)
    if max_length is not None:
        max_length = as_integer("max_length", max_length, 1)
    if rows not in ROWS:
        raise InputError(f"rows is {rows!r}; it must be one of {', '.join(ROWS)}.")
    check_output_file(target, overwrite)
    check_other_file(source, target)
    opened = open_texts(source, column, keep)
    about = {"host_sha256": host.host.sha256, "rows": rows, "max_length": max_length}
    plan = {"source": version_of(source), "hook": hook, "k": k, "column": column, "keep": keep, **about}
    schema_metadata = metadata(sae.sha256, sae.manifest.sae, k, **about)
    features = _Features(host, hook, rows, k, max_length)

    def tables(start: int, stop: int) -> Iterator[Any]:
        for first, kept, texts in opened.read(start, stop):
            yield features(texts, first, kept).replace_schema_metadata(schema_metadata)
            progress(first + len(texts), opened.rows)

    write_in_parts(target, plan, opened.rows, PART, tables, overwrite, progress)


class _Features:
    """Computes the rows of some texts."""

    def __init__(self, host: HostSession, hook: str, rows: str, k: int | None, max_length: int | None) -> None:
        self._host, self._hook, self._rows, self._k, self._max_length = host, hook, rows, k, max_length
        self._d_sae = host.host.saes[hook].manifest.sae.d_sae
        self._inputs = [tensor.name for tensor in host.host.manifest.host.inputs]

    def __call__(self, texts: list[str], first: int, kept: Any) -> Any:
        """Return the rows of texts as a table.

        Args:
            texts: The texts.
            first: Number of the first of them in the source.
            kept: A table of the columns to copy, with a row for each text; None if there are none.

        Raises:
            InputError: A text is too long for the host.
        """
        import pyarrow as pa

        encoded = self._host.tokenizer.encode_each(texts, self._max_length) if texts else []
        nothing = [i for i, each in enumerate(encoded) if not each.ids and self._rows == TEXTS]
        found = [self._strongest(np.zeros((len(nothing), self._d_sae), np.float32))]
        numbers = [np.array(nothing, np.int64)]
        for group in self._groups(encoded):
            acts, is_word = self._acts([encoded[i] for i in group], first + group[-1])
            which = np.array(group)
            if self._rows == TOKENS:
                acts, which = acts[is_word], np.repeat(which, is_word.sum(axis=1))
            else:
                acts = largest_over_tokens(acts, is_word)
            found.append(self._strongest(acts))
            numbers.append(which)
        which = np.concatenate(numbers)
        order = np.argsort(which, kind="stable")
        which = which[order]
        columns: dict[str, Any] = {"row": pa.array(first + which)}
        if self._rows == TOKENS:
            spans = [(text, *span) for text, each in zip(texts, encoded, strict=True) for span in _words(each)]
            columns["token"] = pa.array([text[start:end] for text, start, end in spans], pa.string())
            columns["start"] = pa.array([start for _, start, _ in spans], pa.int32())
            columns["end"] = pa.array([end for _, _, end in spans], pa.int32())
        table = beside(pa.table(columns), pa.concat_tables(found).take(pa.array(order)))
        return table if kept is None else beside(kept.take(pa.array(which)), table)

    def _groups(self, encoded: Sequence[EncodedText]) -> Iterator[list[int]]:
        """Yield the texts that are run together, those of similar length, so that few tokens are padding."""
        most = max(1, BATCH_BYTES // (4 * self._d_sae))
        alone = ATTENTION_MASK not in self._inputs  # such a host would take the padding for tokens
        group: list[int] = []
        for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids)):
            if group and (alone or (len(group) + 1) * len(encoded[i].ids) > most):
                yield group
                group = []
            if encoded[i].ids:
                group.append(i)
        if group:
            yield group

    def _acts(self, group: Sequence[EncodedText], last: int) -> tuple[Array, Array]:
        """Return the activations of texts, `(texts, tokens, d_sae)`, and which tokens are their own, `(texts, tokens)`.

        Args:
            group: The texts, the longest one last.
            last: Number of the last one in the source.

        Raises:
            InputError: A text is too long for the host.
        """
        feeds = {name: array for name, array in self._host.tokenizer.pad(group).items() if name in self._inputs}
        try:
            acts = widened(self._host.encode(feeds, [self._hook])[self._hook])
        except SAEError as error:
            raise InputError(
                f"{error} The longest text of this batch, row {last}, has {len(group[-1].ids)} tokens; max_length "
                "(--max-length N) cuts texts off."
            ) from error
        is_word = np.zeros(acts.shape[:2], bool)
        for row, each in enumerate(group):
            is_word[row, : len(each.ids)] = ~np.array(each.is_special, bool)
        return acts, is_word

    def _strongest(self, acts: Array) -> Any:
        """Return the strongest features of rows, `(rows, d_sae)`, as a table."""
        k = max(1, int((acts != 0).sum(axis=-1).max(initial=0))) if self._k is None else self._k
        found: TopFeatures[Array] = strongest_features(acts, k)
        return found.to_arrow()


def largest_over_tokens(acts: Array, is_word: Array) -> Array:
    """Return the activation of each feature that is the largest in absolute value over the tokens of a text.

    Args:
        acts: Activations, `(texts, tokens, d_sae)`.
        is_word: Which tokens count, `(texts, tokens)`.

    Returns:
        `(texts, d_sae)`; NaN where a token that counts has NaN.
    """
    own = np.where(is_word[..., None], acts, 0)
    high, low = own.max(axis=1), own.min(axis=1)
    return np.where(high >= -low, high, low)


def _words(encoded: EncodedText) -> Iterator[tuple[int, int]]:
    """Yield the spans of the tokens that are the text's own."""
    for span, is_special in zip(encoded.spans, encoded.is_special, strict=True):
        if not is_special:
            yield span
