"""Says what to do about a config and tensors that do not make an SAE together."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import SimpleNamespace

from ..original.architectures import ARCHITECTURES

Shapes = Mapping[str, tuple[int, ...]]

OTHER_PARAMETERS = "If the SAE computes with other parameters, it is an architecture of its own: make it a subclass."


def advise_on_shapes(found: Shapes, expected: Shapes, d_in: int, d_sae: int) -> str:
    """Return sentences on tensors that are not those of an architecture.

    Args:
        found: Shapes of the tensors, by name.
        expected: Shapes of the parameters of the architecture, by name.
        d_in: Width of the activations, as the config has it.
        d_sae: Number of features, as the config has it.
    """
    if others := _architectures_with(found, d_in, d_sae):
        return f"These are the tensors of {_either(others)}: correct the architecture of the config."
    advice = []
    common = [name for name in sorted(expected) if name in found and found[name] != expected[name]]
    transposed = [name for name in common if found[name] == expected[name][::-1]]
    if transposed:
        advice.append(f"Transpose {', '.join(transposed)}.")
    single = [name for name in common if len(expected[name]) == 1 and found[name] in ((), (1,))]
    if single:
        advice.append(f"If the value of {', '.join(single)} is that of all features, repeat it.")
    if len(transposed) + len(single) < len(common):
        advice.append("If the tensors are right, correct the sizes in the config.")
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing and extra:
        advice.append(f"Rename the tensors, if they are those that are missing: {', '.join(missing)}.")
        if logarithms := [name for name in extra if "log" in name.lower()]:
            advice.append(f"If {', '.join(logarithms)} holds logarithms, store torch.exp of it.")
    elif missing:
        biases = [name for name in missing if name.startswith("b_")]
        advice.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
        if biases:
            advice.append(f"If the SAE has no {' and no '.join(biases)}, add zeros.")
    elif extra:
        advice.append(f"Remove {', '.join(extra)}, if the SAE does not compute with it. {OTHER_PARAMETERS}")
    return " ".join(advice)


def advise_on_keys(config: Iterable[str], architecture: str) -> str:
    """Return a sentence on a config that has a key of other architectures; "" if it does not.

    Args:
        config: Keys of the config.
        architecture: Name of the architecture that the config was read as.
    """
    keys = set(config)
    known = {name: {field.name for field in fields(kind.Config)} for name, kind in ARCHITECTURES.items()}
    fitting = {name: len(names) for name, names in known.items() if keys <= names}
    if architecture in fitting or not fitting:
        return ""
    others = [name for name, size in fitting.items() if size == min(fitting.values())]
    extra = ", ".join(sorted(keys - known[architecture]))
    return f"{_either(others)} would have {extra}: give the architecture, the key 'architecture', in the config."


def advise_on_architecture(name: str) -> str:
    """Return a sentence on an architecture that is not known by this name; "" if there is nothing to say of it."""
    if "batch" in name.lower() or "matryoshka" in name.lower():
        return (
            "After its training such an SAE has a threshold instead of a choice by batch: store it as the tensor "
            "'threshold', with a value for each feature, and give the architecture 'jumprelu'."
        )
    return ""


def _architectures_with(found: Shapes, d_in: int, d_sae: int) -> list[str]:
    """Return the architectures that have exactly these parameters; no transcoders if others do."""
    d_out = found["W_dec"][-1] if found.get("W_dec") else d_in
    cfg = SimpleNamespace(d_in=d_in, d_sae=d_sae, d_out=d_out)
    fitting = {name: kind for name, kind in ARCHITECTURES.items() if kind.parameter_shapes(cfg) == dict(found)}
    return [name for name, kind in fitting.items() if not hasattr(kind.Config, "d_out")] or list(fitting)


def _either(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
