"""Imports huggingface_hub when it is first needed, and turns its exceptions into `HubError`."""

import contextlib
import types
from collections.abc import Iterator

from ..errors import HubConnectionError, HubEntryError, HubError

RETRY = "Check the connection and the proxy settings, or unset HF_HUB_OFFLINE if it is set."


def import_client() -> types.ModuleType:
    """Return the module `huggingface_hub`.

    Raises:
        HubError: It is not installed; the message says how to install it.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":  # it is installed, and something that it needs is missing
            raise
        raise HubError(
            'The Hugging Face Hub is used through huggingface_hub, which is not installed: pip install "saeexport[hub]"'
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def explained_errors(what: str) -> Iterator[None]:
    """Raise the exceptions of huggingface_hub and of its transport as `HubError`.

    Args:
        what: What is read or written, such as "hf://owner/name", for the message.

    Raises:
        HubError: The block raised such an exception. It is a `HubEntryError` if the repository does not have a file or
            folder, and a `HubConnectionError` if the Hub did not answer.
    """
    import_client()
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its HTTP library

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{what} is gated. Ask for access on its page on the Hub, then log in (`hf auth login`) or set HF_TOKEN. "
            f"{_said(error)}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{what} was not found on the Hub, or it is private. Check the name; for a private repository log in "
            "(`hf auth login`) or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{what} does not exist: the repository has no such branch, tag or commit.") from error
    except (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled) as error:
        raise HubConnectionError(
            f"{what} is not in the cache, and the Hub cannot be reached ({_line(error.__cause__ or error)}). {RETRY}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubEntryError(f"{what} does not exist: the repository has no such file or folder.") from error
    except (errors.HFValidationError, errors.HfUriError) as error:
        raise HubError(f"{what} is not an address on the Hub: {_line(error)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        kind = HubConnectionError if status >= 500 else HubError
        token = " Check that your token may do this." if status in (401, 403) else ""
        raise kind(f"{what}: the Hub answered with status {status}. {_said(error)}{token}".strip()) from error
    except (HTTPError, ConnectionError) as error:
        raise HubConnectionError(f"{what}: the Hub cannot be reached ({_line(error)}). {RETRY}") from error


@contextlib.contextmanager
def quiet_downloads() -> Iterator[None]:
    """Show no progress bars of huggingface_hub in the block, for callers that have one of their own."""
    utils = import_client().utils
    if utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def _said(error: Exception) -> str:
    """Return the server's own message, or an empty string."""
    message = getattr(error, "server_message", None)
    return f"The Hub says: {message}" if message else ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
