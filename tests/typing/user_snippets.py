"""Code as users write it, for `mypy --strict`. The functions are never run."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtime import (
    Ablate,
    Clamp,
    FeatureWatch,
    HookPoint,
    HostOutput,
    HostSession,
    Intervention,
    Manifest,
    Report,
    SAEConfig,
    SAESession,
    Scale,
    Tensor,
    TopFeatures,
    Verdict,
    read_artifact,
    verify,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type
else:

    def assert_type(value, kind):
        return value


Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


def arithmetic(sae: SAESession, x: Floats) -> float:
    output = sae(x)
    assert_type(output, Array)
    residual = (x - output) / np.linalg.norm(x, axis=-1, keepdims=True)
    assert_type(output.shape, tuple[Any, ...])
    return float(output.mean() + residual.max() + sae.encode(x).sum())


def dimensions(sae: SAESession, x: Floats) -> int:
    return len(sae.compute(x, ["hook_sae_acts_pre"])["hook_sae_acts_pre"].shape) + sae.encode(x).ndim


def cached(sae: SAESession, x: Floats, more: bool) -> float:
    output, cache = sae.run_with_cache(x)
    assert_type(output, Array)
    assert_type(cache, dict[str, Array])
    largest = cache["hook_sae_acts_post"].max() + output.min()
    nothing, acts = sae.run_with_cache(x, names_filter="hook_sae_acts_post", return_output=False)
    assert_type(nothing, None)
    perhaps, _ = sae.run_with_cache(x, lambda name: name.endswith("_post"), return_output=more)
    assert_type(perhaps, Array | Tensor | None)
    return float(largest + (acts["hook_sae_acts_post"] > 0).mean())


def features(sae: SAESession, x: Floats) -> list[int]:
    found = sae.top_features(x, 5)
    assert_type(found, TopFeatures[Array])
    indices, values, l0 = found
    assert_type(values, Array)
    assert found.values.max() > 0 or l0.mean() < 5
    assert found.lossless.all()
    assert found.dense(sae.cfg.d_sae).shape == sae.encode(x).shape
    strongest: list[int] = indices[..., 0].ravel().tolist()
    return strongest


def watched(sae: SAESession, x: Floats) -> Array:
    guard: FeatureWatch = sae.watch([3, 1])
    assert_type(guard(x), Array)
    assert_type(guard.ids, Array)
    acts = sae.compute_features(x, np.array([3, 1]))
    assert_type(acts, Array)
    return acts + guard(x)


def directions(sae: SAESession, x: Floats, j: int) -> Array:
    assert_type(sae.W_dec, Array)
    direction: Array = sae.W_dec[j]
    cosines: Array = (x - sae.b_dec) @ direction / np.linalg.norm(direction)
    return cosines + float(sae.W_enc[:, j] @ direction + sae.b_enc[j])


def steered(sae: SAESession, x: Floats) -> Array:
    output, cache = sae.steer(x, {123: Ablate(), 77: Clamp(5.0)})
    assert_type(output, Array)
    none, _ = sae.steer(x, Intervention([1], 0.0, 1.0), "hook_sae_acts_post", return_output=False)
    assert_type(none, None)
    with sae.steering({3: Clamp(np.ones(4))}) as same:
        assert_type(same, SAESession)
        return same.decode(same.encode(x)) + cache["hook_sae_recons"] + output


def hooked(sae: SAESession, x: Floats) -> float:
    def cap(acts: Floats, hook: HookPoint) -> Floats:
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1
        return acts.clip(0, 5)

    sae.add_hook("hook_sae_acts_post", cap)
    with sae.hooks([(lambda name: "acts" in name, cap)], reset_hooks_end=False):
        sae(x)
    output = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_recons", cap)], clear_contexts=True)
    sae.reset_hooks()
    calls: int = sae.hook_dict["hook_sae_acts_post"].ctx["calls"]
    return float(output.mean()) + calls


def on_a_device(path: str, x: Any, card: Tensor) -> tuple[int, ...]:
    with SAESession(path, "cuda") as sae:
        assert_type(sae(card), Array | Tensor)
        _, cache = sae.run_with_cache(card)
        assert_type(cache, dict[str, Array | Tensor])
        assert_type(sae.top_features(card, 3), TopFeatures[Array | Tensor])
        return sae.encode(card).shape + sae.compute(card, ["hook_sae_output"])["hook_sae_output"].shape


def reports(path: str) -> list[Verdict]:
    report: Report = verify(path)
    manifest: Manifest = read_artifact(path).manifest
    config: SAEConfig = manifest.sae
    assert config.d_sae > len(report.failures)
    return report.verdicts


def grafted(path: str, ids: npt.NDArray[np.int64]) -> str:
    with HostSession(path, "cpu", threads=1) as host:
        output = host({"input_ids": ids})
        assert_type(output, HostOutput)
        assert_type(output.logits, Array)
        next_token: int = int(output["logits"][0, -1].argmax())
        hook = host.hook_names[0]
        output, cache = host.run_with_cache(["one text", "another"], lambda name: name.endswith("acts_post"))
        assert_type(cache, dict[str, Array])
        nothing, _ = host.run_with_cache("a text", return_output=False)
        assert_type(nothing, None)
        assert_type(host.run_with_saes("a text", saes=hook, use_error_term=False), HostOutput)
        with host.steering({hook: {7: Scale(8.0), 9: Ablate()}}) as same:
            assert_type(same, HostSession)
            assert_type(same.encode("a text"), dict[str, Array])
        assert_type(host.top_features("a text", hook, k=5), TopFeatures[Array])
        assert_type(host.sae(hook), SAESession)
        assert_type(host.generate(ids, 5, edits={hook: Intervention([1], 0.0, 1.0)}), Array)
        text = host.generate("a text", 5, edits={hook: {7: Clamp(5.0)}}, do_sample=True, seed=next_token)
        assert_type(text, str)
        return text


def hooked_host(host: HostSession, ids: npt.NDArray[np.int64]) -> Array:
    def halve(x: Floats, hook: HookPoint) -> Floats:
        return (x / 2).astype(np.float32)

    return host.run_with_hooks_with_saes({"input_ids": ids}, [(host.hook_names[0], halve)])["logits"]
