"""Signs an artifact or a grafted host in the format of OpenSSF Model Signing; see `runtime.artifact.signature`."""

import os
import tempfile
from pathlib import Path

from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.signature import SIGNATURE, check_folder, hashing_config
from runtime.artifact.writing import remove_abandoned, replaced_file
from runtime.errors import ExportError, SAEError
from runtime.hosts.folder import GraftedHost, is_host, read_host


def sign(
    path: str | os.PathLike[str],
    private_key: str | os.PathLike[str],
    certificates: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
) -> Artifact | GraftedHost:
    """Sign every file of an artifact or of a grafted host with a private key, and return it.

    The signature is written to `model.sig` in the folder. It covers every other file, so the artifact must be complete
    before it is signed. The network is not used. Needs `pip install "saeexport[signing]"`.

    Args:
        path: Folder of the artifact or of the grafted host. Its files are checked before they are signed.
        private_key: PEM file with an elliptic curve key (P-256, P-384 or P-521), without a password.
        certificates: PEM file with the certificate of that key, followed by the intermediate certificates if there are
            any. The signature then contains them, and is checked with the certificate of the authority. None signs
            with the key alone, and the signature is checked with its public key.
        overwrite: Whether to replace a signature that is there.

    Raises:
        ArtifactError: The folder is neither, or is damaged.
        SignatureError: The folder holds something that a signature does not cover, such as a link to a folder.
        ExportError: The artifact is signed already, or the key or the certificates cannot be used.
        SAEError: model-signing is not installed.
    """
    artifact = read_host(path) if is_host(path) else read_artifact(path)
    artifact.check_files()
    check_folder(artifact.folder)
    signature = artifact.folder / SIGNATURE
    if signature.exists() and not overwrite:
        raise ExportError(
            f"{artifact.path} is signed already. Replace the signature with overwrite=True (--overwrite), or leave it."
        )
    hashing, key = hashing_config(), Path(private_key)
    from model_signing import signing

    try:
        config = signing.Config().set_hashing_config(hashing)
        if certificates is None:
            config.use_elliptic_key_signer(private_key=key)
        else:  # the library wants a chain; the first certificate of a file is that of the key
            config.use_certificate_signer(
                private_key=key, signing_certificate=certificates, certificate_chain=[certificates]
            )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(
            f"{artifact.path} was not signed: {key}{f' with {certificates}' if certificates else ''} cannot be used: "
            f"{error}. The key must be a PEM file without a password, on the curve P-256, P-384 or P-521."
        ) from error
    try:
        remove_abandoned(artifact.folder)  # of a signing that was killed; it must not be signed
        with tempfile.TemporaryDirectory() as elsewhere:
            config.sign(artifact.folder, Path(elsewhere) / SIGNATURE)
            content = (Path(elsewhere) / SIGNATURE).read_bytes()
        if signature.is_symlink():  # what a link leads to, as in the cache of the Hub, is not part of this folder
            signature.unlink()
        with replaced_file(signature, overwrite) as file:
            file.write(content)
    except (OSError, ValueError, SAEError) as error:
        raise ExportError(f"{artifact.path} was not signed: {error}") from error
    return artifact
