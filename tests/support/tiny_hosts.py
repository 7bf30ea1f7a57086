"""A small language model as an ONNX file, in the forms that hosts come in, and the same model in NumPy in float64.

It is a pre-norm transformer with root mean square norms, whose weights are random. Its values have the names of the
hooks at them, with "/" for ".".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes  # noqa: F401 - gives numpy bfloat16
import numpy as np
import onnx
import onnx.helper

VOCABULARY, D_MODEL, HEADS, D_MLP, POSITIONS = 40, 16, 4, 32, 64
D_HEAD = D_MODEL // HEADS
EPSILON = 1e-5


@dataclass
class TinyHost:
    """A small language model.

    Attributes:
        layers: Number of layers.
        causal: Whether a token sees earlier ones only.
        cache: Whether the model takes and gives keys and values.
        dtype: "float", "float16" or "bfloat16", as ONNX calls them.
        fused: Whether the sum and the second norm of a layer are one SkipSimplifiedLayerNormalization.
        opset: Version of ONNX's operators.
        output_hook: Whether the output of the first layer is an output of the model, too.
        seed: Seed of the weights.
    """

    layers: int = 3
    causal: bool = True
    cache: bool = False
    dtype: str = "float"
    fused: bool = False
    opset: int = 20
    output_hook: bool = False
    seed: int = 0
    weights: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self):
        draws = np.random.default_rng(self.seed)

        def matrix(rows, columns):
            return draws.standard_normal((rows, columns)) / np.sqrt(rows)

        self.weights = {
            "W_E": draws.standard_normal((VOCABULARY, D_MODEL)),
            "W_pos": draws.standard_normal((POSITIONS, D_MODEL)),
            "mean": np.full((D_MODEL, D_MODEL), 1 / D_MODEL),
            "W_U": matrix(D_MODEL, VOCABULARY),
            "g": draws.uniform(0.5, 1.5, D_MODEL),
        }
        for i in range(self.layers):
            for name in "QKVO":
                self.weights[f"{i}.W_{name}"] = matrix(D_MODEL, D_MODEL)
            self.weights |= {
                f"{i}.g1": draws.uniform(0.5, 1.5, D_MODEL), f"{i}.g2": draws.uniform(0.5, 1.5, D_MODEL),
                f"{i}.W_in": matrix(D_MODEL, D_MLP), f"{i}.b_in": 0.1 * draws.standard_normal(D_MLP),
                f"{i}.W_out": matrix(D_MLP, D_MODEL),
            }  # fmt: skip
        kind = np.dtype("float32" if self.dtype == "float" else self.dtype)
        self.weights = {name: array.astype(kind) for name, array in self.weights.items()}

    def write(self, path: Path, external: bool = False) -> Path:
        """Write the model to a file, with its weights in another one if `external`."""
        model = self._model()
        onnx.checker.check_model(model)
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx would append to it
        onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=100)
        return path

    def feeds(self, lengths=(7, 5, 3), seed=1) -> dict[str, np.ndarray]:
        """Return a batch that is padded on the right, with empty pasts."""
        draws, width = np.random.default_rng(seed), max(lengths)
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        ids = draws.integers(1, VOCABULARY, mask.shape) * mask
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
        if self.cache:
            empty = np.zeros((len(lengths), HEADS, 0, D_HEAD), self.weights["W_E"].dtype)
            feeds |= {f"past_key_values.{i}.{what}": empty for i in range(self.layers) for what in ("key", "value")}
        return feeds

    def run(
        self, feeds: Mapping[str, np.ndarray], replace: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None
    ) -> dict[str, np.ndarray]:
        """Return the logits and the activation at every hook, in float64, with those in `replace` replaced."""
        w = {name: array.astype(np.float64) for name, array in self.weights.items()}
        seen = {}

        def hook(name, x):
            seen[name] = x
            return replace[name](x) if replace and name in replace else x

        def norm(x, gain):
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * gain

        mask, size = feeds["attention_mask"], feeds["input_ids"].shape
        allowed = np.broadcast_to(mask[:, None, None, :] != 0, (size[0], 1, size[1], size[1]))
        if self.causal:
            allowed = allowed & np.tril(np.ones((size[1], size[1]), bool))
        x = w["W_E"][feeds["input_ids"]] + w["W_pos"][feeds["position_ids"]]
        for i in range(self.layers):
            b = f"blocks.{i}"
            x = hook(f"{b}.hook_resid_pre", x)
            n = norm(x, w[f"{i}.g1"])
            q, k, v = ((n @ w[f"{i}.W_{c}"]).reshape(*size, HEADS, D_HEAD).transpose(0, 2, 1, 3) for c in "QKV")
            scores = np.where(allowed, q @ k.transpose(0, 1, 3, 2) / np.sqrt(D_HEAD), -1e4)
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            z = (pattern / pattern.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
            z = hook(f"{b}.attn.hook_z", z).reshape(*size, D_MODEL)
            x = hook(f"{b}.hook_resid_mid", x + hook(f"{b}.hook_attn_out", z @ w[f"{i}.W_O"]))
            post = np.maximum(hook(f"{b}.mlp.hook_in", norm(x, w[f"{i}.g2"])) @ w[f"{i}.W_in"] + w[f"{i}.b_in"], 0)
            x = hook(
                f"{b}.hook_resid_post",
                x + hook(f"{b}.hook_mlp_out", hook(f"{b}.mlp.hook_post", post) @ w[f"{i}.W_out"]),
            )
        seen["logits"] = norm(x, w["g"]) @ w["W_U"]
        return seen

    def _model(self) -> onnx.ModelProto:
        nodes, constants = [], dict(self.weights)

        def op(kind, inputs, output, domain="", **attributes):
            name = f"node.{len(nodes)}"
            outputs = [output] if isinstance(output, str) else output
            nodes.append(onnx.helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))
            return outputs[0]

        def constant(name, value, dtype=None):
            constants[name] = np.array(value, dtype or self.weights["W_E"].dtype)
            return name

        def sizes(*values):
            return constant(f"sizes{values}", values, np.int64)

        constant("eps", EPSILON), constant("scale", 1 / np.sqrt(D_HEAD)), constant("far", -1e4)

        def norm(x, gain, output):
            square = op("Mul", [x, x], f"{output}.square")
            root = op("Sqrt", [op("Add", [op("MatMul", [square, "mean"], f"{output}.mean"), "eps"], f"{output}.sum")],
                      f"{output}.root")  # fmt: skip
            return op("Mul", [op("Div", [x, root], f"{output}.normalized"), gain], output)

        mask = op(
            "Unsqueeze", [op("Cast", ["attention_mask"], "mask.bool", to=onnx.TensorProto.BOOL), sizes(1, 2)], "mask"
        )
        if self.causal:  # key j is seen by query i if j <= i + the number of past keys
            total = op("Gather", [op("Shape", ["attention_mask"], "shape"), constant("one", 1, np.int64)], "total")
            new = op("Gather", [op("Shape", ["input_ids"], "shape.ids"), "one"], "new")
            zero = constant("zero", 0, np.int64)
            keys = op("Range", [zero, total, "one"], "keys")
            queries = op("Range", [op("Sub", [total, new], "past"), total, "one"], "queries")
            earlier = op("LessOrEqual", [keys, op("Unsqueeze", [queries, sizes(1)], "queries.column")], "earlier")
            mask = op("And", [mask, earlier], "mask.causal")
        embedded = [op("Gather", [table, ids], f"{table}.of.{ids}")
                    for table, ids in (("W_E", "input_ids"), ("W_pos", "position_ids"))]  # fmt: skip
        x = op("Add", embedded, "blocks/0/hook_resid_pre")
        for i in range(self.layers):
            b = f"blocks/{i}"
            n = norm(x, f"{i}.g1", f"{b}/ln1")
            heads = {}
            for c, what in (("Q", ""), ("K", "key"), ("V", "value")):
                split = op("Reshape", [op("MatMul", [n, f"{i}.W_{c}"], f"{b}/{c}.flat"), sizes(0, 0, HEADS, D_HEAD)],
                           f"{b}/{c}.split")  # fmt: skip
                heads[c] = op("Transpose", [split], f"{b}/{c}", perm=[0, 2, 1, 3])
                if self.cache and what:
                    heads[c] = op("Concat", [f"past_key_values.{i}.{what}", heads[c]], f"present.{i}.{what}", axis=2)
            keys = op("Transpose", [heads["K"]], f"{b}/K.T", perm=[0, 1, 3, 2])
            scores = op("Mul", [op("MatMul", [heads["Q"], keys], f"{b}/scores"), "scale"], f"{b}/scores.scaled")
            pattern = op("Softmax", [op("Where", [mask, scores, "far"], f"{b}/scores.masked")], f"{b}/pattern", axis=-1)
            z = op("Transpose", [op("MatMul", [pattern, heads["V"]], f"{b}/z")], f"{b}/attn/hook_z", perm=[0, 2, 1, 3])
            merged = op("Reshape", [z, sizes(0, 0, D_MODEL)], f"{b}/attn/z.merged")
            out = op("MatMul", [merged, f"{i}.W_O"], f"{b}/hook_attn_out")
            if self.fused:
                n, x = f"{b}/ln2", f"{b}/hook_resid_mid"
                op("SkipSimplifiedLayerNormalization", [f"blocks/{i}/hook_resid_pre", out, f"{i}.g2"], [n, "", "", x],
                   "com.microsoft", epsilon=EPSILON)  # fmt: skip
            else:
                x = op("Add", [x, out], f"{b}/hook_resid_mid")
                n = norm(x, f"{i}.g2", f"{b}/ln2")
            pre = op("Add", [op("MatMul", [n, f"{i}.W_in"], f"{b}/mlp/product"), f"{i}.b_in"], f"{b}/mlp/hook_pre")
            out = op("MatMul", [op("Relu", [pre], f"{b}/mlp/hook_post"), f"{i}.W_out"], f"{b}/hook_mlp_out")
            x = op(
                "Add", [x, out], f"{b}/hook_resid_post" if i == self.layers - 1 else f"blocks/{i + 1}/hook_resid_pre"
            )
        op("MatMul", [norm(x, "g", "ln_final"), "W_U"], "logits")
        floats = onnx.helper.np_dtype_to_tensor_dtype(self.weights["W_E"].dtype)

        def info(name, kind, *shape):
            return onnx.helper.make_tensor_value_info(name, kind, shape)

        integer, past = onnx.TensorProto.INT64, []
        if self.cache:
            past = [f"{i}.{what}" for i in range(self.layers) for what in ("key", "value")]
        inputs = [
            info("input_ids", integer, "batch", "seq"), info("attention_mask", integer, "batch", "total"),
            info("position_ids", integer, "batch", "seq"),
            *(info(f"past_key_values.{name}", floats, "batch", HEADS, "past", D_HEAD) for name in past),
        ]  # fmt: skip
        outputs = [info("logits", floats, "batch", "seq", VOCABULARY)]
        if self.output_hook:
            outputs.append(info("blocks/1/hook_resid_pre", floats, "batch", "seq", D_MODEL))
        outputs += [info(f"present.{name}", floats, "batch", HEADS, "total", D_HEAD) for name in past]
        tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = onnx.helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
        opsets = [onnx.helper.make_opsetid("", self.opset), onnx.helper.make_opsetid("com.microsoft", 1)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tiny")


def value_at(host: TinyHost, hook: str) -> str:
    """Return the name of the value at a hook. The output of a layer is the next layer's input."""
    layer = int(hook.split(".")[1])
    if hook.endswith("hook_resid_post") and layer < host.layers - 1:
        return f"blocks/{layer + 1}/hook_resid_pre"
    if hook.endswith("mlp.hook_in"):
        return f"blocks/{layer}/ln2"
    return hook.replace(".", "/")
