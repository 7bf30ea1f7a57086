"""`python -m runtime package` and `saeexport package`: an artifact in the form that another server takes."""

import argparse

from ..serving.service import Limits
from ..serving.triton import write_repository

PACKAGE = "Write an artifact in the form that another server takes; the graphs stay as they are."


def add_package_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to its parser."""
    parser.set_defaults(command=package_command)
    forms = parser.add_mutually_exclusive_group(required=True)
    forms.add_argument(
        "--triton", action="store_true", help="a model repository for the ONNX Runtime backend of NVIDIA Triton"
    )
    parser.add_argument("artifact", help="folder of the artifact")
    parser.add_argument("out", help="folder to write, or a repository that gets further models or versions")
    parser.add_argument(
        "--graphs", nargs="+", metavar="GRAPH", help="graphs to write (default: those that run on every device)"
    )
    parser.add_argument("--name", help="start of the models' names (default: the name of the artifact's folder)")
    parser.add_argument(
        "--model-version", type=int, default=1, metavar="N", help="version of the models (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=Limits.tokens, metavar="N",
        help="largest number of tokens of a batch (default: %(default)s)",
    )  # fmt: skip


def package_command(options: argparse.Namespace) -> int:
    """Write a model repository and print its models."""
    models = write_repository(
        options.artifact, options.out, graphs=options.graphs, name=options.name, version=options.model_version,
        max_tokens=options.max_tokens,
    )  # fmt: skip
    print(f"{options.out}: version {options.model_version} of {', '.join(model.name for model in models)}")
    return 0
