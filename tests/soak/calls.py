"""Calls of a session with random methods, inputs and edits, compared with the PyTorch original."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime import Ablate, Add, Clamp, SAESession, Scale
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_OUTPUT, HOOK_RECONS
from runtime.session.interventions import Intervention
from saeexport.original.running import all_hooks, torch_hook
from tests.soak.outcomes import Wrong
from tests.support.zoo import takes_target

TOLERANCE = 1e-5
"""Largest difference to PyTorch, relative to the largest value. Rounding makes about 1e-6 in SAEs as small as these."""

NUDGE = 1e-5
"""Relative change of an input that finds the tokens where rounding may switch a feature; those are not compared."""

ONE_AT_A_TIME = threading.Lock()
"""The original is not made for several threads: the functions at its hooks belong to the module."""


@dataclass(frozen=True)
class Subject:
    """An SAE and the artifact that was exported from it."""

    sae: object
    path: Path


@dataclass
class Case:
    """An input, what the original makes of it, and the tokens that can be compared."""

    x: object
    target: object
    hooks: dict[str, object]
    certain: object


def draw_case(subject, rng, intervention=None, hooks=()):
    """Return a random input with the values of the original, whose hooks have the leading dimensions of the input."""
    cfg = subject.sae.cfg
    shape = rng.choice([(), (1,), (7,), (0,), (2, 3), (64,), (rng.randrange(200),), (2048,)])
    draws = np.random.default_rng(rng.randrange(2**32))
    flat = draws.standard_normal((int(np.prod(shape)), cfg.d_in)).astype(np.float32)
    target = draws.standard_normal((len(flat), cfg.d_out)).astype(np.float32) if takes_target(subject.sae) else None
    nudged = flat * (1 + NUDGE * draws.choice([-1, 1], flat.shape).astype(np.float32))
    functions = [*hooks, *([] if intervention is None else [(HOOK_ACTS_POST, torch_hook(intervention))])]
    with ONE_AT_A_TIME:
        tensors = all_hooks(subject.sae, flat, target, *functions)
        again = all_hooks(subject.sae, nudged, target, *functions)[HOOK_ACTS_POST]
    certain = (abs(again - tensors[HOOK_ACTS_POST]) < 1e-3).all(-1)
    given = {name: tensor.reshape(*shape, *tensor.shape[1:]) for name, tensor in tensors.items()}
    shaped = None if target is None else target.reshape(*shape, cfg.d_out)
    return Case(flat.reshape(*shape, cfg.d_in), shaped, given, certain.reshape(shape))


def compare(name, found, expected, certain):
    """Raise `Wrong` if an array differs from the original's."""
    found = np.asarray(found)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise Wrong(f"{name} is {found.shape} {found.dtype}, not {expected.shape} {expected.dtype}")
    difference = abs(found - expected)[certain]
    largest = TOLERANCE * max(1.0, float(abs(expected).max(initial=0)))
    if difference.size and not (difference <= largest).all():
        raise Wrong(f"{name} differs by {np.nanmax(difference):.2e} from the original")


def call(session, subject, rng):
    """Call a random method of a session and compare the result.

    Raises:
        Wrong: A result differs from the original, or has another shape or dtype.
    """
    rng.choice(METHODS)(session, subject, rng)


def call_forward(session, subject, rng):
    case = draw_case(subject, rng)
    compare("sae(x)", session(case.x, case.target), case.hooks[HOOK_OUTPUT], case.certain)


def call_run_with_cache(session, subject, rng):
    case = draw_case(subject, rng)
    fired = session.cfg.fired_hooks
    some = rng.sample(fired, rng.randrange(len(fired) + 1))
    names_filter, names = rng.choice(
        [(None, fired), (some, some), (fired[2], fired[2:3]), (lambda name: name in some, some)]
    )
    output, cache = session.run_with_cache(case.x, names_filter, target=case.target)
    compare("output", output, case.hooks[HOOK_OUTPUT], case.certain)
    if list(cache) != [name for name in fired if name in names]:
        raise Wrong(f"run_with_cache returns {list(cache)}")
    for name, tensor in cache.items():
        compare(name, tensor, case.hooks[name], case.certain)


def call_compute(session, subject, rng):
    case = draw_case(subject, rng)
    names = rng.sample(session.hook_names, rng.randrange(1, len(session.hook_names) + 1))
    for name, tensor in session.compute(case.x, names, case.target).items():
        compare(name, tensor, case.hooks[name], case.certain)


def call_encode_and_decode(session, subject, rng):
    case = draw_case(subject, rng)
    compare("encode", session.encode(case.x), case.hooks[HOOK_ACTS_POST], case.certain)
    recons = session.decode(case.hooks[HOOK_ACTS_POST], case.x)
    compare("decode", recons, case.hooks[HOOK_RECONS], np.ones_like(case.certain))


def call_top_features(session, subject, rng):
    case = draw_case(subject, rng)
    acts = case.hooks[HOOK_ACTS_POST]
    k = rng.randrange(1, acts.shape[-1] + 1)
    top = session.top_features(case.x, k)
    kept = np.take_along_axis(acts, top.indices % acts.shape[-1], -1)  # whatever an index says where nothing is on
    values = np.where(top.values == 0, 0, kept).astype(acts.dtype)
    compare("top_features", top.values, values, case.certain)
    strongest = -np.sort(-abs(acts), axis=-1)[..., :k]
    compare("top_features", abs(top.values), strongest, case.certain)
    if ((top.l0 != (acts != 0).sum(-1)) & case.certain).any():
        raise Wrong("top_features has another l0 than the original")


def call_steer(session, subject, rng):
    d_sae = subject.sae.cfg.d_sae
    values = [Ablate(), Clamp(rng.uniform(-3, 3)), Scale(rng.uniform(-2, 2)), Add(rng.uniform(-2, 2))]
    edits = {feature: rng.choice(values) for feature in rng.sample(range(d_sae), rng.randrange(5))}
    case = draw_case(subject, rng, Intervention.of(edits))
    if rng.random() < 0.5:
        output, cache = session.steer(case.x, edits, target=case.target)
    else:
        with session.steering(edits):
            compare("encode", session.encode(case.x), case.hooks[HOOK_ACTS_POST], case.certain)
            output, cache = session.run_with_cache(case.x, target=case.target)
    for name, tensor in {**cache, HOOK_OUTPUT: output}.items():
        compare(f"steered {name}", tensor, case.hooks[name], case.certain)


def call_run_with_hooks(session, subject, rng):
    hook, factor = rng.choice([HOOK_ACTS_POST, HOOK_RECONS]), rng.uniform(-2, 2)

    def scale(tensor, hook):
        return tensor * factor if hasattr(tensor, "requires_grad") else tensor * np.float32(factor)

    case = draw_case(subject, rng, hooks=[(hook, scale)])
    compare("hooked output", session.run_with_hooks(case.x, [(hook, scale)], target=case.target),
            case.hooks[HOOK_OUTPUT], case.certain)  # fmt: skip


def read_weights(session, subject, rng):
    name = rng.choice(["W_enc", "W_dec", "b_dec"])
    if not np.array_equal(getattr(session, name), getattr(subject.sae, name).detach().numpy()):
        raise Wrong(f"{name} differs from the original's")
    session.explain([HOOK_INPUT, HOOK_ACTS_PRE], rng.randrange(1, 5000))
    repr(session)


METHODS = (
    call_forward,
    call_run_with_cache,
    call_compute,
    call_encode_and_decode,
    call_top_features,
    call_steer,
    call_run_with_hooks,
    read_weights,
)


def open_session(subject, rng, **options):
    """Return a session with random options, apart from those that are given."""
    drawn = {
        "graphs": rng.choice(["auto", "cpu", "portable"]),
        "threads": rng.choice([None, 1, 2]),
        "arena": rng.random() < 0.7,
        "block_tokens": rng.choice([None, None, 1, 50]),
        "check_integrity": rng.random() < 0.8,
    }
    return SAESession(subject.path, "cpu", **{**drawn, **options})
