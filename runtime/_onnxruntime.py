"""Imports ONNX Runtime before any other module does: with its telemetry off, or an error that says what to install.

ONNX Runtime's wheels send telemetry by default from version 1.29 on: they write a device id and a database below
`~/.cache/Microsoft`, and start an uploader thread that can hang a forked child at exit. `ORT_DISABLE_TELEMETRY=1` in
the environment prevents all of it if it is set before the import. A value that the user has set is respected.

Source: https://github.com/microsoft/onnxruntime/pull/27379
"""

import os
import sys

SWITCH = "ORT_DISABLE_TELEMETRY"
IMPORTED_BEFORE = "onnxruntime" in sys.modules
CHOSEN_BY_USER = os.environ.get(SWITCH)
"""Value of the variable before this module set it; None if there was none."""
OFF = ("1", "true", "yes", "on", "y")  # in letters of any case; with any other value ONNX Runtime sends telemetry

os.environ.setdefault(SWITCH, "1")

try:
    import onnxruntime
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":  # it is installed, and something that it needs is missing
        raise
    raise ModuleNotFoundError(
        "runtime executes artifacts with ONNX Runtime, which is not installed. Install one of the two builds, never "
        'both: pip install "saeexport[cpu]" for a CPU, pip install "saeexport[gpu]" for an NVIDIA GPU.',
        name="onnxruntime",
    ) from None


def is_allowed(value: str | None) -> bool:
    """Return whether a user's value of the variable asks for telemetry. None, no value, does not."""
    return value is not None and value.strip().lower() not in OFF


if IMPORTED_BEFORE and not is_allowed(CHOSEN_BY_USER):  # too late for the thread and the files, not for the events
    onnxruntime.disable_telemetry_events()
