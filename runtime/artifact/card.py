"""The model card of an artifact on the Hugging Face Hub: README.md, written from the manifest."""

import html
from collections.abc import Iterable, Sequence

from ..arrays.dtypes import BFLOAT16, FLOAT16, FLOAT32
from ..hub.client import import_client
from .contracts import MODEL
from .engines import STANDARD
from .manifest import INT8, MANIFEST, Fidelity, Manifest, ParityRecord, TensorSpec
from .names import HOOK_ACTS_POST, TARGET

CARD = "README.md"
LIBRARY = "saeexport"
TAGS = ("sparse-autoencoder", "interpretability", "onnx", LIBRARY)

MARK = "<!-- Written by saeexport from sae.json. Without this line, saeexport leaves this file as it is. -->"
"""The line by which a card that may be written again is told from one that somebody edited."""

DOWNLOAD = "sae"  # the folder that the examples download to
EXAMPLE_TOKENS = 10

CPP_TYPES = {FLOAT32: "float", FLOAT16: "Ort::Float16_t", BFLOAT16: "Ort::BFloat16_t"}
NODE_ARRAYS = {FLOAT32: "Float32Array", FLOAT16: "Uint16Array"}


def model_card(
    manifest: Manifest,
    repo_id: str,
    *,
    subfolder: str = "",
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Return the text of README.md: metadata, facts, hooks, the parity record, and how to run the artifact.

    Args:
        manifest: The manifest of the artifact.
        repo_id: "OWNER/NAME" of the repository on the Hub.
        subfolder: Folder of the artifact in the repository; "" for its root.
        license: Identifier of the licence on the Hub, such as "mit"; None leaves the field out.
        base_model: The language model's "OWNER/NAME" on the Hub. None takes `model_name` of the manifest if it has
            this form, and otherwise leaves the field out.
    """
    title = (subfolder or repo_id).rpartition("/")[2]
    sections = [
        f"---\n{_metadata(manifest, license, base_model)}\n---",
        MARK,
        f"# {title}",
        f"A sparse autoencoder as ONNX graphs with every hook tensor as a named output. {_claim(manifest)}",
        _facts(manifest),
        f"## Hooks\n\n{_hooks(manifest)}",
        _record(manifest),
        f"## Run it\n\n{_python(manifest, repo_id, subfolder)}",
        _node(manifest, repo_id, subfolder),
        _cpp(manifest, subfolder),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(manifest: Manifest, license: str | None, base_model: str | None) -> str:
    """Return the YAML of the Hub's metadata, see https://huggingface.co/docs/hub/model-cards."""
    name = manifest.sae.model_name or ""
    card = import_client().ModelCardData(
        license=license,
        base_model=base_model or (name if name.count("/") == 1 else None),
        library_name=LIBRARY,
        tags=list(TAGS),
    )
    text: str = card.to_yaml()
    return text.strip()


def _claim(manifest: Manifest) -> str:
    if manifest.parity:
        return "They compute what the PyTorch original computes, within the budgets below."
    return (
        f"Its {manifest.weights_dtype} weights do not compute what the float32 original computes; see the losses below."
    )


def _facts(manifest: Manifest) -> str:
    sae = manifest.sae
    width = " x ".join(map(str, sae.input_shape))
    facts = {
        "architecture": f"{sae.architecture}{''.join(f', {key} = {value}' for key, value in sae.options.items())}",
        "language model": sae.model_name,
        "hook": sae.hook_name,
        "input": f"({width})" + ("" if sae.d_out is None else f", predicts an activation of width {sae.d_out}"),
        "features": f"{sae.d_sae:,}",
        "dtype": f"{sae.dtype}, {manifest.weights_dtype} weights",
        "output": "recons + error" if sae.use_error_term else "recons",
        "runs in": _engines(manifest),
        "Neuronpedia": sae.neuronpedia_id,
        "exported from": manifest.provenance.get("source"),
        "exported by": f"{LIBRARY} {manifest.provenance.get(LIBRARY, '')}".strip(),
    }
    return _table(("", ""), [(name, _text(value)) for name, value in facts.items() if value])


def _engines(manifest: Manifest) -> str | None:
    """Return the engines that the whole SAE runs in; None if the manifest does not say it."""
    needed = manifest.graphs[MODEL].requires
    if needed is None:
        return None
    release = f" {needed.onnxruntime} or later" if needed.onnxruntime else ""
    others = f", or another engine with ONNX opset {needed.opset_import[STANDARD]}, IR version {needed.ir_version}"
    return f"ONNX Runtime{release}{others if needed.portable else ', and no other engine'}"


def _hooks(manifest: Manifest) -> str:
    outputs = manifest.graphs[MODEL].outputs
    rows = [(f"`{tensor.name}`", f"({', '.join(map(str, tensor.shape))})", tensor.dtype) for tensor in outputs]
    return (
        _table(("hook", "shape", "dtype"), rows)
        + f"\n\n`{HOOK_ACTS_POST}` holds the activations of the features; most of them are zero."
    )


def _record(manifest: Manifest) -> str:
    """Return the section about parity, or about the losses of an artifact of lower precision."""
    record = manifest.record
    inputs = "activations of the language model" if manifest.golden.source == "activations" else "random inputs"
    rows = [
        (f"`{name}`", *(f"{errors.token:.1e}" for errors in (hook.original, hook.artifact, hook.budget)))
        for name, hook in record.hooks.items()
    ]
    table = _table(("hook", "PyTorch", "artifact", "budget"), rows)
    parts = [
        f"## {'Parity' if isinstance(record, ParityRecord) else 'Losses'}",
        f"Measured at export on {record.tokens} tokens ({inputs}): the largest distance of a token from the same SAE "
        "in float64, as a fraction of its norm.",
        table,
    ]
    if manifest.fidelity is not None:
        parts.append(_features(manifest.fidelity))
    return "\n\n".join(parts)


def _features(fidelity: Fidelity) -> str:
    features = fidelity.features
    return (
        f"Compared with the float32 original, {features.kept:.2%} of the features that are on stay on, and "
        f"{features.gained:.2%} come on in addition; the mean L0 is {features.l0:.1f} instead of "
        f"{features.l0_original:.1f}."
    )


def _python(manifest: Manifest, repo_id: str, subfolder: str) -> str:
    sae = manifest.sae
    place = f'"{repo_id}"' + (f', subfolder="{subfolder}"' if subfolder else "")
    tensors = {tensor.name: tensor for tensor in manifest.graphs[MODEL].inputs}
    call = "sae.encode(x)"
    target = ""
    if TARGET in tensors:
        call = f'sae.run_with_cache(x, target=target)[1]["{HOOK_ACTS_POST}"]'
        target = f"target = {_numpy(tensors[TARGET])}  # what it predicts\n"
    dtypes = "import ml_dtypes\n" if sae.dtype == BFLOAT16 else ""
    return f"""\
In Python, without PyTorch: `pip install "{LIBRARY}[cpu,hub]"`

```python
{dtypes}import numpy as np
from runtime import SAESession

sae = SAESession.from_pretrained({place})
x = {_numpy(manifest.graphs[MODEL].inputs[0])}  # your activations
{target}print({call}.shape)
```

`runtime.verify(sae.artifact)` proves on your machine that it computes what `{MANIFEST}` records."""


def _node(manifest: Manifest, repo_id: str, subfolder: str) -> str:
    include = f' --include "{subfolder}/*"' if subfolder else ""
    download = f"Other languages read the files: `hf download {repo_id}{include} --local-dir {DOWNLOAD}`."
    dtype = manifest.sae.dtype
    if dtype not in NODE_ARRAYS:
        return f"{download}\n\nONNX Runtime for Node.js does not have {dtype} tensors."
    bits = "  // bits of float16 values" if dtype == FLOAT16 else ""
    feeds = "\n".join(
        f'const {tensor.name} = new ort.Tensor("{dtype}", new {NODE_ARRAYS[dtype]}({_count(tensor)}), '
        f"[{_join(_shape(tensor))}]);{bits}"
        for tensor in manifest.graphs[MODEL].inputs
    )
    return f"""\
{download}

In Node.js, with `npm install onnxruntime-node`:

```js
import * as ort from "onnxruntime-node";

const session = await ort.InferenceSession.create("{_file(manifest, subfolder)}");
{feeds}
const results = await session.run({{ {_join(_names(manifest))} }}, ["{HOOK_ACTS_POST}"]);
console.log(results.{HOOK_ACTS_POST}.dims);
```"""


def _cpp(manifest: Manifest, subfolder: str) -> str:
    kind = CPP_TYPES[manifest.sae.dtype]
    inputs = manifest.graphs[MODEL].inputs
    tensors = "\n".join(
        f"  std::vector<{kind}> {tensor.name}({_count(tensor)});  // your values\n"
        f"  const int64_t {tensor.name}_shape[] = {{{_join(_shape(tensor))}}};"
        for tensor in inputs
    )
    values = ",\n".join(
        f"      Ort::Value::CreateTensor<{kind}>(memory, {tensor.name}.data(), {tensor.name}.size(), "
        f"{tensor.name}_shape, {len(tensor.shape)})"
        for tensor in inputs
    )
    cpu_only = "\n\nThe graphs with int8 weights run on ONNX Runtime's CPU provider only."
    return f"""\
In C++, with [ONNX Runtime's C++ API](https://onnxruntime.ai/docs/get-started/with-cpp.html):

```cpp
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <iostream>
#include <vector>

int main() {{
  Ort::Env env;
  Ort::Session session(env, ORT_TSTR("{_file(manifest, subfolder)}"), Ort::SessionOptions());
{tensors}
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value values[] = {{
{values}}};
  const char* inputs[] = {{{_join(f'"{name}"' for name in _names(manifest))}}};
  const char* outputs[] = {{"{HOOK_ACTS_POST}"}};
  auto results = session.Run(Ort::RunOptions(), inputs, values, {len(inputs)}, outputs, 1);
  for (int64_t size : results[0].GetTensorTypeAndShapeInfo().GetShape()) std::cout << size << " ";
}}
```{cpu_only if manifest.weights_dtype == INT8 else ""}"""


def _names(manifest: Manifest) -> list[str]:
    return [tensor.name for tensor in manifest.graphs[MODEL].inputs]


def _file(manifest: Manifest, subfolder: str) -> str:
    return "/".join(filter(None, (DOWNLOAD, subfolder, manifest.graphs[MODEL].file)))


def _shape(tensor: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else EXAMPLE_TOKENS for size in tensor.shape]


def _count(tensor: TensorSpec) -> str:
    return " * ".join(map(str, _shape(tensor)))


def _numpy(tensor: TensorSpec) -> str:
    dtype = "ml_dtypes.bfloat16" if tensor.dtype == BFLOAT16 else f"np.{tensor.dtype}"
    return f"np.zeros({tuple(_shape(tensor))}, {dtype})"


def _join(parts: Iterable[object]) -> str:
    return ", ".join(map(str, parts))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _text(value: object) -> str:
    """Return text as a cell of a Markdown table that shows it as it is."""
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
