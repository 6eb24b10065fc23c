"""What a named model needs of the Hugging Face hub: is it here, what is missing, fetch it.

Everything lies in the hub's usual cache (``HF_HOME``, ``HF_HUB_CACHE``) in its documented layout, so that other
programs share it; ``huggingface_hub`` makes the requests and draws the progress. One thing is done here: newer versions
of that library throw away a download that was broken off, and here files of gigabytes are gone on with.

Loads no torch. :func:`locate` makes no request.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants

from longtake.checkpoints.hub_cache import (
    cache_folder,
    discard,
    find,
    free_bytes,
    is_right,
    locate,
    partial_bytes,
    partial_file,
    repo_folder,
)
from longtake.checkpoints.registry import HubFile, ModelInfo, bases, load_registry
from longtake.checkpoints.sources import Sources

__all__ = ["DownloadPlan", "Needed", "cache_folder", "download", "locate", "plan"]

_TIMEOUT = 20.0  # seconds for the hub to answer a question; downloads have the library's own (HF_HUB_DOWNLOAD_TIMEOUT)
_LONG_TO_CHECK = 500_000_000  # bytes that take a second to read


@dataclass(frozen=True)
class Needed:
    """A file, or (where the hub was not asked) a pattern of files, that a model needs.

    Attributes:
        file: what is known of it.
        here: whether it is in the cache.
        partial: bytes of a download that was broken off.
        large: whether the hub keeps it as a large file, by the hash of its content.
        asked: the revision that was asked for: a branch, where that of ``file`` is the commit that it was at.
    """

    file: HubFile
    here: bool
    partial: int = 0
    large: bool = False
    asked: str = ""

    @property
    def bytes(self) -> int:
        """Of the whole file, as far as known."""
        return self.file.size or self.file.about or 0

    @property
    def missing(self) -> int:
        """Bytes still to fetch, as far as known."""
        return 0 if self.here else max(self.bytes - self.partial, 0)


@dataclass(frozen=True)
class DownloadPlan:
    """What a model needs of the hub. Sizes in bytes; ``exact`` is False where some are estimates.

    Attributes:
        folder: the cache; ``free``: what its disk has free, None if nobody can tell.
        total: of all files; ``missing``: of those that must be fetched, partial downloads deducted.
    """

    model: str
    files: tuple[Needed, ...]
    folder: Path
    free: int | None
    total: int
    missing: int
    exact: bool

    @property
    def complete(self) -> bool:
        return all(need.here for need in self.files)

    @property
    def repos(self) -> tuple[str, ...]:
        """Repositories that something is missing of."""
        return tuple(dict.fromkeys(need.file.repo for need in self.files if not need.here))


def plan(info: ModelInfo, ask: bool = True) -> DownloadPlan:
    """What a model needs, what of it is here and what must be fetched.

    Args:
        ask: the hub for files and exact sizes, of repositories that something is missing of. Where it does not answer,
            the registry's sizes are used, as with ``ask=False``.

    Raises:
        ValueError: in one sentence, if the hub knows better: no such repository, revision or file, no access, or
            another content than the registry says.
    """
    from longtake.checkpoints.hub_errors import NoConnection

    if ask:
        with contextlib.suppress(NoConnection):
            return _plan(info, ask=True)
    return _plan(info, ask=False)


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def download(info: ModelInfo, say: Callable[[str], None] = _print, quiet: bool = False) -> Sources:
    """Fetches what is missing of a model, and says first how much that is and where it goes.

    Sizes are checked, and hashes of all that the registry or the hub has one of. A download that is broken off leaves a
    partial file in the cache, and the next call goes on from there. What is complete is not asked for again.

    Args:
        say: called with sentences on what is done; by default they go to stderr.
        quiet: without the library's progress bars.

    Returns:
        Where everything lies.

    Raises:
        ValueError: in one sentence: no network, offline mode, no access, no such repository, revision or file, a file
            that is not the right one (it is removed), a full disk, a folder that cannot be written.
    """
    from longtake.checkpoints.hub_errors import HubError, offline
    from longtake.plan import format_bytes

    if (found := locate(info)) is not None:
        return found
    _check_local(info)
    if constants.HF_HUB_OFFLINE:
        raise offline(_what(info), _by_hand(info))
    wanted = _plan(info, ask=True)
    say(_announcement(info, wanted))
    if wanted.free is not None and wanted.missing > wanted.free:
        raise HubError(
            f"The model {info.name} needs {format_bytes(wanted.missing)} more on the disk of {wanted.folder}, where "
            f"{format_bytes(wanted.free)} are free: make room, or set HF_HOME to a folder on a larger disk."
        )
    with _library(quiet):
        # Small files first: once all weights of a folder are there, so is everything else in it.
        for need in sorted((n for n in wanted.files if not n.here), key=lambda n: n.bytes):
            _fetch(need, say, _by_hand(info))
    _remember_branches(info, wanted)
    found = locate(info)
    if found is None:
        raise HubError(f"The model {info.name} is not complete after its download: check {info.origin}.")
    return found


def _plan(info: ModelInfo, ask: bool) -> DownloadPlan:
    base = info.parts_from
    groups: dict[tuple[str, str], list[HubFile]] = {}
    for file in (*info.hub_files, *(base.files if base else ())):
        groups.setdefault((file.repo, file.revision), []).append(file)
    files: list[Needed] = []
    for (repo, revision), group in groups.items():
        if ask and any(find(file) is None for file in group):
            files += _ask(repo, revision, group, info)
        else:
            files += [_look(file) for file in group]
    total, missing = sum(n.bytes for n in files), sum(n.missing for n in files)
    if base and base.about and any(n.bytes == 0 and n.file.repo == base.repo for n in files):
        of_base = [n for n in files if n.file.repo == base.repo]
        total += max(base.about - sum(n.bytes for n in of_base), 0)
        if not all(n.here for n in of_base):
            missing += max(base.about - sum(n.bytes for n in of_base if n.here), 0)
    exact = all(n.file.size is not None for n in files)
    folder = cache_folder()
    return DownloadPlan(info.name, tuple(files), folder, free_bytes(folder), total, missing, exact)


def _amount(what: DownloadPlan) -> str:
    from longtake.plan import format_bytes

    return f"{'' if what.exact else 'about '}{format_bytes(what.missing)}"


def _announcement(info: ModelInfo, wanted: DownloadPlan) -> str:
    from longtake.checkpoints.hub_errors import hub_address
    from longtake.plan import format_bytes

    licence = info.license or (bases()[info.base].license if info.base else "not stated")
    here = wanted.total - wanted.missing
    already = f"; {format_bytes(here)} of {format_bytes(wanted.total)} are here already" if here else ""
    free = "" if wanted.free is None else f", where {format_bytes(wanted.free)} are free"
    return (
        f"{info.name} (licence: {licence}): {_amount(wanted)} to download from {hub_address()} "
        f"({', '.join(wanted.repos)}){already}. It goes to {wanted.folder}{free}."
    )


def _what(info: ModelInfo) -> str:
    """A model and its download, as the beginning of a sentence."""
    rough = _plan(info, ask=False)
    return f"The model {info.name} ({_amount(rough)} from {' and '.join(rough.repos)})"


def _by_hand(info: ModelInfo) -> str:
    """What else can be done, as the end of a sentence."""
    if info.name not in load_registry():  # a file here, of which only the components come from the hub
        return f"or copy {cache_folder()} from a computer that has it all (or set HF_HOME), or give --components PATH"
    return (
        f"or run 'longtake download {info.name}' on another computer and copy its {cache_folder()} here (set HF_HOME "
        "if it lies elsewhere), or give local files with --model PATH"
    )


def _check_local(info: ModelInfo) -> None:
    """Refuses an entry whose files on this computer are not there: no download can help."""
    base = info.parts_from
    parts = [info.folder, info.transformer, base and base.folder, *(lora.file for lora in info.loras)]
    parts.append(info.memory_weights)
    for part in parts:
        if isinstance(part, Path) and not part.exists():
            raise ValueError(f"{info.origin}: the model {info.name!r} names {part}, which is not there.")
    if info.folder is not None:
        raise ValueError(f"{info.folder} is not a whole model as diffusers saves it: it has no model_index.json.")


def _look(file: HubFile) -> Needed:
    large = file.sha256 is not None
    return Needed(file, find(file) is not None, partial_bytes(file), large)


def _ask(repo: str, revision: str, group: list[HubFile], info: ModelInfo) -> list[Needed]:
    """All files that these stand for, with what the hub knows of them, at one commit."""
    from huggingface_hub import HfApi

    from longtake.checkpoints.hub_errors import HubError, missing_file, plainly

    with plainly(repo, revision, what=_what(info), by_hand=_by_hand(info)):
        answer = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    found: dict[str, Needed] = {}
    for wanted in group:
        matching = [s for s in answer.siblings or [] if wanted.matches(s.rfilename)]
        if not matching:
            raise missing_file(repo, wanted.path, revision)
        for sibling in matching:
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            for known, theirs in ((wanted.size, sibling.size), (wanted.sha256, sha256)):
                if known is not None and theirs is not None and known != theirs:
                    raise HubError(
                        f"{sibling.rfilename} of {repo} is not the file that the registry knows (its size or hash "
                        "differs): it is not downloaded; update Longtake, or the entry if it is yours."
                    )
            file = replace(
                wanted,
                path=sibling.rfilename,
                revision=answer.sha or revision,
                size=wanted.size or sibling.size,
                sha256=wanted.sha256 or sha256,
            )
            blob = repo_folder(repo) / "blobs" / (sha256 or "-")
            here = find(file) is not None
            partial = file.size if blob.is_file() and file.size else partial_bytes(file)
            found[file.path] = Needed(file, here, partial, sha256 is not None, revision)
    return list(found.values())


def _remember_branches(info: ModelInfo, done: DownloadPlan) -> None:
    """Notes at which commit a branch was, as the library does: what was fetched were commits."""
    base = info.parts_from
    commits = {(need.file.repo, need.asked): need.file.revision for need in done.files}
    for file in (*info.hub_files, *(base.files if base else ())):
        commit = commits.get((file.repo, file.revision), file.revision)
        if not file.pinned and commit != file.revision:
            ref = repo_folder(file.repo) / "refs" / file.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)


@contextlib.contextmanager
def _library(quiet: bool) -> Iterator[None]:
    """Without the library's warnings (what matters of them is said in the end), and without its bars if quiet."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, without = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    if quiet and not without:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if quiet and not without:
            enable_progress_bars()


def _fetch(need: Needed, say: Callable[[str], None], by_hand: str) -> None:
    """One file into the cache, checked."""
    from huggingface_hub import hf_hub_download

    from longtake.checkpoints.hub_errors import HubError, plainly

    file = need.file
    with plainly(file.repo, file.revision, file.path, by_hand=by_hand):
        damaged = repo_folder(file.repo) / "snapshots" / file.revision / file.path
        if damaged.exists():  # of another size, or it would not be missing
            discard(damaged)
        if need.large:
            _fetch_large(file, say)
        # Makes the link to a blob that is there, or fetches the whole of a small file.
        path = Path(hf_hub_download(file.repo, file.path, revision=file.revision))
        if not need.large and not is_right(path, file):
            discard(path)
            raise HubError(_wrong(file))


def _fetch_large(file: HubFile, say: Callable[[str], None]) -> None:
    """The blob of a large file, from where an earlier download broke off."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    from longtake.checkpoints.hub_errors import HubError

    partial = partial_file(file)
    blob = partial.with_suffix("")
    lock = cache_folder() / ".locks" / repo_folder(file.repo).name / f"{file.sha256}.lock"  # the library's own
    for folder in (partial.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():
            return
        done = partial_bytes(file)
        if not done:
            partial.unlink(missing_ok=True)
        with partial.open("ab") as out:
            if done != file.size:
                http_get(
                    hf_hub_url(file.repo, file.path, revision=file.revision),
                    out,
                    resume_size=done,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            out.flush()
            os.fsync(out.fileno())
        if (file.size or 0) >= _LONG_TO_CHECK:
            say(f"Checking {file.path} ...")
        if not is_right(partial, file):
            partial.unlink()
            raise HubError(_wrong(file))
        os.replace(partial, blob)


def _wrong(file: HubFile) -> str:
    return (
        f"{file.path} of {file.repo} was damaged on its way or is not the file that it should be (its hash differs): "
        "it was removed; try again, and if that does not help, from another network."
    )
