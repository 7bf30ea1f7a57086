"""Imports PyTorch before any other module does, or raises an error that says what to install."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":  # it is installed, and something that it needs is missing
        raise
    raise ModuleNotFoundError(
        'saeexport exports with PyTorch, which is not installed: pip install "saeexport[export]". To run artifacts, '
        "import runtime, or python -m runtime.",
        name="torch",
    ) from None
