"""Text as the inputs of a host, with the package `tokenizers` and the `tokenizer.json` of the folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.tensor import Array
from ..errors import InputError, IntegrityError, SAEError
from .folder import GraftedHost
from .names import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS, TOKENIZER


@dataclass(frozen=True)
class EncodedText:
    """The tokens of a text.

    Attributes:
        ids: Their ids.
        type_ids: Which of two sentences each belongs to, as BERT counts them.
        is_special: Whether each was added by the tokenizer, such as [CLS].
        spans: Start and end of each in the text, in Unicode code points; 0 and 0 for those that were added.
    """

    ids: Sequence[int]
    type_ids: Sequence[int]
    is_special: Sequence[bool]
    spans: Sequence[tuple[int, int]]


class Tokenizer:
    """The tokenizer of a host.

    Args:
        host: The host.

    Raises:
        InputError: The folder does not have a tokenizer.
        SAEError: `tokenizers` is not installed.
        IntegrityError: `tokenizer.json` was changed, or is not a tokenizer.
    """

    def __init__(self, host: GraftedHost) -> None:
        if TOKENIZER not in host.manifest.files:
            raise InputError(
                f"{host.path} does not have a {TOKENIZER}, so it does not take text. Pass its inputs as arrays: "
                f"{', '.join(tensor.name for tensor in host.manifest.host.inputs)}."
            )
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise SAEError('Text needs tokenizers, which is not installed: pip install "saeexport[text]".') from None
        with host.open(TOKENIZER) as file:
            path, content = file.path, file.read(check=True)
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain exceptions
            raise IntegrityError(f"{path} is not a tokenizer: {error}. Copy the whole folder again.") from None
        padding = self._tokenizer.padding or {}
        self._pad = padding.get("pad_id", 0)  # a padded token is masked, so that any id will do
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()  # a text that is too long is refused by the host, and not cut silently

    def encode(self, text: Any, max_length: int | None = None) -> dict[str, Array]:
        """Return `input_ids`, `attention_mask` and `token_type_ids`, `(texts, tokens)` int64.

        Args:
            text: A text, or a list of texts, which are padded to the length of the longest.
            max_length: Largest number of tokens of a text, special tokens included; the rest of the text is cut off.
                None keeps it.

        Raises:
            InputError: `text` is not a text or a list of texts, or `max_length` is not a positive whole number, or
                leaves no room for the text.
        """
        texts = [text] if isinstance(text, str) else list(text) if isinstance(text, Sequence) else []
        if not texts or isinstance(text, bytes) or not all(isinstance(one, str) for one in texts):
            raise InputError(f"The text is {text!r}; it must be a str, or a list of one str or more.")
        encoded = self.encode_each(texts, max_length)
        if not all(each.ids for each in encoded):
            raise InputError("A text has no tokens. Leave it out.")
        return self.pad(encoded)

    def encode_each(self, texts: list[str], max_length: int | None = None) -> list[EncodedText]:
        """Return the tokens of each text, which may be none.

        Args:
            texts: The texts.
            max_length: As for `encode`.

        Raises:
            InputError: As for `encode`.
        """
        if max_length is not None:
            max_length = as_integer("max_length", max_length, 1, hint=", or None to keep every token")
        try:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=max_length is None)
        except Exception as error:  # such as a surrogate, which UTF-8 cannot hold
            raise InputError(f"The text cannot be tokenized: {error}") from None
        if max_length is not None:
            encodings = [self._shortened(encoding, max_length) for encoding in encodings]
        return [
            EncodedText(each.ids, each.type_ids, list(map(bool, each.special_tokens_mask)), each.offsets)
            for each in encodings
        ]

    def pad(self, encoded: Sequence[EncodedText]) -> dict[str, Array]:
        """Return what `encode` returns, for texts whose tokens are known. They are padded on the right."""
        shape = len(encoded), max(len(each.ids) for each in encoded)
        arrays = {INPUT_IDS: np.full(shape, self._pad, np.int64), ATTENTION_MASK: np.zeros(shape, np.int64),
                  TOKEN_TYPE_IDS: np.zeros(shape, np.int64)}  # fmt: skip
        for row, each in enumerate(encoded):
            for name, values in ((INPUT_IDS, each.ids), (ATTENTION_MASK, 1), (TOKEN_TYPE_IDS, each.type_ids)):
                arrays[name][row, : len(each.ids)] = values
        return arrays

    def _shortened(self, encoding: Any, max_length: int) -> Any:
        """Return an encoding without special tokens, cut off so that it has at most `max_length` with them."""
        special = self._tokenizer.num_special_tokens_to_add(False)
        if max_length <= special:
            raise InputError(
                f"max_length is {max_length}, and {special} of the tokens are special ones; it must be at least "
                f"{special + 1}, or None to keep every token."
            )
        encoding.truncate(max_length - special)
        return self._tokenizer.post_process(encoding)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return str(self._tokenizer.decode([int(token) for token in ids]))


def is_text(given: object) -> bool:
    """Tell whether a caller gave text: a str, or a list of them."""
    return isinstance(given, str) or (isinstance(given, (list, tuple)) and all(isinstance(one, str) for one in given))
