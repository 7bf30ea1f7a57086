"""Grafts SAEs into a host: finds the values at their hooks, writes the folder, proves it, and puts it in its place."""

import dataclasses
import os
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from runtime.arrays.arguments import as_path
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.manifest import INT8, GraphSpec, TensorSpec
from runtime.artifact.manifest import MANIFEST as SAE_MANIFEST
from runtime.artifact.names import HOOK_NAMES
from runtime.artifact.signature import SIGNATURE
from runtime.errors import GraftError
from runtime.hosts.folder import GraftedHost, read_host
from runtime.hosts.names import FEATURES, MODES, SPLICE, sae_folder

from .._export import package_versions
from ..staging import check_output_folder, staged_folder
from .build import DESCRIPTIONS, build_graph, build_stages, describe_stage
from .host import Host, load_host
from .insert import Place
from .write import move_weights, write_graph

SAEs = Mapping[str, "str | os.PathLike[str]"] | Sequence["str | os.PathLike[str]"]
