"""The picture of an SAE: its hooks, the stages between them, and the error term."""

from collections.abc import Mapping
from xml.etree.ElementTree import Element

from ...artifact.contracts import MODEL
from ...artifact.manifest import Manifest
from ...artifact.names import (
    HOOK_ACTS_POST,
    HOOK_ACTS_PRE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_RECONS,
    TARGET,
)
from .markup import TIMES, drawing, element, line, text

BOX, TALL, PITCH, TIP = 116, 66, 171, 4
"""Width and height of a box, distance from the left edge of one to that of the next, and length of an arrowhead."""

TOP, BELOW = 10, 156
"""Upper edges of the two rows of boxes."""

ROW = (HOOK_INPUT, HOOK_ACTS_PRE, HOOK_ACTS_POST, HOOK_RECONS, HOOK_OUTPUT)
STAGES = ("encode", "activate", "decode")
LEFT = {hook: 2 + PITCH * i for i, hook in enumerate(ROW)}
MIDDLE, LOW = TOP + TALL / 2, BELOW + TALL / 2
WIDTH = LEFT[HOOK_OUTPUT] + BOX + 2
PLUS, RADIUS = (LEFT[HOOK_RECONS] + BOX + LEFT[HOOK_OUTPUT]) / 2, 10


def hook_diagram(manifest: Manifest, notes: Mapping[str, str], failed: set[str]) -> Element:
    """Return a picture of the hooks of an SAE with their shapes.

    Args:
        manifest: Manifest of the artifact.
        notes: A note for each hook, which stands below its shape.
        failed: The hooks that failed verification.
    """
    sae, model = manifest.sae, manifest.graphs[MODEL]
    shapes = {tensor.name: f" {TIMES} ".join(map(str, tensor.shape)) for tensor in (*model.inputs, *model.outputs)}

    def box(name: str, x: float, y: float) -> Element:
        kind = "box bad" if name in failed else "box" if name in (*sae.fired_hooks, TARGET) else "box unfired"
        note = text(x + BOX / 2, y + 57, notes.get(name, ""), "bad" if name in failed else "note")
        return element(
            "g",
            element("rect", x=f"{x:g}", y=y, width=BOX, height=TALL, rx=6, class_=kind),
            text(x + BOX / 2, y + 22, name.removeprefix("hook_sae_"), "name"),
            text(x + BOX / 2, y + 40, shapes[name], "tick"),
            note,
        )

    has_error = HOOK_ERROR in shapes
    parts = [_arrowhead(), *(box(hook, x, TOP) for hook, x in LEFT.items())]
    for stage, hook, following in zip(STAGES, ROW, ROW[1:], strict=False):
        start, end = LEFT[hook] + BOX, LEFT[following]
        parts.append(line((start, MIDDLE), (end - TIP, MIDDLE), class_="flow", arrow=True))
        parts.append(text((start + end) / 2, MIDDLE - 8, stage, "stage"))
    start, end = LEFT[HOOK_RECONS] + BOX, LEFT[HOOK_OUTPUT]
    if has_error:
        parts += _sum(sae.use_error_term)
        parts.append(box(HOOK_ERROR, LEFT[HOOK_ACTS_POST], BELOW))
        if sae.takes_target:
            parts.append(box(TARGET, LEFT[HOOK_INPUT], BELOW))
            source: list[tuple[float, float]] = [(LEFT[HOOK_INPUT] + BOX, LOW)]
        else:
            x = LEFT[HOOK_INPUT] + BOX / 2
            source = [(x, TOP + TALL), (x, LOW)]
        parts.append(line(*source, (LEFT[HOOK_ACTS_POST] - TIP, LOW), class_="flow", arrow=True))
    else:
        parts.append(line((start, MIDDLE), (end - TIP, MIDDLE), class_="flow", arrow=True))
    order = " to ".join(hook.removeprefix("hook_sae_") for hook in ROW)
    error = f"error = {'target' if sae.takes_target else 'input'} - recons, " if has_error else ""
    output = "output = recons + error" if sae.use_error_term else "output = recons"
    description = f"{order}, by the stages {', '.join(STAGES)}: {error}{output}."
    height = (BELOW if has_error else TOP) + TALL + 4
    return drawing("hooks", WIDTH, height, "The hooks of the SAE", description, *parts)


def _sum(is_added: bool) -> list[Element]:
    """Return what leads from the reconstruction to the error, and from both to the output."""
    recons, error = LEFT[HOOK_RECONS] + BOX, LEFT[HOOK_ACTS_POST] + BOX
    down, between = LEFT[HOOK_RECONS] + BOX / 2, (TOP + TALL + BELOW) / 2
    kind = "flow" if is_added else "flow unfired"
    return [
        line((down, TOP + TALL), (down, between), (error - BOX / 2, between), (error - BOX / 2, BELOW - TIP),
             class_="flow", arrow=True),
        text(error - BOX / 2 + 9, BELOW - 10, "\N{MINUS SIGN}", "name"),
        line((error, LOW), (PLUS, LOW), (PLUS, MIDDLE + RADIUS + TIP), class_=kind, arrow=True),
        text((error + PLUS) / 2, LOW - 8, "added" if is_added else "not added", "stage"),
        line((recons, MIDDLE), (PLUS - RADIUS - TIP, MIDDLE), class_="flow", arrow=True),
        line((PLUS + RADIUS, MIDDLE), (LEFT[HOOK_OUTPUT] - TIP, MIDDLE), class_="flow", arrow=True),
        element("circle", cx=f"{PLUS:g}", cy=f"{MIDDLE:g}", r=RADIUS, class_="box" if is_added else "box unfired"),
        text(PLUS, MIDDLE + 5, "+", "name"),
    ]  # fmt: skip


def _arrowhead() -> Element:
    tip = element("path", d="M0 0 L10 5 L0 10 z", class_="tip")
    return element("defs", element("marker", tip, id="arrow", viewBox="0 0 10 10", refX=4, refY=5, markerWidth=7,
                                   markerHeight=7, orient="auto"))  # fmt: skip
