"""What can go wrong with the Hugging Face hub, in sentences for people. Knows the library, and no model."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# The HTTP client below the library: requests, later httpx under changing names. Its errors are all of the network.
_CLIENTS = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2", "hf_xet"}
_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class HubError(ValueError):
    """A download that cannot be made: one sentence that says why, and what would help."""


class NoConnection(HubError):
    """The hub was not asked, or did not answer."""


def hub_address() -> str:
    """The hub's address (``HF_ENDPOINT``), as people say it."""
    return constants.ENDPOINT.split("://")[-1]


@contextlib.contextmanager
def plainly(
    repo: str, revision: str, path: str | None = None, what: str | None = None, by_hand: str = ""
) -> Iterator[None]:
    """Turns whatever the library raises inside into a :class:`HubError`.

    Args:
        path: the file that is asked for, if it is one.
        what: the beginning of a sentence on what cannot be had; by default the file or the repository.
        by_hand: what to do where there is no network, as the end of a sentence.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        what = what or (f"{path} of {repo}" if path else repo)
        made = _explain(error, repo, revision, path, what, by_hand)
        if made is None:
            raise
        raise made from error


def _explain(
    error: BaseException, repo: str, revision: str, path: str | None, what: str, by_hand: str
) -> HubError | None:
    if isinstance(error, OfflineModeIsEnabled):
        return offline(what, by_hand)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"The repository {repo} is open only to accounts that have accepted its terms: accept them at "
            f"{constants.ENDPOINT}/{repo} and log in with 'hf auth login', or set HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"There is no repository {repo} at {hub_address()}, or it is private: check the name, or log in with "
            "'hf auth login'."
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"The repository {repo} has no revision {revision}: accepted are its commits and branches.")
    if isinstance(error, LocalEntryNotFoundError):  # the library's word for a request that failed; why is below
        below = error.__cause__ or error.__context__
        found = None if below is None else _explain(below, repo, revision, path, what, by_hand)
        return found or _unreachable(error, what, by_hand)
    if isinstance(error, EntryNotFoundError):
        return missing_file(repo, path or "", revision)
    if isinstance(error, HfHubHTTPError):
        return _status(error, what)
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return _disk(error, what)
    if type(error).__module__.split(".")[0] in _CLIENTS or isinstance(error, ConnectionError | TimeoutError):
        return _unreachable(error, what, by_hand)
    if isinstance(error, OSError | ValueError | RuntimeError):  # a size that is not the announced one, and the like
        return HubError(f"{what} could not be downloaded ({_reason(error)}): try again.")
    return None


def offline(what: str, by_hand: str) -> NoConnection:
    return NoConnection(
        f"{what} is not on this computer and HF_HUB_OFFLINE forbids to download it: unset HF_HUB_OFFLINE, {by_hand}."
    )


def missing_file(repo: str, path: str, revision: str) -> HubError:
    return HubError(
        f"The repository {repo} has no file {path} at revision {revision}: check the entry, or choose another revision."
    )


def _unreachable(error: BaseException, what: str, by_hand: str) -> NoConnection:
    return NoConnection(
        f"{what} cannot be downloaded because {hub_address()} does not answer ({_reason(error)}): try again later "
        f"(it goes on from what is here), {by_hand}."
    )


def _status(error: HfHubHTTPError, what: str) -> HubError:
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code in (401, 403):
        return HubError(
            f"{hub_address()} does not give {what} to this account (status {code}): log in with 'hf auth login', or "
            "set HF_TOKEN to a token that may read it."
        )
    if code == 429:
        return HubError(f"{hub_address()} has had too many requests from here: try again in some minutes, or log in.")
    return HubError(f"{hub_address()} answered the request for {what} with status {code}: try again later.")


def _disk(error: OSError, what: str) -> HubError:
    where = error.filename or constants.HF_HUB_CACHE
    if error.errno in _NO_ROOM:
        return HubError(
            f"The disk of {constants.HF_HUB_CACHE} is full: make room and run it again to go on from there, or set "
            "HF_HOME to a folder on a larger disk."
        )
    return HubError(
        f"{what} cannot be saved: {where} cannot be written ({error.strerror or error}); set HF_HOME to a folder of "
        "your own."
    )


def _reason(error: BaseException) -> str:
    """A library's message as a few words."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text if len(text) <= 120 else text[:117] + "...") or type(error).__name__
