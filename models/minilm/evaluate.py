"""Evaluates the SAE of models/minilm-layer3 on held-out text: `python models/minilm/evaluate.py`.

Writes evaluation.json and evaluation.png, which models/README.md shows, and prints evaluation.json.
"""

import argparse
import importlib.metadata
import json
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from corpus import load_texts
from encoder import MiniLM
from tqdm import tqdm
from train import ARTIFACT, HELD_OUT, HERE

from saeexport import load

RESULT = HERE / "evaluation.json"


def main() -> None:
    """Measure, plot, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", metavar="FOLDER",
                        help="folder for the archives of text (default: models/minilm/.cache)")  # fmt: skip
    texts, model, sae = load_texts(parser.parse_args().cache)[:HELD_OUT], MiniLM(), load(ARTIFACT)
    sae.cfg.use_error_term = False
    batches = [model.activations(ids) for _, ids in tqdm(list(model.batches(texts)), desc="text", disable=None)]
    active, fired = count_features(sae, batches)
    plot(active, fired / len(active))
    result = {"texts": len(texts), **measure(sae, batches, active, fired), **embedding_cosines(sae, model, texts)}
    result["made_with"] = {
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "python": platform.python_version(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


@torch.no_grad()
def count_features(sae, batches: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return L0 of each token, and the number of tokens for which each feature is on."""
    on = [sae.encode(x) > 0 for x in batches]
    return torch.cat([block.sum(1) for block in on]).float(), torch.stack([block.sum(0) for block in on]).sum(0)


@torch.no_grad()
def measure(sae, batches: list[torch.Tensor], active: torch.Tensor, fired: torch.Tensor) -> dict[str, float]:
    """Return L0, variance explained and the share of dead features on batches of activations, `(tokens, 384)`."""
    everything = torch.cat(batches)
    variance = (everything - everything.mean(0)).square().sum()
    residual = sum((x - sae.decode(sae.encode(x))).square().sum() for x in batches)
    return {
        "tokens": len(everything),
        "l0_mean": round(active.mean().item(), 2),
        "l0_median": active.median().item(),
        "l0_p95": active.quantile(0.95).item(),
        "variance_explained": round(1 - (residual / variance).item(), 4),
        "dead_features": round((fired == 0).float().mean().item(), 4),
    }


def plot(active: torch.Tensor, frequency: torch.Tensor) -> None:
    """Draw a histogram of L0, and one of how often features are on."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.hist(active.numpy(), bins=range(0, int(active.max()) + 3, 2), color="tab:blue")
    left.axvline(active.mean().item(), color="black", linewidth=1, label=f"mean {active.mean():.1f}")
    left.set(xlabel="features on for a token (L0)", ylabel="tokens")
    left.legend(frameon=False)
    right.hist(frequency.clamp(min=1e-6).log10().numpy(), bins=60, color="tab:orange")
    right.set(xlabel="log10 of the fraction of tokens that a feature is on for", ylabel="features")
    figure.savefig(RESULT.with_suffix(".png"), dpi=110)


def embedding_cosines(sae, model: MiniLM, texts: list[str]) -> dict[str, float]:
    """Return the cosines of sentence embeddings with those of the model that reads the reconstruction instead."""
    plain = model.embeddings(texts)

    def cosines(replace) -> torch.Tensor:
        return (plain * model.embeddings(texts, replace)).sum(1)

    spliced = cosines(sae)
    mean = torch.cat([model.activations(ids) for _, ids in list(model.batches(texts))[:5]]).mean(0)
    return {
        "embedding_cosine_mean": round(spliced.mean().item(), 4),
        "embedding_cosine_p5": round(spliced.quantile(0.05).item(), 4),
        "embedding_cosine_if_every_token_were_the_mean": round(
            cosines(lambda hidden: mean.expand_as(hidden)).mean().item(), 4
        ),
    }


if __name__ == "__main__":
    main()
