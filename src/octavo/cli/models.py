"""``octavo list`` and ``octavo rm``: the models in the cache."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer


def list_cached(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of name, bytes and path.")] = False) -> None:
    """List the models in the cache: name, size, path.

    \b
    Examples:
      octavo list
      octavo list --json
      octavo list | sort -k2                        for other models: octavo pull --help
    """
    from octavo.cli.banner import megabytes
    from octavo.weights.cache import cache_directory
    from octavo.weights.store import list_models

    models = list_models()
    if as_json:
        print(json.dumps([{"name": model.name, "bytes": model.num_bytes, "path": str(model.path)} for model in models], indent=1))
        return
    if not models:
        print(f"No models in {cache_directory()} yet: octavo pull fetches one.", file=sys.stderr)
        return
    width = max(len(model.name) for model in models)
    for model in models:
        print(f"{model.name:<{width}}  {megabytes(model.num_bytes):>8}  {model.path}")


def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="Models by the names that octavo list shows.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete models from the cache, packed weights included. A process that is serving one keeps it until it ends.

    \b
    Examples:
      octavo rm smollm2-135m-instruct               asks first
      octavo rm --yes hf:ORG/NAME:FILE.gguf
    """
    from octavo.backends.native import forget_packed
    from octavo.cli.banner import megabytes
    from octavo.cli.run import Refused
    from octavo.weights.store import list_models, remove_model

    present = {model.name: model for model in list_models()}
    for name in dict.fromkeys(names):
        if not yes:
            if not sys.stdin.isatty():
                raise Refused(f"rm asks before it deletes {name!r}, and nobody is there to answer: add --yes")
            size = f" ({megabytes(present[name].num_bytes)}, {present[name].path})" if name in present else ""
            if not typer.confirm(f"Delete {name}{size}?", err=True):
                print(f"{name} stays.", file=sys.stderr)
                continue
        freed = remove_model(name)
        if name in present:
            freed += forget_packed(present[name].path)
        print(f"{name}: {megabytes(freed)} freed")
