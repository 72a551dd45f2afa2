"""``hf:ORG/NAME[@REVISION][:FILE]``: a model on the Hugging Face Hub, fetched by the ``huggingface_hub`` package.

The package brings what users have set up for it: tokens, mirrors, proxies, offline mode. It is optional, so it is imported when
it is needed and only here. A revision is resolved to a commit once, and all files are of that commit; those that the Hub stores by
digest are checked against it. What an interrupted download has is kept beside the model's place and continued.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from octavo.weights.contents import choose_model
from octavo.weights.specification import HubSpecification, is_inner_path
from octavo.weights.store import Fetched, Progress, ProgressCallback, PullError, check_space, fetch_into, put


def fetch_from_hub(specification: HubSpecification, on_progress: ProgressCallback | None) -> Path:
    """Where the model lies, fetched if it is not in the cache. Raises ``PullError``, also when the package is missing."""

    def work(directory: Path, lock: int | None, progress: Progress) -> Fetched:
        return _fetch(specification, directory, progress)

    return fetch_into(specification.folder, specification.name, work, on_progress)


def _fetch(specification: HubSpecification, directory: Path, progress: Progress) -> Fetched:
    name, repository = specification.name, specification.repository
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise PullError(
            f"fetching {name} needs the package huggingface_hub ({error}). Install it (pip install 'octavo[hf]'), or download the model "
            "yourself and give its path"
        ) from None
    commit, sizes, digests = _listed(specification)
    try:
        opened, members = choose_model([path for path in sizes if is_inner_path(path)], specification.file)
    except ValueError as error:
        raise PullError(f"{name} cannot be used as a model: {error}") from None
    base = PurePosixPath(opened).parent if opened in members else PurePosixPath(opened)
    targets = {member: str(PurePosixPath(member).relative_to(base)) for member in members}
    progress.total_bytes = sum(sizes[member] for member in members)
    workspace = directory / ".hub" / commit  # kept between attempts: the package continues what it finds there
    for other in workspace.parent.glob("*"):
        if other != workspace:
            shutil.rmtree(other)
    workspace.mkdir(parents=True, exist_ok=True)
    check_space(directory, name, sum(sizes[member] - _size(workspace / member) for member in members))
    done = 0
    for member in members:
        report = _reporter(lambda num_bytes, before=done: progress(before + num_bytes))  # type: ignore[misc]
        try:
            fetched = Path(hf_hub_download(repository, member, revision=commit, local_dir=workspace, tqdm_class=report))
        except Exception as error:  # the package lets through what its HTTP library raises, which differs between versions
            raise PullError(f"{name}: {member} could not be downloaded: {_first_line(error)}") from error
        _check(fetched, f"{name}: {member}", sizes[member], digests.get(member))
        done += sizes[member]
        progress(done)
    for member, target in targets.items():
        put(workspace / member, directory / target)
    shutil.rmtree(workspace.parent, ignore_errors=True)
    return Fetched(tuple(targets.values()), targets.get(opened))


def _listed(specification: HubSpecification) -> tuple[str, dict[str, int], dict[str, str]]:
    """(commit, bytes of each file, SHA-256 in hex of those that the Hub stores by digest)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(specification.repository, revision=specification.revision, files_metadata=True)
    except Exception as error:  # as below
        raise PullError(f"{specification.name} could not be looked up: {_first_line(error)}") from error
    siblings = info.siblings or []
    digests = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs is not None}
    return info.sha or "main", {file.rfilename: file.size or 0 for file in siblings}, digests


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _reporter(on_bytes: Callable[[int], None]) -> type:
    """A progress bar class for the package that shows nothing and tells ``on_bytes`` how many bytes there are."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]

    class Reporter(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options["disable"] = True
            self._octavo_done = int(options.get("initial") or 0)
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self._octavo_done += int(n or 0)
            on_bytes(self._octavo_done)
            return None

    return Reporter


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check(path: Path, label: str, num_bytes: int, sha256: str | None) -> None:
    """Discards a file that is not what the Hub said it has."""
    size = path.stat().st_size
    problem = f"has {size} bytes instead of {num_bytes}" if size != num_bytes else None
    if problem is None and sha256 is not None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        problem = f"has the SHA-256 {digest}, not the expected {sha256}" if digest != sha256 else None
    if problem is not None:
        path.unlink()
        raise PullError(f"{label} {problem}; it was not kept")
