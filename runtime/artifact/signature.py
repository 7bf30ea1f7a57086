"""The signature of an artifact: `model.sig`, in the format of OpenSSF Model Signing.

The checksums in `sae.json` detect accidents. They do not stop a person, who can change a file and its checksum
together. A signature does: it covers the content of every file of the folder, `sae.json` included, and only the owner
of the private key can make it.

Source: https://github.com/ossf/model-signing-spec
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SAEError, SignatureError

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

SIGNATURE = "model.sig"
"""Name of the file with the signature. It is the only file of the folder that the signature does not cover."""

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def check_signature(path: str | os.PathLike[str], public_key: str | os.PathLike[str]) -> None:
    """Check that the owner of a key has signed an artifact, and that every file is as it was signed.

    The network is not used. No file of the artifact is trusted: a file that was changed, added or removed after the
    signing is found.

    Args:
        path: Folder of the artifact.
        public_key: PEM file with the public key of the signer, or with the certificates of the authorities that the
            signer's certificate must come from.

    Raises:
        SignatureError: The artifact is not signed, is signed with another key, or was changed after it was signed.
        InputError: `public_key` cannot be read as a key or as certificates.
        SAEError: model-signing is not installed.
    """
    folder, key = Path(path), Path(public_key)
    hashing, verifier = hashing_config(), _verifier(key)
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise SignatureError(
            f"{folder} is not signed: it has no {SIGNATURE}. Get the signed artifact, sign it (saeexport sign), or do "
            "not ask for a signature."
        )
    if linked := [entry.name for entry in sorted(folder.iterdir()) if entry.is_symlink() and entry.is_dir()]:
        raise SignatureError(f"{folder} has links to folders, which a signature does not cover: {', '.join(linked)}.")
    try:
        verifier.set_hashing_config(hashing).verify(folder, signature)
    except _refusals() as error:
        raise SignatureError(
            f"{folder} is not what the owner of {key} signed: {_reason(error)}. Do not use it. Get the artifact again, "
            "or the right key."
        ) from error


def hashing_config() -> "HashingConfig":
    """Return what a signature covers: every file but the signature itself, by sha256.

    Files are read through symbolic links, as in the cache of the Hugging Face Hub. The list of files to ignore that a
    signature may carry is not followed.

    Raises:
        SAEError: model-signing is not installed.
    """
    try:
        from model_signing import hashing
    except ModuleNotFoundError as error:
        raise SAEError(
            f'Signatures need model-signing, and {error.name} is not installed: pip install "saeexport[signing]".'
        ) from None

    class EveryFile(hashing.Config):
        def add_ignored_paths(self, **ignored: Any) -> None:
            pass

    config = EveryFile().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=True)
    return config.set_allow_symlinks(True).set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _verifier(key: Path) -> Any:
    """Return the library's verifier for a PEM file, which says itself whether it holds a key or certificates."""
    from model_signing import verifying

    try:
        if CERTIFICATE in key.read_bytes():
            return verifying.Config().use_certificate_verifier(certificate_chain=[key])
        return verifying.Config().use_elliptic_key_verifier(public_key=key)
    except _refusals() as error:
        raise InputError(
            f"{key} cannot be read as a public key or a certificate: {error}. It must be a PEM file with a key on the "
            "curve P-256, P-384 or P-521, or with certificates."
        ) from error


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions with which the library refuses a signature or a key; a damaged file may cause any."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL import crypto

    return (
        ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError,
        InvalidSignature, UnsupportedAlgorithm, crypto.Error, crypto.X509StoreContextError,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Return the library's message, or what happened if it has none that a reader would understand."""
    from cryptography.exceptions import InvalidSignature

    if isinstance(error, InvalidSignature):
        return f"{SIGNATURE} was made with another key, or was changed"
    if isinstance(error, ValueError) and str(error).startswith(("Signature mismatch: ", "Key mismatch: ")):
        return str(error).strip().rstrip(".")
    return f"{SIGNATURE} is damaged, or was made in another way ({type(error).__name__}: {error})"
