"""The exceptions of both packages that a caller may want to tell apart.

SAEError
|-- ArtifactError            a folder is not an artifact, or not the one it says it is
|   |-- ManifestError        sae.json cannot be read: not JSON, a key missing, a newer format
|   `-- IntegrityError       a file is missing, truncated, changed, or belongs to another SAE
|-- InputError               an array has a shape or dtype that the SAE does not take
|-- UnknownHookError         a hook's name is not one of the six
|-- ProviderError            the device that was asked for cannot run the SAE
|-- ParityError              the artifact does not compute what the original computes
|-- ExportError              (saeexport) an SAE cannot be exported
`-- CheckpointError          (saeexport) a path cannot be read as an SAE
"""


class SAEError(Exception):
    """The base of every error that `runtime` and `saeexport` raise on purpose."""


class ArtifactError(SAEError):
    """A folder is not an artifact, or not the one it says it is."""


class ManifestError(ArtifactError):
    """`sae.json` cannot be read."""


class IntegrityError(ArtifactError):
    """A file of the artifact is missing, truncated, changed, or belongs to another SAE."""


class InputError(SAEError, ValueError, RuntimeError):
    """An array has a shape or dtype that the SAE does not take.

    A `ValueError`; and a `RuntimeError` too, which is what PyTorch raises for the same mistake, so that code written
    around the PyTorch original keeps catching it.
    """


class UnknownHookError(SAEError, KeyError):
    """A hook's name is not one of the six; a `KeyError`, as in TransformerLens."""

    def __str__(self) -> str:
        """Return the message; a KeyError would show it in quotes."""
        return Exception.__str__(self)


class ProviderError(SAEError, RuntimeError):
    """The device that was asked for cannot run the SAE."""


class ParityError(SAEError, AssertionError):
    """The artifact does not compute what the original computes."""


class ExportError(SAEError):
    """An SAE cannot be exported; nothing was written."""


class CheckpointError(SAEError):
    """A path cannot be read as an SAE."""
