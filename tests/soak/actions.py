"""The actions of a soak, by kind. Each takes a random generator and a folder for files, and is watched by a worker."""

import shutil
import threading

import numpy as np

from runtime import Ablate, Scale, verify
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_OUTPUT
from runtime.errors import ArtifactError, SAEError
from saeexport import load
from tests.soak.calls import call, compare, draw_case, open_session
from tests.soak.outcomes import Wrong
from tests.support.checkpoints import write_checkpoints
from tests.support.mutations import mutate_folder

THREADS = 4
CALLS = 6


def actions_on(subjects, checkpoints=None):
    """Return the actions of a soak.

    Args:
        subjects: SAEs with their artifacts.
        checkpoints: Folder where checkpoints are written at once; None leaves them out.
    """

    paths = {} if checkpoints is None else write_checkpoints(checkpoints)

    def calls(rng, folder):
        """Open a session and call it."""
        subject = rng.choice(subjects)
        with accepted(), open_session(subject, rng) as session:
            for _ in range(rng.randrange(1, CALLS)):
                call(session, subject, rng)

    def sessions(rng, folder):
        """Open several sessions, call them in turns, and close them in any order; a closed one refuses."""
        with accepted():
            opened = [(open_session(subject, rng), subject) for subject in rng.choices(subjects, k=rng.randrange(1, 5))]
            for _ in range(CALLS):
                call(*rng.choice(opened), rng)
            rng.shuffle(opened)
            for session, _ in opened:
                session.close()
        session, subject = rng.choice(opened)
        try:
            session(draw_case(subject, rng).x)
        except SAEError:
            return
        raise Wrong("a session that is closed answers")

    def threads(rng, folder):
        """Call one session from several threads, one of which closes its own session meanwhile."""
        subject, failures = rng.choice(subjects), []

        def work(session, seed):
            try:
                for _ in range(CALLS):
                    call(session, subject, type(rng)(seed))
            except BaseException as error:
                failures.append(error)

        with accepted(), open_session(subject, rng) as session:
            running = [threading.Thread(target=work, args=(session, rng.random())) for _ in range(THREADS)]
            for thread in running:
                thread.start()
            with open_session(subject, rng) as other:
                call(other, subject, rng)
            for thread in running:
                thread.join()
            for failure in failures:
                raise failure

    def artifact(rng, folder):
        """Use an artifact in which one file was changed; what it computes in spite of that is right."""
        subject = rng.choice(subjects)
        copy = type(subject)(subject.sae, shutil.copytree(subject.path, folder / "sae"))
        mutate_folder(copy.path, rng)
        with open_session(copy, rng, check_integrity=True) as session:
            for _ in range(CALLS):
                call(session, copy, rng)
        if (report := verify(copy.path, "cpu")).failures:
            raise ArtifactError(report.failures[0])

    def hostile_artifact(rng, folder):
        """Use an artifact in which one file and its checksum were changed; its numbers may be any."""
        path = shutil.copytree(rng.choice(subjects).path, folder / "sae")
        mutate_folder(path, rng, recorded=True)
        verify(path, "cpu").raise_for_failures()

    def checkpoint(rng, folder):
        """Load a checkpoint in which one file was changed."""
        name = rng.choice(sorted(paths))
        copy = shutil.copytree(checkpoints / name, folder / name)
        mutate_folder(copy, rng)
        load(copy / paths[name])

    def inputs(rng, folder):
        """Give a session an input that is unusual or not acceptable."""
        subject = rng.choice(subjects)
        with open_session(subject, rng) as session:
            rng.choice(INPUTS)(session, subject, rng)

    kinds = (calls, sessions, threads, artifact, hostile_artifact, inputs, *([checkpoint] if paths else []))
    return {kind.__name__.replace("_", " "): kind for kind in kinds}


class accepted:  # noqa: N801
    """A block whose calls are all valid: a refusal is wrong."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, SAEError):
            raise Wrong(f"a valid call is refused: {error}") from error


def unusual_layout(session, subject, rng):
    """The same numbers in another memory layout or a dtype that holds them are the same input."""
    case = draw_case(subject, rng)
    way = rng.choice([
        np.asfortranarray, lambda x: np.flip(np.flip(x, -1).copy(), -1), lambda x: x.tolist() if x.size else x,
        lambda x: np.repeat(x, 2, -1)[..., ::2], lambda x: x.astype(">f4"), frozen,
    ])  # fmt: skip
    output = session(way(case.x), case.target)
    compare("output", output, case.hooks[HOOK_OUTPUT], case.certain)


def frozen(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def not_finite(session, subject, rng):
    """NaN and infinity in one token change no other token."""
    case = draw_case(subject, rng)
    if case.x.ndim < 2 or not len(case.x):
        return
    x = case.x.copy()
    x[0] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    _, cache = session.run_with_cache(x, target=case.target)
    for name, tensor in cache.items():
        compare(name, tensor[1:], case.hooks[name][1:], case.certain[1:])


def other_array(session, subject, rng):
    d_in = subject.sae.cfg.d_in
    recursive: list = []
    recursive.append(recursive)
    session(rng.choice([
        None, "text", b"bytes", object(), 3, [], [[]], [[1.0], [1.0, 2.0]], recursive, {"x": 1}, {1, 2},
        np.zeros((3, d_in + 1), np.float32), np.zeros(0, np.float32), np.zeros((3, d_in), complex),
        np.zeros((3, d_in), bool), np.zeros((3, d_in), object), np.full((3, d_in), "1"), np.zeros((3, d_in), "M8[s]"),
        np.zeros((3, d_in), "f4,f4"), np.zeros((1,) * 40 + (d_in,), np.float32) if rng.random() < 0.1 else ...,
        np.ma.masked_array(np.zeros((3, d_in), np.float32), mask=True), (x for x in range(d_in)),
    ]))  # fmt: skip


def other_k(session, subject, rng):
    k = rng.choice(
        [0, -1, 2.5, None, "3", 10**30, float("nan"), [1], np.array([1, 2]), True, subject.sae.cfg.d_sae + 1]
    )
    session.top_features(draw_case(subject, rng).x, k)


def other_names(session, subject, rng):
    case = draw_case(subject, rng)
    names = rng.choice(
        [None, 7, "hook_mlp_out", ["hook_mlp_out"], [None], [7], [HOOK_ACTS_POST, ["x"]], {"a": 1}, [[]]]
    )
    rng.choice([
        lambda: session.compute(case.x, names, case.target),
        lambda: session.run_with_cache(case.x, names, target=case.target),
        lambda: session.explain(names),
        lambda: session.run_graph(names, {"input": case.x}),
        lambda: session.run_graph("model", {"input": case.x}, names),
        lambda: session.run_graph("model", names),
    ])()  # fmt: skip


def other_edits(session, subject, rng):
    d_sae = subject.sae.cfg.d_sae
    edits = rng.choice([
        None, 7, [], {d_sae: Ablate()}, {-1: Ablate()}, {"0": Ablate()}, {0: 1.0}, {0: Scale(float("nan"))},
        {0: Scale("x")}, {0: Scale([1.0, 2.0, 3.0, 4.0, 5.0])}, {0: Scale(1e300)}, {None: Ablate()}, {0.5: Ablate()},
        {2**70: Ablate()}, {0: Scale(None)}, {0: Scale([[1.0], [1.0, 2.0]])}, {0: Ablate},
    ])  # fmt: skip
    case = draw_case(subject, rng)
    session.steer(case.x, edits, target=case.target)


def other_hooks(session, subject, rng):
    hooks = rng.choice([
        None, 7, "hook", [1], [(HOOK_ACTS_POST,)], [(1, 2)], [(HOOK_ACTS_POST, None)], [("hook_mlp_out", print)],
        [(HOOK_ACTS_POST, lambda tensor, hook: tensor[..., :-1])], [(HOOK_ACTS_POST, lambda tensor, hook: "text")],
        [(HOOK_ACTS_POST, lambda tensor, hook: [[1.0], [1.0, 2.0]])], [(lambda name: False, print)],
        [(HOOK_ACTS_POST, lambda tensor, hook: 1j * tensor)], [(HOOK_ACTS_POST, 1, 2)],
    ])  # fmt: skip
    case = draw_case(subject, rng)
    session.run_with_hooks(case.x, hooks, target=case.target)


INPUTS = (unusual_layout, not_finite, other_array, other_k, other_names, other_edits, other_hooks)
