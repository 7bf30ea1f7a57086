"""Trains a HookedSAE on the third layer of all-MiniLM-L6-v2 and exports it: `python models/minilm/train.py`.

Takes about 40 minutes on two cores. corpus.py lists the text and its licences. The recipe:

1. The first quarter trains a top-k SAE (Gao et al. 2024, arXiv:2406.04093), which finds directions quickly.
2. After that, there is no mask. A penalty `sum((acts + 0.1)^p - 0.1^p)` keeps the features sparse, while p falls from
   1 to 0.5 (p-annealing, Karvonen et al. 2024, arXiv:2408.00113, which shrinks activations less than L1). The weight
   of the penalty is adjusted to reach the wanted L0.

Training computes products in bfloat16, so that the last digits of the weights depend on the processor.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from corpus import load_texts
from encoder import D_MODEL, LAYER, MiniLM
from tqdm import tqdm

from runtime import Labels, read_artifact
from runtime.arrays.tensor import Array
from saeexport import HookedSAE, HookedSAEConfig, export, load

HERE = Path(__file__).parent
ARTIFACT = HERE.parent / "minilm-layer3"
HELD_OUT = 4000  # texts, about 114,000 tokens

D_SAE, L0 = 3072, 45
STEPS, BATCH, LEARNING_RATE, SEED = 12_000, 2048, 2e-3, 0
TOPK_UNTIL, ANNEALED_AT, LAST_POWER, SOFTENING = 0.25, 0.60, 0.5, 0.1


def cached_activations(model: MiniLM, texts: list[str], path: Path) -> Array:
    """Return the activations of all tokens of `texts`, `(tokens, 384)` float16; the file `path` caches them."""
    if not path.exists():
        batches = list(model.batches(texts))
        total = sum(len(ids) for _, batch in batches for ids in batch)
        partial = path.with_suffix(".partial.npy")
        rows = np.lib.format.open_memmap(partial, "w+", np.float16, (total, D_MODEL))
        done = 0
        for _, ids in tqdm(batches, desc=path.stem, unit="batch", disable=None):
            block = model.activations(ids).numpy()
            rows[done : done + len(block)] = block
            done += len(block)
        rows.flush()
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def train(activations: Array) -> HookedSAE:
    """Return a ReLU SAE with about `L0` features on per token of `activations`, `(tokens, 384)`."""
    rng = np.random.default_rng(SEED)
    cfg = HookedSAEConfig(
        d_sae=D_SAE,
        d_in=D_MODEL,
        hook_name=f"blocks.{LAYER}.hook_normalized_resid_post",
        use_error_term=True,
        seed=SEED,
    )
    sae = HookedSAE(cfg)
    sample = torch.from_numpy(activations[np.sort(rng.choice(len(activations), 50_000, replace=False))]).float()
    variance = (sample - sample.mean(0)).square().sum(1).mean()
    with torch.no_grad():
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, D_MODEL, generator=seeded()), dim=1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(sample.mean(0))

    optimizer = torch.optim.Adam(sae.parameters())
    log_weight, batches = math.log(0.02), shuffled(len(activations), rng)
    for step in (progress := tqdm(range(STEPS), desc="training", unit="step", disable=None)):
        done = step / STEPS
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / 200, (1 - done) / 0.4)
        x = torch.from_numpy(activations[next(batches)]).float()
        acts, recons = forward(sae, x, topk=done < TOPK_UNTIL)
        loss = (x - recons).square().sum(1).mean() / variance
        if done >= TOPK_UNTIL:
            power = 1 - (1 - LAST_POWER) * min(1, (done - 0.1) / (ANNEALED_AT - 0.1))
            penalty = ((acts.float() + SOFTENING) ** power - SOFTENING**power).sum(1).mean()
            ramp = min(1, (done - TOPK_UNTIL) * STEPS / 500)
            loss = loss + math.exp(log_weight) * ramp * penalty
            active = (acts > 0).sum(1).float().mean().item()
            log_weight += 0.01 * max(-1, min(1, math.log((active + 1) / L0)))
            progress.set_postfix(l0=f"{active:.0f}", refresh=False)
        optimizer.zero_grad()
        loss.backward()
        step_on_sphere(sae.W_dec, optimizer)
    return sae


def forward(sae: HookedSAE, x: torch.Tensor, topk: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return activations and reconstruction; bfloat16 makes the products five times faster than float32."""
    low = torch.bfloat16
    acts = torch.relu((x - sae.b_dec).to(low) @ sae.W_enc.to(low) + sae.b_enc.to(low))
    if topk:
        acts = acts * (acts >= acts.topk(L0, dim=1).values[:, -1:])
    return acts, (acts @ sae.W_dec.to(low)).float() + sae.b_dec


def step_on_sphere(W_dec: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    """Take a step that keeps every decoder row at length 1, so that scaling cannot evade the penalty."""
    with torch.no_grad():
        assert W_dec.grad is not None
        W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
        optimizer.step()
        W_dec /= W_dec.norm(dim=1, keepdim=True)


def shuffled(count: int, rng: np.random.Generator):
    """Yield batches of row indices without end, each epoch in another order; sorted in a batch, to read faster."""
    while True:
        order = rng.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield np.sort(order[start : start + BATCH])


def seeded() -> torch.Generator:
    """Return a generator with the seed."""
    return torch.Generator().manual_seed(SEED)


def main() -> None:
    """Download the text, compute activations, train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", metavar="FOLDER",
                        help="folder for archives and activations, 4 GB (default: models/minilm/.cache)")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="export the existing weights again instead of training")
    options = parser.parse_args()
    texts, model = load_texts(options.cache), MiniLM()
    held_out, rest = texts[:HELD_OUT], texts[HELD_OUT:]
    if options.again:
        sae, labels = load(ARTIFACT), read_artifact(ARTIFACT).read_labels()
    else:
        sae, labels = train(cached_activations(model, rest, options.cache / "train.npy")), None
    export_sae(sae, model, held_out, labels)


def export_sae(sae: HookedSAE, model: MiniLM, held_out: list[str], labels: Labels | None) -> None:
    """Export the SAE, and prove it on a quarter of the held-out texts."""
    real = torch.cat([model.activations(ids) for _, ids in list(model.batches(held_out))[::4]])
    artifact = export(sae, ARTIFACT, activations=real, labels=labels, overwrite=ARTIFACT.exists())
    print(f"The SAE was exported to {artifact.path}.")


if __name__ == "__main__":
    main()
