"""What the manifests of artifacts and of grafted hosts have in common: a file, a version, and what damage calls for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ManifestFormat:
    """A format of manifests, for the checks and the messages that all manifests share.

    Attributes:
        file: Name of the manifest's file.
        version: Latest version of the format that this release reads.
        make_again: What makes the folder again, as an order: "export the SAE again".
    """

    file: str
    version: int
    make_again: str

    @property
    def order(self) -> str:
        """`make_again` at the start of a sentence."""
        return self.make_again[0].upper() + self.make_again[1:]

    @property
    def copy_again(self) -> str:
        """What to do about a manifest that was damaged."""
        return f"Copy the whole folder again, or {self.make_again}."
