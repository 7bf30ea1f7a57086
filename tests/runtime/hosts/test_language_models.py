"""A decoder of transformers, exported and grafted, generates what it generates in PyTorch, also while it is steered."""

import numpy as np
import pytest
import torch
import transformers

from runtime import Clamp, HostSession, Intervention
from saeexport import export, graft, load
from saeexport.grafting.reference import load_model, run_spliced
from tests.support.explaining import explaining_sae
from tests.support.language_models import WIDTH, save
from tests.support.samples import normal

HOOK = "blocks.1.hook_resid_post"
PROMPT = np.array([[5, 11, 3, 7]])
EDIT = {3: Clamp(20.0)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    save("llama", folder / "model")
    export(explaining_sae(WIDTH, HOOK), folder / "sae", activations=torch.from_numpy(normal(64, WIDTH)))
    graft(f"hf:{folder / 'model'}", {HOOK: folder / "sae"}, folder / "host")
    return folder


@pytest.fixture
def host(folder):
    with HostSession(folder / "host", "cpu", threads=1) as host:
        yield host


def test_it_generates_what_transformers_generates(folder, host):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(torch.from_numpy(PROMPT), attention_mask=torch.ones(1, 4, dtype=torch.int64), **options)
    assert host.generate(PROMPT, 12).tolist() == expected.tolist()


def test_it_generates_what_the_steered_model_generates(folder, host):
    model, sae = load_model(folder / "model"), load(folder / "sae")
    ids = PROMPT
    for _ in range(6):
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        logits = run_spliced(model, feeds, {HOOK: sae}, edits={HOOK: Intervention.of(EDIT)})["logits"]
        ids = np.concatenate((ids, logits[:, -1:].argmax(-1)), axis=1)
    assert host.generate(PROMPT, 6, edits={HOOK: EDIT}, use_error_term=False).tolist() == ids.tolist()
    assert host.generate(PROMPT, 6).tolist() != ids.tolist()


def test_it_takes_text(host):
    ids = host.tokenize("hello")["input_ids"]
    assert host("hello").logits.shape == (1, ids.shape[1], 500)
    assert host.generate("hello", 3).startswith(host.tokenizer.decode(ids[0].tolist()))
