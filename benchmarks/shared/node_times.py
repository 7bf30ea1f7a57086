"""The time of each node of a graph, from a profile that ONNX Runtime wrote."""

import collections
import json
from pathlib import Path
from typing import Any


def read_profile(path: Path) -> dict[str, list[float]]:
    """Return the milliseconds of each call of each node, in order, by operator and node name."""
    return node_times(json.loads(path.read_text()))


def node_times(events: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return the same from the events of the profile, whose durations are in microseconds."""
    times: dict[str, list[float]] = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"
            times[name].append(event["dur"] / 1e3)
    return dict(times)
