"""The exceptions of both packages.

Whatever a caller can do wrong raises one of these errors. What the caller's own functions raise, hook functions and
signal handlers among them, passes through unchanged. Any other exception is a bug, and keeps its type and traceback.

SAEError
|-- ArtifactError            a folder is not an artifact or a grafted host, or cannot be used as one
|   |-- ManifestError        sae.json or host.json is damaged, or of another version of the format
|   |-- IntegrityError       a file is missing, truncated, changed, or from another export
|   `-- SignatureError       the artifact does not have the signature that was asked for
|-- InputError               an array or option has a shape, dtype or value that is not accepted
|   `-- LimitError           a request is larger than a service accepts
|-- UnknownHookError         a name is not that of a hook
|-- ProviderError            the requested device cannot run the SAE
|-- HubError                 a repository on the Hugging Face Hub cannot be read or written
|   |-- HubEntryError        a repository does not have a file or folder
|   `-- HubConnectionError   the Hub cannot be reached, and its cache does not hold what was asked for
|-- ParityError              the artifact does not compute what the original computes
|-- ExportError              (saeexport) an SAE cannot be exported
|   `-- GraftError           (saeexport) an SAE cannot be grafted into a host
`-- CheckpointError          (saeexport) a path cannot be read as an SAE
"""


class SAEError(Exception):
    """The base class of every error that `runtime` and `saeexport` raise themselves."""


class ArtifactError(SAEError):
    """A folder is not an artifact or a grafted host, or cannot be used as one."""


class ManifestError(ArtifactError):
    """`sae.json` or `host.json` is damaged or of another version of the format.

    It is not JSON, lacks a key, has a value outside of its range, or does not have the checksum that it states.
    """


class IntegrityError(ArtifactError):
    """A file of the artifact is missing, truncated, changed, or from another export."""


class SignatureError(ArtifactError):
    """The artifact does not have the signature that was asked for, or was changed after it was signed."""


class InputError(SAEError, ValueError, RuntimeError):
    """An array or option has a shape, dtype or value that is not accepted.

    It is a `ValueError`, and also a `RuntimeError`, which PyTorch raises for the same mistakes: code written for the
    PyTorch original still catches it.
    """


class LimitError(InputError):
    """A request is larger than a service accepts."""


class UnknownHookError(SAEError, KeyError):
    """A name is not that of a hook. It is a `KeyError`, as in TransformerLens."""

    def __str__(self) -> str:
        """Return the message; a KeyError would show it in quotes."""
        return Exception.__str__(self)


class ProviderError(SAEError, RuntimeError):
    """The requested device cannot run the SAE."""


class HubError(SAEError):
    """A repository on the Hugging Face Hub cannot be read or written."""


class HubEntryError(HubError):
    """A repository on the Hub does not have a file or folder."""


class HubConnectionError(HubError, ConnectionError):
    """The Hub cannot be reached, and the cache on this machine does not hold what was asked for."""


class ParityError(SAEError, AssertionError):
    """The artifact does not compute what the original computes."""


class ExportError(SAEError):
    """An SAE cannot be exported; nothing was written."""


class GraftError(ExportError):
    """An SAE cannot be grafted into a host model; nothing was written."""


class CheckpointError(SAEError):
    """A path cannot be read as an SAE."""
