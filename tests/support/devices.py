"""The devices that the tests can use on this machine."""

import functools

import torch

from runtime.devices.select import unavailable_reason
from runtime.devices.start import Device


@functools.cache
def why_not_on(kind):
    """Return why the tests of a device cannot run here, or an empty string if they can."""
    if reason := unavailable_reason(Device(kind)):
        return reason
    return "" if torch.cuda.is_available() else "this PyTorch is built without CUDA"
