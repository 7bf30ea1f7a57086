"""Trains a small SAE on the fifth layer of all-MiniLM-L6-v2 in seconds, for `make host`, which shows two SAEs at once.

It is a top-k SAE (Gao et al. 2024, arXiv:2406.04093). It learns from the texts of examples/retrieval, 18,000 tokens of
WordNet, so that its features are coarse: the SAE of models/minilm-layer3 took a thousand times as many.
"""

import json
from pathlib import Path

import torch
from encoder import D_MODEL, MiniLM, model_folder

from saeexport import export
from saeexport.grafting.reference import capture, load_model
from saeexport.original.architectures import TopKSAE

TEXTS = Path(__file__).parents[2] / "examples" / "retrieval" / "texts.jsonl"
HOOK = "blocks.4.hook_normalized_resid_post"
D_SAE, K, STEPS, BATCH, LEARNING_RATE, SEED = 512, 24, 120, 512, 3e-3, 0


def train_second(folder: Path) -> Path:
    """Train the SAE, export it to a folder, and return the folder."""
    x = activations([text for line in TEXTS.read_text("utf-8").splitlines() for text in json.loads(line).values()])
    generator = torch.Generator().manual_seed(SEED)
    x = x[torch.randperm(len(x), generator=generator)]
    sae = TopKSAE(TopKSAE.Config(D_SAE, D_MODEL, HOOK, use_error_term=True, seed=SEED, device="cpu", k=K))
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=generator), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(x.mean(0))
    optimizer = torch.optim.Adam(sae.parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        rows = x[torch.randint(len(x), (BATCH,), generator=generator)]
        loss = (sae.decode(sae.encode(rows)) - rows).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return export(sae.eval(), folder, activations=x[:2048]).path


def activations(texts: list[str]) -> torch.Tensor:
    """Return the activations at `HOOK` of every token of some texts, `(tokens, 384)` float32."""
    encoder, model, parts = MiniLM(), load_model(model_folder()), []
    for _, ids in encoder.batches(texts):
        input_ids, mask = encoder.padded(ids)
        feeds = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
        parts.append(torch.from_numpy(capture(model, feeds, [HOOK])[HOOK])[mask.bool()])
    return torch.cat(parts)
