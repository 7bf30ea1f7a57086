"""Imports ONNX Runtime before any other module does: with its telemetry off, or an error that says what to install.

ONNX Runtime's wheels send telemetry by default from version 1.29 on: they write a device id and a database below
`~/.cache/Microsoft`, and start an uploader thread that can hang a forked child at exit. `ORT_DISABLE_TELEMETRY=1` in
the environment prevents all of it if it is set before the import. A value that the user has set is respected.

Source: https://github.com/microsoft/onnxruntime/pull/27379
"""

import os
import sys

_SWITCH = "ORT_DISABLE_TELEMETRY"
_imported_before, _chosen_by_user = "onnxruntime" in sys.modules, _SWITCH in os.environ

os.environ.setdefault(_SWITCH, "1")

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

if _imported_before and not _chosen_by_user:  # too late for the thread and the files, not for the events
    onnxruntime.disable_telemetry_events()
