"""The versions of the packages that made an artifact, and of those that are installed here."""

from collections.abc import Iterable, Mapping

import onnxruntime

ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
"""Distributions of ONNX Runtime. They share an import name, and either may run what the other one made."""


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed here."""
    import importlib.metadata  # takes as long to import as a tenth of the runtime, and a session does not need it

    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if package in ONNXRUNTIMES:
                versions[package] = onnxruntime.__version__
    return versions


def differing_versions(provenance: Mapping[str, str]) -> list[str]:
    """Return the packages that made an artifact and are installed here in another version.

    A package that is not installed here takes no part in what is computed here, and does not count.
    """
    here = installed_versions(provenance)
    return [package for package, version in provenance.items() if here.get(package, version) != version]


def describe_differences(provenance: Mapping[str, str]) -> str:
    """Return a sentence about the versions that differ, or an empty string if none does."""
    here = installed_versions(provenance)
    differing = [f"{name} {provenance[name]} (here {here[name]})" for name in differing_versions(provenance)]
    return f"made with other versions: {', '.join(differing)}" if differing else ""
