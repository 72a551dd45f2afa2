"""Which files of a package or a repository make up the model in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from octavo.weights.gguf_model import part_names

_DIRECTORY_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files that a Hugging Face directory needs: weights, configuration, tokenizer, chat template."""


def choose_model(paths: Iterable[str], wanted: str | None) -> tuple[str, list[str]]:
    """(what to open, the files it consists of) among POSIX ``paths``, hidden ones left out.

    A model is a .gguf file, all parts of a split one, or a directory with ``config.json`` and safetensors.

    ``wanted`` names a file or a directory; without it there must be only one model. What to open is a path of a file, or of
    a directory, which is "" at the top. Raises ``ValueError`` that lists what there is.
    """
    files = sorted({path for path in paths if not any(part.startswith(".") for part in path.split("/"))})
    models = _models(files)
    if wanted is None:
        if len(models) == 1:
            return next(iter(models.items()))
        # A repository of a model in Hugging Face's layout is that model, whatever conversions lie beside or below it.
        if "" in models and not any(path.endswith(".gguf") and "/" not in path for path in files):
            return "", models[""]
        raise ValueError(f"it holds {'several models' if models else 'no model that can be read'}{_listing(models)}")
    if wanted in models:
        return wanted, models[wanted]
    for first, parts in models.items():
        if wanted in parts and wanted.endswith(".gguf"):
            return first, parts
    raise ValueError(f"it holds no model {wanted!r}{_listing(models)}")


def _models(files: list[str]) -> dict[str, list[str]]:
    """What can be opened, and the files of each."""
    present = set(files)
    models: dict[str, list[str]] = {}
    for path in files:
        parent = PurePosixPath(path).parent
        if path.endswith(".gguf"):
            parts = [str(parent / name) for name in part_names(PurePosixPath(path).name) or [PurePosixPath(path).name]]
            if all(part in present for part in parts):
                models[parts[0]] = parts
        elif PurePosixPath(path).name == "config.json":
            prefix = "" if str(parent) == "." else f"{parent}/"
            inside = [file for file in files if file.startswith(prefix)]
            if any(file.endswith(".safetensors") and "/" not in file.removeprefix(prefix) for file in inside):
                models[prefix.rstrip("/")] = [file for file in inside if file.endswith(_DIRECTORY_SUFFIXES)]
    return models


def _listing(models: dict[str, list[str]]) -> str:
    names = [name or "(the whole directory)" for name in models]
    if not names:
        return ": neither a .gguf file nor a directory with config.json and safetensors"
    return "; there are: " + ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
